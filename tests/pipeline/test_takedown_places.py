"""Takedown where folders are laid out otherwise: on S3, with merged manifests, made by a fused crawl."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline import commit, manifest, storage
from pipeline.compact import compact
from pipeline.fused import Column, Fused
from pipeline.planning import make_plan
from tests.pipeline.folders import CRAWL_SCHEMA, FixedConfig, read_tar, run_here
from tests.pipeline.object_store import s3_bucket
from tests.pipeline.takedown_world import (
    CountedImages,
    LengthConfig,
    Lengths,
    World,
    everything_in,
    keys_in,
    make_world,
    picture_of,
    rows_of,
)

GONE = ["--domain", "site0.example", "--page-domain", "page3.blog.example"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), shards=2)


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return World(Path(shutil.copytree(made.base, tmp_path / "world")))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("takedown") as url:
        yield url


def all_parts(base: str) -> dict[str, bytes]:
    """Parts and names of manifests below a base folder."""
    found = {}
    for folder in ("images", "columns/lengths", "columns/dedup", "columns/dedup/_sketch", "shards"):
        place = storage.join(base, folder)
        for info in storage.list_files(place):
            found[f"{folder}/{storage.basename(info.url)}"] = storage.read_bytes(info.url)
        for done in manifest.list_manifests(place):
            found[f"{folder}/{storage.basename(done.url)}"] = b""
    return found


def words_for(base: str) -> list[str]:
    columns = f"[{base}/columns/lengths, {base}/columns/dedup]"
    return ["--images", f"{base}/images", "--columns", columns, "--shards", f"{base}/shards"]


def test_on_s3(world: World, bucket: str) -> None:
    remote = f"{bucket}/world"
    fs, path = storage.resolve(remote)
    fs.put(str(world.base), path, recursive=True)
    assert all_parts(remote) == all_parts(str(world.base))
    assert main(["takedown", *words_for(str(world.base)), *GONE]) == 0
    assert main(["takedown", *words_for(remote), *GONE]) == 0
    assert all_parts(remote) == all_parts(str(world.base))
    everything = b"".join(
        storage.read_bytes(f"s3://{name}") for name in fs.find(path) if not name.endswith("tombstones.jsonl")
    )
    assert picture_of(0, 2) not in everything
    assert picture_of(1, 3) not in everything
    assert picture_of(1, 2) in everything
    for folder in ("images", "columns/lengths", "shards"):
        assert not storage.list_folders(commit.pending_folder(f"{remote}/{folder}"))


def test_merged_manifests(world: World, tmp_path: Path) -> None:
    loose = World(Path(shutil.copytree(world.base, tmp_path / "loose")))
    for folder in (world.images, world.lengths, world.dedup, world.dedup / "_sketch", world.shards):
        compact(str(folder))
        assert all(d.compacted for d in manifest.list_manifests(str(folder)))
    for one in (world, loose):
        assert main(["takedown", *one.arguments(), *GONE]) == 0
    assert all_parts(str(world.base)) == all_parts(str(loose.base))
    for folder in (world.images, world.lengths, world.shards):
        compact(str(folder))
    before = all_parts(str(world.base))
    assert main(["takedown", *world.arguments(), *GONE]) == 0
    assert all_parts(str(world.base)) == before


def test_a_fused_crawl(tmp_path: Path) -> None:
    """Pictures below the floor were never stored, but their rows and columns were."""
    rows = {0: rows_of(0)}
    images, lengths = tmp_path / "images", tmp_path / "lengths"
    column = Column(stage=Lengths(LengthConfig(input=str(images))), output=str(lengths))
    schema = pa.schema([*CRAWL_SCHEMA, pa.field("letters", pa.int32())])
    stage = Fused(
        FixedConfig(shards=rows),
        first=CountedImages(rows),
        columns=[column],
        floor="letters > 0 AND position != 2",
        schema=schema,
    )
    run_here(stage, images)
    assert len(keys_in(lengths)) == 5
    assert len(read_tar(images / "00000000.tar")) == 4
    urls = [word for i in (2, 3) for word in ("--url", rows[0][i]["url"])]
    assert main(["takedown", "--images", str(images), "--columns", str(lengths), *urls]) == 0
    there = everything_in(images, lengths)
    assert not [i for i in (2, 3) if rows[0][i]["caption"].encode() in there]
    assert len(keys_in(lengths)) == 3
    assert len(read_tar(images / "00000000.tar")) == 3
    found = pq.read_table(images / "00000000.parquet")["reason"].to_pylist()
    assert found == [None, None, "taken_down", "taken_down", None, "timeout"]
    assert not make_plan(stage, str(images)).todo
    assert not make_plan(column.stage, str(lengths)).todo
    (record,) = manifest.read_all(str(images))
    assert record["counts"] == {"in": 6, "out": 3, "dropped": {"taken_down": 2, "timeout": 1}}
