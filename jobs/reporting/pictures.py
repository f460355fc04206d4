"""Thumbnails: a few pictures out of their tars, made small, as `data:` addresses, within a budget.

Pictures come from the web: formats by a short list, size checked in the header before anything is decoded,
and a picture that cannot be read is a placeholder in the page, not a failed report.
"""

from __future__ import annotations

import base64
import io
import struct
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image

from pipeline import storage
from pipeline.errors import InputError
from pipeline.shards.format import is_image
from pipeline.shards.reader import index_tar, read_member

#: pixels of the longer side: sharp at 160 and at 100 CSS pixels on most screens
SIDE, SMALL_SIDE = 224, 144
QUALITY = 80
#: what is tried where pictures take too much: parts of the side, and JPEG quality
TIGHTER = ((0.8, 72), (0.6, 64), (0.45, 56))
MAX_PIXELS = 89_478_484  # as the crawler
FORMATS = ("JPEG", "PNG", "WEBP")
Place = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """(tar, key) -> `data:` address, large and small. left_out: pictures for which the page had no room."""

    large: dict[Place, str] = field(default_factory=dict)
    small: dict[Place, str] = field(default_factory=dict)
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.large) + len(self.small)


def thumbnails(large: Iterable[Place], small: Iterable[Place], *, budget: int) -> Pictures:
    """Small JPEGs of pictures given by tar and key, as often as the page shows them; what cannot be read is
    left out.

    Where all would take more than `budget` bytes of the page they are made smaller, then the last are left
    out. Each tar is indexed once; of its pictures only the wanted are read.
    """
    wanted = Counter(("large", *p) for p in large) + Counter(("small", *p) for p in small)
    made = _read(wanted)
    for part, quality in TIGHTER:
        if _bytes(made, wanted) <= budget:
            break
        made = {mark: _again(data, mark, part, quality) for mark, data in made.items()}
    room, left_out = budget, 0
    found = Pictures()
    for mark in wanted:
        if mark not in made:
            continue
        size, tar, key = mark
        address = "data:image/jpeg;base64," + base64.b64encode(made[mark]).decode()
        room -= wanted[mark] * len(address)
        if room < 0:
            left_out += wanted[mark]
            continue
        (found.large if size == "large" else found.small)[tar, key] = address
    return Pictures(large=found.large, small=found.small, left_out=left_out)


def _bytes(made: dict[tuple[str, str, str], bytes], wanted: Counter[tuple[str, str, str]]) -> int:
    return sum(wanted[mark] * (23 + 4 * -(-len(data) // 3)) for mark, data in made.items())


def _side(size: str) -> int:
    return SIDE if size == "large" else SMALL_SIDE


def _again(data: bytes, mark: tuple[str, str, str], part: float, quality: int) -> bytes:
    return shrink(data, side=round(_side(mark[0]) * part), quality=quality) or data


def _read(wanted: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], bytes]:
    by_tar: dict[str, dict[str, list[str]]] = {}
    for size, tar, key in wanted:
        by_tar.setdefault(tar, {}).setdefault(key, []).append(size)

    def work(tar: str) -> dict[tuple[str, str, str], bytes]:
        found = {}
        for key, data in originals(tar, by_tar[tar]).items():
            for size in by_tar[tar][key]:
                small = shrink(data, side=_side(size))
                if small:
                    found[size, tar, key] = small
        return found

    made: dict[tuple[str, str, str], bytes] = {}
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, sorted(by_tar)):
            made.update(found)
    return made


def originals(tar: str, keys: Iterable[str]) -> dict[str, bytes]:
    """The first picture of each of these samples, as it is stored; what cannot be read is left out."""
    if not storage.exists(tar):
        return {}
    wanted = set(keys)
    try:
        samples = [s for s in index_tar(tar) if s.key in wanted]
    except InputError:
        return {}
    found = {}
    for sample in samples:
        place = next((sample.members[m] for m in sorted(sample.members) if is_image(m)), None)
        if place:
            found[sample.key] = read_member(tar, *place)
    return found


def shrink(data: bytes, *, side: int = SIDE, quality: int = QUALITY) -> bytes | None:
    """A JPEG of at most `side` pixels a side; None where the picture cannot be read."""
    small = opened(data, side=side)
    if small is None:
        return None
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()


def opened(data: bytes, *, side: int) -> Image.Image | None:
    """An RGB picture of at most `side` pixels a side, on white; None where it cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            picture.draft("RGB", (side, side))
            small = picture.convert(
                "RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB"
            )
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None
    if small.mode == "RGBA":
        ground = Image.new("RGB", small.size, "white")
        ground.paste(small, mask=small.getchannel("A"))
        small = ground
    return small
