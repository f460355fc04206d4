"""Hashes of pictures: against scipy and ImageHash, on copies, blanks and hostile files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from pipeline.phash import (
    BITS,
    CROPS,
    WORDS,
    CorruptPictureError,
    band_values,
    decode_grey,
    hamming,
    outlines,
    phash64,
    to_hex,
)
from tests.pipeline.photographs import textured

LANCZOS = Image.Resampling.LANCZOS


def _pattern(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([(x * x + 3 * y) % 251, (5 * x + y * y) % 241, (x * y) % 239], -1).astype(np.uint8)
    )


def _file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    return Image.fromarray(textured(seed, *size))


# what ImageHash 4.3.2 says of the same pictures
@pytest.mark.parametrize(("size", "value"), [((97, 61), "840526a7272faeaf"), ((40, 200), "83870730039ffc3f")])
def test_the_short_hash_is_that_of_imagehash(size: tuple[int, int], value: str) -> None:
    assert phash64(decode_grey(_file(_pattern(*size)))) == value


@pytest.mark.parametrize("seed", range(6))
def test_both_hashes_against_scipy(seed: int) -> None:
    grey = decode_grey(_file(_photo(seed)))
    low = dctn(np.asarray(grey.resize((32, 32), LANCZOS), float))[:8, :8]
    assert phash64(grey) == np.packbits(low.ravel() > np.median(low)).tobytes().hex()
    side, found = 128, outlines(grey)
    small = grey.resize((side, side), LANCZOS)
    waves = sorted(
        ((u, v) for u in range(30) for v in range(30) if u + v),
        key=lambda w: (w[0] ** 2 + w[1] ** 2, max(w), w[0]),
    )[:BITS]
    for at, crop in enumerate((0.0, *CROPS)):
        box = (side * crop / 2, side * crop / 2, side - side * crop / 2, side - side * crop / 2)
        table = dctn(np.asarray(small.resize((64, 64), LANCZOS, box=box), float)) / 4
        # the height of a wave, in grey levels
        heights = np.array([table[u, v] / 64**2 * 4 / (1 if u and v else 2) for u, v in waves])
        clear = abs(heights - 0.25) > 1e-3
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(to_hex(found[at])), np.uint8)).astype(bool)
        assert clear.sum() > 240
        assert (bits == (heights > 0.25))[clear].all()


def test_copies_are_near_and_other_pictures_far() -> None:
    for seed in range(4):
        image = _photo(seed, (320, 240))
        whole = outlines(decode_grey(_file(image)))
        copies = {
            "half": image.resize((160, 120)),
            "crop": image.crop((8, 6, 312, 234)),
            "jpeg": Image.open(io.BytesIO(_file(image, "JPEG", quality=50))),
        }
        for name, copy in copies.items():
            found = outlines(decode_grey(_file(copy)))
            apart = min(hamming(whole, found[0]).min(), hamming(found, whole[0]).min())
            assert apart <= 12, (seed, name, apart)
        other = outlines(decode_grey(_file(_photo(seed + 50, (320, 240)))))
        assert min(hamming(whole, other[0]).min(), hamming(other, whole[0]).min()) > 48


def test_flat_pictures_have_no_bit_with_noise_or_without() -> None:
    noise = np.random.default_rng(0).integers(-2, 3, (90, 120, 1))
    for level in (3, 128, 250):
        flat = np.full((90, 120, 3), level, np.uint8)
        for pixels in (flat, (flat.astype(int) + noise).clip(0, 255).astype(np.uint8)):
            for data in (_file(Image.fromarray(pixels)), _file(Image.fromarray(pixels), "JPEG", quality=60)):
                assert not outlines(decode_grey(data)).any()
    assert phash64(decode_grey(_file(Image.new("RGB", (50, 50))))) == "0" * 16


def test_transparent_parts_are_white_and_pictures_upright() -> None:
    image = _photo(3)
    clear = image.convert("RGBA")
    clear.putalpha(Image.new("L", image.size, 255))
    shown = decode_grey(_file(image))
    assert decode_grey(_file(clear)).tobytes() == shown.tobytes()
    assert decode_grey(_file(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))).getextrema() == (255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert decode_grey(_file(turned, exif=exif)).tobytes() == shown.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_and_the_smallest_pictures_have_hashes(mode: str) -> None:
    for size in ((1, 1), (1, 700), (33, 2)):
        grey = decode_grey(_file(Image.new(mode, size, 1)))
        assert len(phash64(grey)) == 16
        assert outlines(grey).shape == (1 + len(CROPS), WORDS)


def test_what_is_no_picture_is_refused() -> None:
    whole = _file(_photo(1), "JPEG")
    for data in (b"", b"<html>", whole[: len(whole) // 2], _file(_photo(1), "GIF"), whole[:3] + bytes(500)):
        with pytest.raises(CorruptPictureError):
            decode_grey(data)
    with pytest.raises(CorruptPictureError, match="pixels"):
        decode_grey(_file(Image.new("1", (9000, 9000))))


words = st.lists(st.integers(0, 2**64 - 1), min_size=WORDS, max_size=WORDS)


@given(words, words)
def test_hamming_counts_bits(one: list[int], other: list[int]) -> None:
    expected = sum(bin(a ^ b).count("1") for a, b in zip(one, other, strict=True))
    assert hamming(np.array(one, np.uint64), np.array(other, np.uint64)) == expected


@given(words, st.integers(1, 8), st.integers(1, 32), st.data())
@settings(deadline=None)
def test_fewer_different_bits_than_bands_leave_one_band_equal(
    value: list[int], bands: int, bits: int, data: st.DataObject
) -> None:
    flips = data.draw(st.sets(st.integers(0, BITS - 1), max_size=bands - 1))
    one = np.array([value], np.uint64)
    other = one.copy()
    for bit in flips:
        other[0, bit // 64] ^= np.uint64(1) << np.uint64(63 - bit % 64)
    assert (band_values(one, bands, bits) == band_values(other, bands, bits)).any()
    # and a value says all of its bits: the first band * bits bits decide
    used = {bit for bit in flips if bit < bands * bits}
    differing = int((band_values(one, bands, bits) != band_values(other, bands, bits)).sum())
    assert (differing > 0) == bool(used)
