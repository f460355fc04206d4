"""Thumbnails: a few pictures out of their tars, made small, as `data:` addresses.

Pictures come from the web: formats by a short list, size checked in the header before anything is decoded,
and a picture that cannot be read is a placeholder in the page, not a failed report.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterable

from PIL import Image

from pipeline import storage
from pipeline.errors import InputError
from pipeline.shards.format import is_image
from pipeline.shards.reader import index_tar, read_member

SIDE = 224  # pixels of the longer side: sharp at 160 CSS pixels on most screens
MAX_PIXELS = 89_478_484  # as the crawler
FORMATS = ("JPEG", "PNG", "WEBP")


def thumbnails(wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(tar, key) -> `data:` address of a small JPEG; what cannot be read is left out.

    Each tar is indexed once; of its pictures only the wanted are read.
    """
    by_tar: dict[str, set[str]] = {}
    for tar, key in wanted:
        by_tar.setdefault(tar, set()).add(key)
    found = {}
    for tar, keys in sorted(by_tar.items()):
        if not storage.exists(tar):
            continue
        try:
            samples = [s for s in index_tar(tar) if s.key in keys]
        except InputError:
            continue
        for sample in samples:
            place = next((sample.members[m] for m in sorted(sample.members) if is_image(m)), None)
            small = shrink(read_member(tar, *place)) if place else None
            if small:
                found[tar, sample.key] = "data:image/jpeg;base64," + base64.b64encode(small).decode()
    return found


def shrink(data: bytes) -> bytes | None:
    """A JPEG of at most `SIDE` pixels a side; None where the picture cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            picture.draft("RGB", (SIDE, SIDE))
            small = picture.convert(
                "RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB"
            )
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None
    if small.mode == "RGBA":
        ground = Image.new("RGB", small.size, "white")
        ground.paste(small, mask=small.getchannel("A"))
        small = ground
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=80, optimize=True)
    return sink.getvalue()
