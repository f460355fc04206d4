"""Hashes of what a picture shows: copies that were resized, compressed again or cropped a little have hashes
that differ in few bits. For the score kind `hash`, and for the pictures of benchmarks.

Two hashes, both of signs of a DCT-II of the grey picture, squeezed into a square:

* `phash64`, the well-known one (Zauner 2010, as the package ImageHash computes it): 32x32 pixels, its 8x8
  lowest frequencies with the DC, above their median or not. For lists of hashes that others made.
* `outlines`, 256 bits each: 64x64 pixels, the 256 lowest frequencies without the DC, above a quarter of a
  grey level or not, so that the noise of flat pictures sets no bit. One of the whole picture and one of each
  inner crop in CROPS: the whole of a cropped copy is an inner crop of its original.

The same bytes give the same bits on every machine: Pillow alone decodes and resizes, in integers, and the DCT
is exact, with cosines rounded to 1/65536 and sums below 2**53.
"""

from __future__ import annotations

import io
import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
#: the share of width and of height that an inner crop lacks, centred; a copy that lacks 0 to 11 % is within
#: 1.25 % of one of them, or of the whole
CROPS = (0.025, 0.05, 0.075, 0.1)
#: bits of an outline, and 64-bit words of one
BITS, WORDS = 256, 4
#: of the picture that all outlines are taken of, of one outline, and of the 64-bit hash
_MIDDLE, _SIDE, _SIDE64 = 128, 64, 32
_SCALE = 1 << 16
#: a wave of this height (grey levels) or less sets no bit
_NOISE = 0.25
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CorruptPictureError(ValueError):
    """The bytes are no picture that can be hashed; the message says why."""


def decode_grey(data: bytes) -> Image.Image:
    """The picture in grey (ITU-R 601, as Pillow has it), upright, transparent parts over white.

    Raises:
        CorruptPictureError: another format, too many pixels, truncated or damaged.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise CorruptPictureError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
        image.load()
    except CorruptPictureError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptPictureError(f"{type(error).__name__}: {error}") from error
    turn = _TURNS.get(_orientation(image))
    return _grey(image if turn is None else image.transpose(turn))


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # EXIF of the web raises what it likes, and is no part of the picture
        return None


def _grey(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L")


def phash64(grey: Image.Image) -> str:
    """16 hex digits; the first bit is the lowest frequency, rows first. Equal to `imagehash.phash` where no
    coefficient is the median itself, which rounding then decides there."""
    low = _dct(np.asarray(grey.resize((_SIDE64, _SIDE64), Image.Resampling.LANCZOS), np.float64), 8).ravel()
    middle = np.sort(low)[31:33].sum()  # twice the median: exact
    return np.packbits(2 * low > middle).tobytes().hex()


def outlines(grey: Image.Image) -> np.ndarray:
    """uint64 [1 + len(CROPS), WORDS], the first of the whole picture; the lowest frequencies are the highest
    bits of the first word."""
    middle = grey.resize((_MIDDLE, _MIDDLE), Image.Resampling.LANCZOS)
    small = []
    for crop in (0.0, *CROPS):
        near, far = _MIDDLE * crop / 2, _MIDDLE * (1 - crop / 2)
        box = (near, near, far, far)
        small.append(np.asarray(middle.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box=box), np.float64))
    rows, columns, floor = _frequencies()
    waves = _dct(np.stack(small), int(rows.max()) + 1)[:, rows, columns]
    return from_bytes(np.packbits(waves > floor, axis=1))


@cache
def _cosines(side: int, waves: int) -> np.ndarray:
    """float64 [waves, side], integers."""
    turns = [[math.pi * (2 * at + 1) * wave / (2 * side) for at in range(side)] for wave in range(waves)]
    return np.array([[round(math.cos(turn) * _SCALE) for turn in row] for row in turns], np.float64)


def _dct(pixels: np.ndarray, waves: int) -> np.ndarray:
    """The lowest waves x waves coefficients of pictures [..., side, side]: the DCT-II as scipy has it without
    normalisation, times _SCALE squared and over 4."""
    cosines = _cosines(pixels.shape[-1], waves)
    return cosines @ pixels @ cosines.T


@cache
def _frequencies() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each bit of an outline: vertical and horizontal frequency, and the coefficient it has to exceed."""
    waves = [(u, v) for u in range(24) for v in range(24) if u or v]
    waves.sort(key=lambda wave: (wave[0] ** 2 + wave[1] ** 2, max(wave), wave[0]))
    rows, columns = np.array(waves[:BITS]).T
    # a wave of height 1 that is constant in one direction has twice the coefficient of others
    height = _SIDE * _SIDE / 4 * np.where((rows == 0) | (columns == 0), 2, 1)
    return rows, columns, _NOISE * height * _SCALE * _SCALE


def to_hex(words: np.ndarray) -> str:
    """All words of a hash, or of several, as hex digits: 64 for each outline."""
    return words.astype(">u8").tobytes().hex()


def from_bytes(data: np.ndarray) -> np.ndarray:
    """uint64 [..., n / 8] of uint8 [..., n], the first byte the highest."""
    return np.ascontiguousarray(data).view(">u8").astype(np.uint64)


def hamming(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """int64 [...]: the bits in which hashes uint64 [..., words] differ; shapes broadcast."""
    return np.bitwise_count(one ^ other).sum(axis=-1, dtype=np.int64)


def alike(one: np.ndarray, other: np.ndarray, apart: np.ndarray, distance: int) -> np.ndarray:
    """bool [...]: whether hashes that differ in `apart` bits are of copies: in at most `distance`, and in at
    most a quarter of the bits that either has set. Nearly flat pictures have few, and any two of them look
    alike by what these say: a sky and a wall."""
    fewest = np.minimum(*(np.bitwise_count(words).sum(axis=-1, dtype=np.int64) for words in (one, other)))
    return apart <= np.minimum(distance, fewest // 4)


def band_values(words: np.ndarray, bands: int, bits: int) -> np.ndarray:
    """uint64 [n, bands] of hashes uint64 [n, words]: their first bands * bits bits dealt out like cards, so
    that each has low and high frequencies. Hashes that differ in fewer than `bands` bits share a band.

    Args:
        bits: of a band, at most 64; they are the highest of its value.
    """
    every = np.unpackbits(words.astype(">u8").view(np.uint8).reshape(len(words), 8 * words.shape[1]), axis=1)
    dealt = every[:, : bands * bits].reshape(len(words), bits, bands).transpose(0, 2, 1)
    packed = np.packbits(dealt, axis=2)
    whole = np.zeros((len(words), bands, 8), np.uint8)
    whole[:, :, : packed.shape[2]] = packed
    return from_bytes(whole)[:, :, 0]
