"""Hostile pictures: no crash, a reason, bounded time and memory; and whatever chance makes of good ones."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.crawl.exif import exif_block, orientation, tags_json
from pipeline.stages.crawl.header import read_header
from pipeline.stages.crawl.images import ImageOptions, Picture, Processor
from tests.pipeline.crawl_server import picture
from tests.pipeline.hostile_images import HOSTILE, WHOLE, animated, jpeg
from tests.pipeline.test_crawl_decode import EQUAL, interlaced, turned

#: of CPU, for one picture of 10 MB and 89 Mpx at most; a busy machine has been measured at twice a quiet one
MAX_SECONDS = 10
#: 89 Mpx are 268 MB as they are decoded, and the decoder has them twice
MAX_MEGABYTES = 700
REASONS = {None, "damaged", "not_an_image", "too_many_pixels", "unsupported"}


def test_hostile_pictures_have_their_reason_and_are_cheap() -> None:
    run = [sys.executable, "-m", "tests.pipeline.hostile_images"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert len(said) == len(HOSTILE) >= 30
    assert {name: row["reason"] for name, row in said.items()} == {n: r for n, (_, r) in HOSTILE.items()}
    assert not [row for row in said.values() if row["reason"] and not row["message"]]
    assert [row for row in said.values() if row["seconds"] > MAX_SECONDS] == []
    assert [row for row in said.values() if row["megabytes"] > MAX_MEGABYTES] == []


@cache
def good() -> list[bytes]:
    names = ("jpeg progressive", "jpeg restarts", "png palette, see-through", "png animated", "webp lossless")
    small = [picture(1, width=40, height=30, kind=kind) for kind in ("jpg", "png", "webp")]
    whole = [WHOLE, jpeg(), animated(3), interlaced()]
    return [*small, *whole, *(EQUAL[n]() for n in names), *(turned(k, 6) for k in ("JPEG", "PNG", "WEBP"))]


@cache
def processor(way: int) -> Processor:
    ways: list[dict[str, Any]] = [
        {"image_size": 16, "extract_exif": True},
        {"resize_mode": "border", "image_size": 50, "encode_format": "png"},
        {"resize_mode": "no", "encode_format": "webp", "max_pixels": 1 << 20},
        {"disable_all_reencoding": True, "max_pixels": 1 << 20},
    ]
    return Processor(ImageOptions(**ways[way]))


def settled(found: Picture) -> None:
    """A picture or a reason, never both nor none."""
    assert found.reason in REASONS
    assert (found.data is None) == (found.reason is not None)
    assert (found.message is None) == (found.reason is None)
    if found.data is not None:
        assert found.width
        assert found.height
        assert found.original_width
        assert found.original_height


@settings(max_examples=400, deadline=None)
@given(
    which=st.integers(0, 14),
    way=st.integers(0, 3),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=8),
)
def test_flipped_bits(which: int, way: int, flips: list[tuple[int, int]]) -> None:
    body = bytearray(good()[which])
    for place, bit in flips:
        body[place % len(body)] ^= 1 << bit
    settled(processor(way)(bytes(body)))


@settings(max_examples=300, deadline=None)
@given(
    which=st.integers(0, 14),
    way=st.integers(0, 3),
    start=st.integers(0, 1 << 20),
    length=st.integers(0, 200),
    instead=st.binary(max_size=50),
)
def test_lost_and_foreign_bytes(which: int, way: int, start: int, length: int, instead: bytes) -> None:
    body = good()[which]
    start %= len(body)
    settled(processor(way)(body[:start] + instead + body[start + length :]))


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\0\0\0\0WEBPVP8X", b"II*\0"]
    ),
    rest=st.binary(max_size=300),
)
def test_headers_of_noise(start: bytes, rest: bytes) -> None:
    body = start + rest
    read_header(body)
    settled(processor(3)(body))
    for kind in ("jpeg", "png", "webp"):
        exif_block(body, kind)
    assert 1 <= orientation(body) <= 8
    json.loads(tags_json(body) or "{}")


@pytest.mark.parametrize("which", range(15))
def test_a_picture_that_was_cut_is_damaged(which: int) -> None:
    """Wherever it was cut, but after its end: two of these have something behind it."""
    body = good()[which]
    assert processor(0)(body).reason is None
    for stop in range(0, len(body), 1 + len(body) // 250):
        found = processor(0)(body[:stop])
        assert found.reason in ("damaged", "not_an_image"), stop
    for cut in (1, 2, 3):
        assert processor(0)(body[:-cut]).reason == "damaged", cut
