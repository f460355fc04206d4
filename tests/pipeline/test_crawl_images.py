"""Pictures: judged, kept or made anew, put in order, in several threads."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.shards.reader import Sample, iter_samples
from pipeline.stages.crawl.images import ImageOptions, Processor, read_header
from pipeline.stages.crawl.ordered import OrderedShard
from pipeline.stages.crawl.spread import over_hosts
from tests.pipeline.crawl_server import BOMB, picture
from tests.pipeline.photographs import pixels


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("no", (320, 240)),
        ("keep_ratio", (85, 64)),
        ("keep_ratio_largest", (64, 48)),
        ("center_crop", (64, 64)),
        ("border", (64, 64)),
    ],
)
def test_modes_and_img2datasets_own_bytes(mode: str, size: tuple[int, int]) -> None:
    settings = {"image_size": 64, "resize_mode": mode, "encode_quality": 90, "skip_reencode": False}
    found = Processor(ImageOptions(**settings))(picture(1))  # type: ignore[arg-type]
    exact = Processor(ImageOptions(**settings, resizer="img2dataset"))(picture(1))  # type: ignore[arg-type]
    for one in (found, exact):
        assert (one.width, one.height) == size
        assert (one.original_width, one.original_height) == (320, 240)
    from img2dataset.resizer import Resizer

    theirs = Resizer(64, mode, True, encode_quality=90)(io.BytesIO(picture(1)))
    assert exact.data == theirs[0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_formats_in_and_out(suffix: str) -> None:
    options = ImageOptions(image_size=64, encode_format=suffix)  # type: ignore[arg-type]
    for kind in ("jpg", "png", "webp"):
        found = Processor(options)(picture(2, kind=kind))
        header = read_header(found.data or b"")
        assert header is not None
        assert (header.format, header.height) == ("jpeg" if suffix == "jpg" else suffix, 64)


def test_sixteen_bits_do_not_turn_white() -> None:
    deep = np.full((48, 64, 3), 100 << 8, np.uint16)
    found = Processor(ImageOptions(image_size=32))(cv2.imencode(".png", deep)[1].tobytes())
    assert abs(pixels(found.data).mean() - 100) < 2


def test_small_pictures_stay_small_unless_asked() -> None:
    small = picture(3, width=40, height=30)
    assert Processor(ImageOptions(image_size=64))(small).height == 30
    assert Processor(ImageOptions(image_size=64, resize_only_if_bigger=False))(small).height == 64


@pytest.mark.parametrize(
    ("body", "options", "reason"),
    [
        (b"<html></html>", {}, "not_an_image"),
        (b"GIF89a" + bytes(1000), {}, "not_an_image"),
        (b"\xff\xd8\xff", {}, "not_an_image"),
        (BOMB + bytes(2000), {}, "too_many_pixels"),
        (picture(1), {"max_pixels": 320 * 240 - 1}, "too_many_pixels"),
        (picture(1)[:-2000], {}, "damaged"),
        (picture(1, kind="png")[:-2000], {}, "damaged"),
        (picture(1, kind="webp")[:-500], {}, "damaged"),
        (picture(1), {"min_image_size": 241}, "too_small"),
        (picture(1, width=320, height=100), {"max_aspect_ratio": 3.0}, "aspect_ratio"),
        (picture(1), {"min_bytes": 1_000_000}, "small_file"),
    ],
)
def test_what_is_dropped_and_why(body: bytes, options: dict, reason: str) -> None:
    found = Processor(ImageOptions(**options))(body)
    assert (found.reason, found.data, found.sha256) == (reason, None, None)
    assert found.message


def test_bombs_never_reach_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """169 million pixels in 20 KB: the header alone is read."""
    bomb = cv2.imencode(".png", np.zeros((13_000, 13_000), np.uint8))[1].tobytes()
    process = Processor(ImageOptions())
    monkeypatch.setattr(cv2, "imdecode", None)  # whoever calls it fails
    assert process(bomb).reason == "too_many_pixels"


@pytest.mark.parametrize("resizer", ["fast", "img2dataset"])
def test_threads_agree_and_do_not_lose_standard_output(resizer: str) -> None:
    """img2dataset's Resizer redirects the process's stdout; several of them would leave it at /dev/null."""
    before = [os.fstat(fd).st_ino for fd in (1, 2)]
    process = Processor(ImageOptions(image_size=32, resizer=resizer))  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as pool:
        alone = [process(picture(i)).data for i in range(20)]
        assert list(pool.map(lambda i: process(picture(i % 20)).data, range(100))) == alone * 5
    assert [os.fstat(fd).st_ino for fd in (1, 2)] == before


def test_the_same_bytes_in_every_process() -> None:
    script = (
        "import hashlib; from tests.pipeline.crawl_server import picture\n"
        "from pipeline.stages.crawl.images import ImageOptions, Processor\n"
        "process = Processor(ImageOptions(image_size=100))\n"
        "print([hashlib.sha256(process(picture(i, kind=k, width=900, height=500)).data).hexdigest()"
        " for i in range(4) for k in ('jpg', 'png', 'webp')])"
    )
    said = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True) for _ in range(2)]
    assert said[0].stdout == said[1].stdout
    assert len(said[0].stdout.split()) == 12


def test_the_common_worker_does_without_img2dataset() -> None:
    """Its import takes seconds and half a gigabyte of torch, wandb and albumentations."""
    script = (
        "import sys; from pipeline.stages.crawl.images import ImageOptions, Processor\n"
        "from tests.pipeline.crawl_server import picture\n"
        "assert Processor(ImageOptions())(picture(1)).data\n"
        "print(*(m for m in ('img2dataset', 'albumentations', 'torch', 'exifread') if m in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert said.stdout.split() == []


@pytest.mark.parametrize(
    ("kind", "settings", "kept"),
    [
        ("jpg", {}, True),
        ("jpg", {"image_size": 200}, False),
        ("jpg", {"image_size": 200, "resize_mode": "no"}, True),
        ("jpg", {"skip_reencode": False}, False),
        ("jpg", {"image_size": 241, "resize_only_if_bigger": False}, False),
        ("jpg", {"image_size": 240, "resize_only_if_bigger": False}, True),
        ("jpg", {"image_size": 240, "resize_mode": "center_crop", "resize_only_if_bigger": False}, False),
        ("jpg", {"encode_format": "png"}, False),
        ("png", {}, False),
        ("png", {"encode_format": "png"}, True),
        ("webp", {"encode_format": "webp"}, True),
        ("webp", {"image_size": 32, "disable_all_reencoding": True}, True),
    ],
)
def test_bytes_are_kept_where_nothing_changes(kind: str, settings: dict[str, Any], kept: bool) -> None:
    body = picture(5, kind=kind)
    found = Processor(ImageOptions(**settings))(body)
    assert found.data is not None
    assert (found.data == body) is kept
    header = read_header(found.data)
    assert header is not None
    assert (found.width, found.height) == (header.width, header.height)


@pytest.mark.parametrize("settings", [{}, {"disable_all_reencoding": True}, {"resizer": "img2dataset"}])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_no_damaged_picture_is_kept(kind: str, settings: dict[str, Any]) -> None:
    options = ImageOptions(image_size=1000, encode_format=kind, **settings)  # type: ignore[arg-type]
    process, body = Processor(options), picture(6, kind=kind)
    assert process(body).data == body
    for cut in (1, 2, 3, 100, len(body) // 2):
        found = process(body[:-cut])
        assert (found.reason, found.data) == ("damaged", None), cut


@pytest.mark.parametrize("kind", ["md5", "sha256", "sha512"])
def test_the_hash_of_the_list_must_match(kind: str) -> None:
    body = picture(7)
    process = Processor(ImageOptions(verify_hash=["hash", kind]))
    known = hashlib.new(kind, body).hexdigest()
    assert process(body, expected_hash=known).data
    assert process(body, expected_hash=f" {known.upper()}\n").data
    for wrong in (known[:-1], "", None, hashlib.new(kind, body + b"x").hexdigest(), "\u00e9"):
        found = process(body, expected_hash=wrong)
        assert (found.reason, found.data) == ("hash_mismatch", None)
    assert Processor(ImageOptions())(body, expected_hash="other").data, "nobody asked"


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"encode_quality": 101},
        {"encode_format": "png", "encode_quality": 10},
        {"verify_hash": ["md5"]},
        {"verify_hash": ["md5", "crc32"]},
    ],
)
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ImageOptions(**wrong).check()


def test_a_shard_is_written_in_order_whatever_comes_first(tmp_path: Path) -> None:
    samples = {i: Sample(f"{i:012d}", {"jpg": bytes([i]) * i, "txt": b"x"}) for i in range(50) if i % 3}
    shard = OrderedShard(tmp_path, "a")
    order = list(range(50))
    random.Random(1).shuffle(order)
    for position in order:
        shard.put(position, samples.get(position))
    with pytest.raises(AssertionError, match="put before"):
        shard.put(order[0], None)
    shard.close(50)
    assert list(iter_samples(str(shard.path))) == list(samples.values())
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_a_shard_with_a_gap_is_not_closed(tmp_path: Path) -> None:
    shard = OrderedShard(tmp_path, "a")
    shard.put(0, None)
    shard.put(2, None)
    with pytest.raises(AssertionError, match="1 of 3"):
        shard.close(3)


def test_hosts_take_turns_and_none_is_overrun() -> None:
    busy: Counter[str] = Counter()
    most: Counter[str] = Counter()
    done: list[tuple[str, int]] = []

    async def work(item: tuple[str, int]) -> None:
        host, _ = item
        busy[host] += 1
        most[host] = max(most[host], busy[host])
        most["all"] = max(most["all"], sum(busy.values()))
        await asyncio.sleep(0.001)
        busy[host] -= 1
        done.append(item)

    items = [("big", i) for i in range(100)] + [(f"small{i}", i) for i in range(5)]
    asyncio.run(over_hosts([(h, (h, i)) for h, i in items], work, concurrency=8, per_host=3))
    assert sorted(done) == sorted(items)
    assert (most["big"], most["all"]) == (3, 8)
    assert {h for h, _ in done[:20]} == {h for h, _ in items}, "a host with many URLs does not hold up others"


def test_an_unexpected_error_ends_the_rest() -> None:
    started: list[int] = []

    async def work(item: int) -> None:
        started.append(item)
        await asyncio.sleep(0 if item == 1 else 60)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(over_hosts([("a", i) for i in range(9)], work, concurrency=3, per_host=3))
    assert len(started) == 3
