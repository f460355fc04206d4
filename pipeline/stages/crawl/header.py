"""What the first bytes of a picture say, and how JPEG, PNG and WebP files are put together.

A few kilobytes can decode to gigabytes, so format and size are read here, with our own few lines, before any
decoder sees the file. Nothing is allocated by what a file claims, every walk is bounded, and nothing raises.

Sources: ITU-T T.81 (JPEG), the PNG specification (W3C, third edition), RFC 9649 (WebP).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Format = Literal["jpeg", "png", "webp"]

#: more pieces than this in one file, and it was made to keep us busy
MAX_PIECES = 1 << 16
#: JPEG markers that start a frame and so hold the size: all C0..CF but DHT, JPG and DAC
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: those that common decoders know: baseline, extended, progressive; and the last two in arithmetic coding
_KNOWN_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_PNG = b"\x89PNG\r\n\x1a\n"
#: samples of a pixel by PNG's colour type; 3 is a palette
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: first bytes of formats that are met on the web and that we do not take
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000"),
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of a picture says.

    Attributes:
        width: pixels as stored, before the EXIF orientation.
        height: the same.
        bits: bits a sample.
        channels: samples a pixel as stored: 1 grey or palette, 2 grey and alpha, 3 colour, 4 CMYK in a JPEG,
            else colour and alpha. What a WebP may have at most.
        animated: whether there is more than one frame.
        problem: why no decoder here takes it, such as `12-bit JPEG`.
    """

    format: Format
    width: int
    height: int
    bits: int = 8
    channels: int = 3
    animated: bool = False
    problem: str | None = None


def read_header(data: bytes) -> Header | None:
    """Format and size from the header of a JPEG, PNG or WebP; None for everything else."""
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:8] == _PNG and data[12:16] == b"IHDR":
            return _png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except struct.error:  # the header is cut off
        pass
    return None


def name_format(data: bytes) -> str:
    """What a body is that has no header of ours, for messages; from a small fixed set of answers."""
    if data[:3] == b"\xff\xd8\xff" or data[:8] == _PNG or (data[:4], data[8:12]) == (b"RIFF", b"WEBP"):
        return "a JPEG, PNG or WebP without a size in its header"
    for magic, name in _OTHERS:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "an AVIF, HEIC or MP4"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "an SVG"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "a page"
    return "neither JPEG nor PNG nor WebP"


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to and with the first scan; start..end is its payload.

    Ends early at anything that is not a marker, and after MAX_PIECES.
    """
    position = 2
    for _ in range(MAX_PIECES):
        if position + 4 > len(data) or data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no length follows
            position += 2
        elif marker == 0xD9:  # end of image
            return
        else:
            (length,) = struct.unpack_from(">H", data, position + 2)
            if length < 2:
                return
            yield marker, position + 4, position + 2 + length
            if marker == 0xDA:
                return
            position += 2 + length


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each whole chunk; start..end is its payload and four bytes of CRC follow.

    Ends with IEND, at a chunk that is cut off, and after MAX_PIECES.
    """
    position = 8
    for _ in range(MAX_PIECES):
        if position + 12 > len(data):
            return
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            return
        yield kind, position + 8, end
        if kind == b"IEND":
            return
        position = end + 4


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each whole chunk of the RIFF container; start..end is its payload."""
    position = 12
    for _ in range(MAX_PIECES):
        if position + 8 > len(data):
            return
        kind = data[position : position + 4]
        (length,) = struct.unpack_from("<I", data, position + 4)
        start = position + 8
        if start + length > len(data):
            return
        yield kind, start, start + length
        position = start + length + (length & 1)


def _jpeg(data: bytes) -> Header | None:
    for marker, start, _ in jpeg_segments(data):
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, start)
            problem = None
            if marker not in _KNOWN_FRAMES:
                problem = "lossless or hierarchical JPEG"
            elif bits != 8:
                problem = f"JPEG of {bits} bits" if bits == 12 else "JPEG of unknown precision"
            elif channels not in (1, 3, 4):
                problem = "JPEG of neither 1, 3 nor 4 components"
            return _header("jpeg", width, height, bits=bits, channels=channels, problem=problem)
    return None


def _png(data: bytes) -> Header | None:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in _PNG_CHANNELS or bits not in (1, 2, 4, 8, 16):
        return None
    # An APNG says so before its first IDAT.
    before = data.find(b"IDAT", 33)
    animated = data.find(b"acTL", 33, before if before > 0 else 33) > 0
    return _header("png", width, height, bits=bits, channels=_PNG_CHANNELS[colour], animated=animated)


def _webp(data: bytes) -> Header | None:
    chunk = data[12:16]
    if chunk == b"VP8X":  # canvas size minus one, 24 bits each
        if len(data) < 30:
            return None
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return _header(
            "webp", width, height, channels=4 if data[20] & 0x10 else 3, animated=bool(data[20] & 0x02)
        )
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        channels = 4 if bits >> 28 & 1 else 3
        return _header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, channels=channels)
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return _header("webp", width & 0x3FFF, height & 0x3FFF)
    return None


def _header(
    kind: Format,
    width: int,
    height: int,
    *,
    bits: int = 8,
    channels: int = 3,
    animated: bool = False,
    problem: str | None = None,
) -> Header | None:
    if width < 1 or height < 1:
        return None
    return Header(
        format=kind,
        width=width,
        height=height,
        bits=bits,
        channels=channels,
        animated=animated,
        problem=problem,
    )
