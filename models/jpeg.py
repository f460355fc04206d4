"""What a JPEG says before its pixels, read so strictly that a faster decoder may be trusted with it.

OpenCV decodes a third faster than Pillow to the same pixels (both are libjpeg-turbo), but it takes a file
that was cut off or has a foreign mark in it for whole, and pictures of any size. So only a file whose markers
follow each other without a gap, with nothing but coded pixels between scans, and which ends with the mark of
its end, is for it; all else is for Pillow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_START, _END = b"\xff\xd8", b"\xff\xd9"
#: baseline, extended and progressive Huffman; what else there is, is rare
_FRAMES = (0xC0, 0xC1, 0xC2)
_SCAN = 0xDA
#: the end of coded pixels: a mark that is neither a stuffed zero, nor a restart, nor filling
_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
#: what may stand between two scans: tables, restart intervals, scans
_BETWEEN = (0xC4, 0xDB, 0xDD, _SCAN)


@dataclass(frozen=True)
class JpegHeader:
    """width, height in pixels; components: 1 grey, 3 colour, 4 CMYK."""

    width: int
    height: int
    components: int


def plain_jpeg(data: bytes) -> JpegHeader | None:
    """The header of a JPEG that is whole and of a usual kind, else None.

    Segments are walked by their lengths, and coded pixels hold no end mark: a file that was cut off anywhere
    gives None.
    """
    if not (data.startswith(_START) and data.endswith(_END)):
        return None
    at, header = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return header if header and _scans_reach_the_end(data, at) else None
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9 or length < 2:
            return None
        if marker in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)):
            if marker not in _FRAMES or header is not None or length < 8:
                return None
            header = _frame(data[at + 4 : at + 10])
            if header is None:
                return None
        at += 2 + length
    return None


def _scans_reach_the_end(data: bytes, at: int) -> bool:
    """Whether from the first scan on there are scans and their tables alone, up to the end mark."""
    while True:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        at += 2 + length
        if marker == _SCAN:
            found = _MARK.search(data, at)
            if found is None:
                return False
            at = found.start()
        if at == len(data) - 2:
            return marker == _SCAN and data.endswith(_END)
        if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] not in _BETWEEN:
            return False


def _frame(body: bytes) -> JpegHeader | None:
    if len(body) < 6 or body[0] != 8:  # bits a sample
        return None
    height, width, components = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), body[5]
    if not width or not height or components not in (1, 3):
        return None
    return JpegHeader(width, height, components)
