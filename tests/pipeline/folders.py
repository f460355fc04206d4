"""Folders for the tests of score, dedup and pack: images and columns committed as the runner commits them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.commit import run_and_commit
from pipeline.planning import make_plan
from pipeline.settings import operational
from pipeline.shards.format import sample_key, sample_uid
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stage import Counts, Input, Output, Stage, Unit

#: the images' parquet as crawl writes it
CRAWL_SCHEMA = pa.schema(
    [("page_url", pa.string()), ("position", pa.int64()), ("caption", pa.string()), ("url", pa.string())]
    + [("key", pa.string()), ("status", pa.string()), ("error_message", pa.string())]
    + [(n, pa.int32()) for n in ("width", "height", "original_width", "original_height")]
    + [("exif", pa.string()), ("sha256", pa.string()), ("reason", pa.string())]
    + [("http_status", pa.int32()), ("uid", pa.string()), ("bytes", pa.int64())]
)


def jpeg(seed: int, size: int = 48) -> bytes:
    """A picture with something in it, given by its seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def crawled(shard: int, index: int, **changes: Any) -> dict[str, Any]:
    """One row of a crawl, a success unless `reason` is given; `picture` overrides the bytes in the tar (None:
    the tar has none)."""
    seed = changes.pop("seed", shard * 1000 + index)
    data = changes.pop("picture", jpeg(seed))
    row: dict[str, Any] = {
        "page_url": f"http://site.example/page{index}.html",
        "position": index,
        "caption": f"picture {index} of shard {shard}",
        "url": f"http://site.example/{shard}/{index}.jpg",
        "key": sample_key(shard, index),
        "status": "success",
        "width": 48,
        "height": 48,
        "original_width": 96,
        "original_height": 96,
        "exif": "{}",
        "sha256": hashlib.sha256(data or b"").hexdigest(),
        "http_status": 200,
        "bytes": len(data or b""),
    }
    row.update(changes)
    if row.get("reason"):
        missing = ("width", "height", "original_width", "original_height", "exif", "sha256", "http_status")
        row.update(dict.fromkeys(missing), status="failed_to_download", error_message=row["reason"])
    row["uid"] = sample_uid(row["caption"] or "", row["url"])
    return {**row, "picture": data}


@dataclass(frozen=True, kw_only=True)
class FixedConfig:
    """shards: rows (or tables) of each shard."""

    shards: dict[int, Any] = operational()
    mark: str = ""


class FixedImages(Stage):
    """A stand-in for the crawl: commits given rows."""

    name = "crawl"
    suffixes = (".tar", ".parquet")

    def __init__(self, shards: dict[int, list[dict[str, Any]]]) -> None:
        self.config = FixedConfig(shards=shards)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        return [Unit(number=n, source={"shard": n}, inputs=()) for n in sorted(self.config.shards)]

    def run(self, unit: Unit, scratch: Path) -> Output:
        rows = self.config.shards[unit.number]
        write_tar(scratch / "x.tar", rows)
        table = pa.Table.from_pylist(
            [{k: v for k, v in row.items() if k != "picture"} for row in rows], schema=CRAWL_SCHEMA
        )
        kept = sum(row["status"] == "success" for row in rows)
        counts = Counts(len(rows), kept, {"failed": len(rows) - kept})
        return Output(parts={".tar": scratch / "x.tar", ".parquet": table}, counts=counts)


class FixedColumns(Stage):
    """A stand-in for a score stage: commits given tables."""

    def __init__(self, shards: dict[int, pa.Table], name: str = "score") -> None:
        self.name = name  # type: ignore[misc]
        self.config = FixedConfig(shards=shards)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        tables = sorted(self.config.shards.items())
        marks = {n: hashlib.sha256(repr(t.to_pylist()).encode()).hexdigest() for n, t in tables}
        return [Unit(number=n, source={}, inputs=(Input(url="", fingerprint=marks[n]),)) for n, _ in tables]

    def run(self, unit: Unit, scratch: Path) -> Output:
        table = self.config.shards[unit.number]
        return Output(parts={".parquet": table}, counts=Counts(len(table), len(table)))


class FixedCandidates(FixedColumns):
    """A stand-in for discover: commits given tables as parts."""

    prefix = "part-"

    def __init__(self, parts: dict[int, pa.Table]) -> None:
        super().__init__(parts, "discover")


def run_here(stage: Stage, output: Path | str, *, overwrite: bool = False) -> Counts:
    """Plans, runs and commits in this process what the runner would on Ray; the counts of what was run."""
    total = Counts()
    plan = make_plan(stage, str(output), overwrite=overwrite)
    stage.start()
    for unit in plan.todo:
        record = run_and_commit(stage, unit, str(output), stale=plan.stale.get(unit.number, []))
        total.add(Counts.from_json(record["counts"]))
    stage.finish(str(output))
    return total


def write_tar(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with ShardWriter(path) as writer:
        for row in rows:
            if row["status"] == "success" and row["picture"] is not None:
                meta = {k: v for k, v in row.items() if k != "picture" and v is not None}
                members = {"jpg": row["picture"], "txt": (row["caption"] or "").encode()}
                writer.write(Sample(row["key"], {**members, "json": json.dumps(meta).encode()}))


def make_images(folder: Path, shards: dict[int, list[dict[str, Any]]]) -> Path:
    run_here(FixedImages(shards), folder, overwrite=True)
    return folder


def make_candidates(folder: Path, parts: dict[int, list[tuple[str | None, str | None]]]) -> Path:
    """parts: number -> (url, caption) of each candidate."""
    tables = {}
    for number, pairs in parts.items():
        urls, captions = [p[0] for p in pairs], [p[1] for p in pairs]
        facts = {"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string())}
        pages = pa.array([f"http://page.example/{number}/{i}" for i in range(len(pairs))])
        tables[number] = pa.table({**facts, "page_url": pages, "position": pa.array(range(len(pairs)))})
    run_here(FixedCandidates(tables), folder, overwrite=True)
    return folder


def make_columns(folder: Path, shards: dict[int, dict[str, list]], *, stage: str = "score") -> Path:
    """shards: number -> column -> values (floats become 32-bit, as scores are)."""
    tables = {}
    for number, columns in shards.items():
        arrays = {
            name: pa.array(v, pa.float32()) if any(isinstance(x, float) for x in v) else pa.array(v)
            for name, v in columns.items()
        }
        tables[number] = pa.table(arrays)
    run_here(FixedColumns(tables, stage), folder, overwrite=True)
    return folder


def make_foreign(folder: Path, shards: dict[int, list[dict[str, Any]]]) -> Path:
    """The same rows as img2dataset writes them: 5-digit names, 9-digit keys, no reason, no uid, no books."""
    folder.mkdir(parents=True)
    ours = ("reason", "uid", "http_status", "bytes", "picture", "page_url", "position")
    for number, rows in shards.items():
        rows = [{**row, "key": f"{number:05d}{int(row['key'][-4:]):04d}"} for row in rows]
        write_tar(folder / f"{number:05d}.tar", rows)
        table = pa.Table.from_pylist([{k: v for k, v in row.items() if k not in ours} for row in rows])
        pq.write_table(table, folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text(json.dumps({"count": len(rows)}))
    return folder


def read_tar(path: Path) -> dict[str, dict[str, bytes]]:
    """key -> members, in the order of the tar."""
    from pipeline.shards.reader import iter_samples

    return {sample.key: sample.members for sample in iter_samples(str(path))}
