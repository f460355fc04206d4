"""Images, columns and packed shards for the tests of takedown, made by the stages themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import columns, inputs
from pipeline.planning import make_plan
from pipeline.settings import operational
from pipeline.stage import Counts, Input, Output, Stage, Unit
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.pack import Pack, PackConfig
from pipeline.tombstones import with_book
from tests.pipeline.folders import FixedImages, crawled, jpeg, run_here

SHARDS, ROWS = 4, 6


@dataclass(frozen=True, kw_only=True)
class LengthConfig:
    input: str = operational("")


class Lengths(Stage):
    """A column: the length of the caption of every success. A stand-in for score, with its inputs."""

    name = "score"

    def __init__(self, config: LengthConfig) -> None:
        self.config = config

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        return [self.unit_over(s.number, s.input) for s in inputs.shards(self.config.input, ".tar")]

    def unit_over(self, number: int, shard: Input) -> Unit:
        return Unit(number=number, source={"shard": number}, inputs=(shard,))

    def run(self, unit: Unit, scratch: Path) -> Output:
        rows = columns.read_images(unit.inputs[0].url.removesuffix(".tar") + ".parquet").to_pylist()
        rows = [row for row in rows if row["status"] == columns.SUCCESS]
        values = pa.array([len(row["caption"]) for row in rows], pa.int32())
        table = pa.table({"key": pa.array([r["key"] for r in rows], pa.string()), "letters": values})
        return Output(parts={".parquet": table}, counts=Counts(len(rows), len(rows)))


class CountedImages(FixedImages):
    """The stand-in for the crawl with its counts and statistics."""

    suffixes = (".tar", ".parquet", "_stats.json")

    def run(self, unit: Unit, scratch: Path) -> Output:
        output = super().run(unit, scratch)
        table = output.parts[".parquet"]
        assert isinstance(table, pa.Table)
        reasons = [r for r in table["reason"].to_pylist() if r]
        counts = Counts(len(table), len(table) - len(reasons), {r: reasons.count(r) for r in set(reasons)})
        stats = {"count": len(table), "successes": counts.kept, "failed_to_download": len(reasons)}
        stats |= {"failed_to_resize": 0, "start_time": 1.5, "status_dict": {"success": counts.kept}}
        return Output(
            parts={**output.parts, "_stats.json": stats}, counts=counts, volatile=frozenset({"_stats.json"})
        )


def rows_of(shard: int) -> list[dict[str, Any]]:
    """Successes, the last row timed out; each shard has its own domain, and one picture in common."""
    rows = []
    for index in range(ROWS):
        url = f"http://pictures.site{shard}.example/{index}.jpg?token=secret{shard}{index}"
        page = f"http://page{index}.blog.example/post/{shard}"
        facts: dict[str, Any] = {"url": url, "page_url": page, "caption": f"caption-{shard}-{index} of it"}
        if index == 1:  # the same file in every shard
            facts |= {"seed": 77}
        if index == ROWS - 1:
            facts |= {"reason": "timeout"}
        rows.append(crawled(shard, index, **facts))
    return rows


@dataclass(frozen=True)
class World:
    """The folders of a small project below `base`."""

    base: Path

    @property
    def images(self) -> Path:
        return self.base / "images"

    @property
    def lengths(self) -> Path:
        return self.base / "columns" / "lengths"

    @property
    def dedup(self) -> Path:
        return self.base / "columns" / "dedup"

    @property
    def shards(self) -> Path:
        return self.base / "shards"

    @property
    def folders(self) -> list[Path]:
        return [self.images, self.lengths, self.dedup, self.shards]

    def arguments(self) -> list[str]:
        columns_ = ["--columns", str(self.lengths), str(self.dedup)]
        return ["--images", str(self.images), *columns_, "--shards", str(self.shards)]

    def stages(self, *, where: str = "duplicate_of IS NULL") -> list[tuple[Stage, Path]]:
        """Everything that is made of the images, in its order."""
        dedup = dedup_stages(DedupConfig(input=str(self.images), buckets=2), str(self.dedup))
        return [
            (Lengths(LengthConfig(input=str(self.images))), self.lengths),
            *((stage, Path(folder)) for stage, folder in dedup),
            (self.pack(where=where), self.shards),
        ]

    def pack(self, *, where: str | None = "duplicate_of IS NULL", output: Path | None = None) -> Pack:
        folders = (str(self.lengths), str(self.dedup))
        config = PackConfig(input=str(self.images), columns=folders, where=where, group=2, seed=3)
        return Pack(with_book(config, str(output or self.shards)))

    def rerun(self) -> dict[str, int]:
        """Plans and runs everything after the images again; how many units each stage had to do."""
        done = {}
        for stage, folder in self.stages():
            done[folder.name] = len(make_plan(stage, str(folder)).todo)
            run_here(stage, folder)
        return done


def make_world(base: Path, *, shards: int = SHARDS) -> World:
    world = World(base)
    run_here(CountedImages({n: rows_of(n) for n in range(shards)}), world.images)
    for stage, folder in world.stages():
        run_here(stage, folder)
    return world


def picture_of(shard: int, index: int) -> bytes:
    return jpeg(77 if index == 1 else shard * 1000 + index)


def sha256_of(shard: int, index: int) -> str:
    return hashlib.sha256(picture_of(shard, index)).hexdigest()


def snapshot(*folders: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time of change and bytes."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def everything_in(*folders: Path) -> bytes:
    """All bytes of all files, temporary and pending ones included, tombstones excepted; of parquets all
    values and the metadata as well."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.name == "tombstones.jsonl":
                continue
            found.append(path.read_bytes())
            if path.suffix == ".parquet" or ".parquet" in path.name:
                table = pq.read_table(path)
                found.append(repr(table.to_pydict()).encode() + repr(pq.read_metadata(path)).encode())
    return b"\n".join(found)


def keys_in(folder: Path) -> set[str]:
    """All keys of the parquets of a folder."""
    return {k for path in sorted(folder.glob("*.parquet")) for k in pq.read_table(path)["key"].to_pylist()}
