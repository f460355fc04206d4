"""The EXIF block of a picture: which way it is turned, and its tags as img2dataset writes them.

The orientation is read with our own few lines, from the first directory alone. All tags together, when
`extract_exif` asks for them, are read by the `exifread` package, imported at the first block that is met.

Source: CIPA DC-008 (EXIF 3.0), TIFF 6.0.
"""

from __future__ import annotations

import io
import json
import struct

from pipeline.stages.crawl.header import Format, jpeg_segments, png_chunks, webp_chunks

_ORIENTATION = 0x0112
#: directories that a tag points at: EXIF, GPS, interoperability
_POINTERS = frozenset({0x8769, 0x8825, 0xA005})
#: bytes of one value of a TIFF type
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
#: a block that is larger, or whose tags claim more in sum, is not read for its tags: JPEG's own limit
MAX_BYTES = 1 << 16


def exif_block(data: bytes, kind: Format) -> bytes | None:
    """The TIFF structure with the tags of a picture, or None."""
    if kind == "jpeg":
        for marker, start, end in jpeg_segments(data):
            if marker == 0xE1 and data[start : start + 6] == b"Exif\x00\x00":
                return data[start + 6 : end]
        return None
    if kind == "webp" and data[12:16] != b"VP8X":  # nothing but the picture
        return None
    walk, name = (png_chunks, b"eXIf") if kind == "png" else (webp_chunks, b"EXIF")
    for chunk, start, end in walk(data):
        if chunk == name:
            block = data[start:end]
            return block[6:] if block[:6] == b"Exif\x00\x00" else block
    return None


def orientation(block: bytes | None) -> int:
    """1 to 8 as EXIF counts them; 1, upright, where the block does not say or is broken."""
    if block is None:
        return 1
    order = "<" if block[:2] == b"II" else ">"
    for tag, kind, _, value in _entries(block, _first(block, order)):
        if tag == _ORIENTATION and kind in (1, 3, 4):
            (found,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], value)
            return found if 1 <= found <= 8 else 1
    return 1


def tags_json(block: bytes | None) -> str | None:
    """All tags but the long ones (maker notes, thumbnail) as a JSON object of strings, as img2dataset does.

    None without a block, for a broken one, and for one made to grow: many tags that share a long value.
    """
    if not block or len(block) > MAX_BYTES or _claimed_bytes(block) > MAX_BYTES:
        return None
    import exifread

    try:
        tags = exifread.process_file(io.BytesIO(block), details=False)
        return json.dumps({name: str(value).strip() for name, value in tags.items() if value is not None})
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
        struct.error,
    ):
        return None  # broken tags are the rule on the web, and this reader meets them unprepared


def _entries(block: bytes, offset: int) -> list[tuple[int, int, int, bytes]]:
    """(tag, type, count, the four bytes of value or offset) of the directory at `offset`."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(block[:4])
    if order is None:
        return []
    try:
        (count,) = struct.unpack_from(order + "H", block, offset)
        count = min(count, (len(block) - offset - 2) // 12)
        return [struct.unpack_from(order + "HHI4s", block, offset + 2 + 12 * i) for i in range(count)]
    except struct.error:
        return []


def _claimed_bytes(block: bytes) -> int:
    """Bytes of the values of all tags in reach; each directory once, so that cycles end."""
    order = "<" if block[:2] == b"II" else ">"
    total, seen = 0, {0}
    waiting = [(_first(block, order), True)]
    while waiting and total <= MAX_BYTES:
        at, chained = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        entries = _entries(block, at)
        for tag, kind, count, value in entries:
            total += _SIZES.get(kind, 1) * count
            if tag in _POINTERS:
                waiting.append((struct.unpack(order + "I", value)[0], False))
        after = at + 2 + 12 * len(entries)
        if chained and entries and after + 4 <= len(block):  # the thumbnail's directory as a rule
            waiting.append((struct.unpack_from(order + "I", block, after)[0], True))
    return total


def _first(block: bytes, order: str) -> int:
    """Where the first directory is; 0, which is nowhere, where the block is too short to say."""
    return int(struct.unpack_from(order + "I", block, 4)[0]) if len(block) >= 8 else 0
