"""A small chain's output with known numbers, written by the project's own functions, for the report's tests.

480 image tags, 420 candidates, 300 pictures in three shards, clip scores, duplicates, wrong captions among
them, pack's real stage over all of it, one training run. `build(folder)` writes it in about two seconds.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline import inputs, storage
from pipeline.commit import run_and_commit
from pipeline.shards.format import sample_key, sample_uid
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.pack import Pack, PackConfig

HOSTILE = '<script>document.title = "owned"</script><img src=x onerror="document.title=1"> a red square'
SHARDS, PER_SHARD = 3, 140
REASONS = {"timeout": 12, "http_status": 18, "too_small": 7, "dns": 3}  # a shard
WHERE = "clip_score >= 0.25 AND duplicate_of IS NULL"
COLOURS = {"red": "#d6523f", "green": "#4f9d69", "blue": "#3f6fb5", "yellow": "#e3b341", "violet": "#8461a8"}
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True, kw_only=True)
class MadeConfig:
    note: str = "made for a test"


class Made(Stage):
    """A stage whose output is given, so that manifests and files are written as all stages write them."""

    def __init__(
        self, name: str, make: Callable[[int, Path], Output], suffixes: tuple[str, ...], prefix: str = ""
    ):
        self.name, self.suffixes, self.prefix = name, suffixes, prefix  # type: ignore[misc]
        self.make, self.config = make, MadeConfig()

    def plan(self, planned: Any) -> list[Unit]:
        return []

    def run(self, unit: Unit, scratch: Path) -> Output:
        return self.make(unit.number, scratch)

    def write(self, output: str, numbers: range) -> None:
        for number in numbers:
            run_and_commit(self, Unit(number=number, source={"n": number}, inputs=()), output)
        config = f"stage: {self.name}\nproxy: http://user:secret@proxy.example:3128/?token=secret\n"
        storage.write_bytes(f"{output}/_pairmill/config.yaml", config.encode())


@dataclass(frozen=True, kw_only=True)
class World:
    """Where everything lies, and what is true of it."""

    root: Path
    rows: list[dict[str, Any]]

    def options(self, output: Path) -> dict[str, Any]:
        """All options of the report."""
        at = {name: str(self.root / name) for name in ("candidates", "images", "shards")}
        at["truth"] = str(self.root / "truth.parquet")
        columns = [str(self.root / "columns" / kind) for kind in ("clip", "dedup")]
        runs = [str(self.root / "runs" / "albef")]
        return {**at, "columns": columns, "runs": runs, "output": str(output)}

    @property
    def pictures(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] == "success"]

    @property
    def kept(self) -> list[dict[str, Any]]:
        return [r for r in self.pictures if r["score"] >= 0.25 and r["duplicate_of"] is None]


def build(root: Path, *, pack: bool = True) -> World:
    """Writes the world below `root`."""
    rows = _rows(random.Random(7))
    world = World(root=root, rows=rows)
    by_shard = [[r for r in rows if r["shard"] == n] for n in range(SHARDS)]

    def candidates(number: int, scratch: Path) -> Output:
        table = pa.table({"url": [r["url"] for r in by_shard[number]]})
        dropped = {"caption_too_short": 11, "url_not_http": 6, "boilerplate": 3}
        return Output(parts={".parquet": table}, counts=Counts(PER_SHARD + 20, PER_SHARD, dropped))

    def images(number: int, scratch: Path) -> Output:
        mine = by_shard[number]
        path = scratch / "shard.tar"
        with ShardWriter(path) as shard:
            for row in mine:
                if row["status"] == "success":
                    shard.write(Sample(row["key"], {"jpg": picture(row), "txt": row["caption"].encode()}))
        counts = Counts(len(mine), PER_SHARD - sum(REASONS.values()), REASONS)
        return Output(parts={".tar": path, ".parquet": _images_table(mine)}, counts=counts)

    def clip(number: int, scratch: Path) -> Output:
        return _column(by_shard[number], {"clip_score": "score"}, pa.float32())

    def dedup(number: int, scratch: Path) -> Output:
        names = {"duplicate_of": "duplicate_of", "duplicate_reason": "duplicate_reason"}
        output = _column(by_shard[number], names, pa.string())
        marked = sum(r["duplicate_of"] is not None for r in by_shard[number])
        taken = output.counts.taken
        counts = Counts(taken, taken - marked, {"duplicate_url_caption": marked})
        return Output(parts=output.parts, counts=counts)

    Made("discover", candidates, (".parquet",), "part-").write(str(root / "candidates"), range(SHARDS))
    Made("crawl", images, (".tar", ".parquet")).write(str(root / "images"), range(SHARDS))
    Made("score", clip, (".parquet",)).write(str(root / "columns" / "clip"), range(SHARDS))
    Made("dedup", dedup, (".parquet",)).write(str(root / "columns" / "dedup"), range(SHARDS))
    if pack:
        _pack(root)
    _truth(rows, root / "truth.parquet")
    _run(root / "runs" / "albef")
    return world


def picture(row: dict[str, Any]) -> bytes:
    """A JPEG of a shape on a ground; what the caption tells, unless the caption is wrong."""
    shape, colour = row["scene"]
    image = Image.new("RGB", (240, 200 + row["index"] % 80), "#eee8dc")
    draw = ImageDraw.Draw(image)
    box = (60, 50, 180, 170)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(120, 45), (185, 170), (55, 170)], fill=COLOURS[colour])
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=88)
    return sink.getvalue()


def _rows(rng: random.Random) -> list[dict[str, Any]]:
    failures = [reason for reason, n in REASONS.items() for _ in range(n)]
    rows = []
    for shard in range(SHARDS):
        fates = [*failures, *[""] * (PER_SHARD - len(failures))]
        rng.shuffle(fates)
        for index, fate in enumerate(fates):
            scene = rng.choice(SHAPES), rng.choice(list(COLOURS))
            wrong = rng.random() < 0.2
            told = (rng.choice(SHAPES), rng.choice(list(COLOURS))) if wrong else scene
            wrong = told != scene
            rows.append(
                {
                    "shard": shard,
                    "index": index,
                    "key": sample_key(shard, index),
                    "url": f"http://pictures.example/{shard}/{index}.jpg",
                    "page_url": f"http://pictures.example/page{index // 10}.html",
                    "caption": f"a {told[1]} {told[0]} on a pale ground",
                    "scene": scene,
                    "wrong": wrong,
                    "status": "failed_to_download" if fate else "success",
                    "reason": fate or None,
                    "score": rng.gauss(0.17 if wrong else 0.33, 0.045),
                    "duplicate_of": None,
                    "duplicate_reason": None,
                }
            )
    _plant(rows)
    return rows


def _plant(rows: list[dict[str, Any]]) -> None:
    """Hostile texts at the top of what is kept and of what failed, and some duplicates."""
    pictures = [r for r in rows if r["status"] == "success"]
    for row in pictures[:8]:
        row.update(score=0.4, wrong=False)
    pictures[0]["caption"] = HOSTILE
    pictures[1].update(caption="turned \u202egnp.exe\u202c around\x07\x1b[31m", url="javascript:alert(1)")
    pictures[2]["caption"] = "‏صورة مربع أحمر" + " و" * 400
    pictures[3]["url"] = 'http://pictures.example/"><script>alert(1)</script>'
    for row in pictures[20:170:10]:
        row.update(duplicate_of=pictures[5]["key"], duplicate_reason="url_caption", score=0.35)
    for row in rows:
        if row["reason"] == "dns":
            row["caption"] = HOSTILE


def _images_table(rows: list[dict[str, Any]]) -> pa.Table:
    good = [row["status"] == "success" for row in rows]
    return pa.table(
        {
            **{name: [r[name] for r in rows] for name in ("url", "caption", "page_url", "key", "status")},
            "error_message": pa.array([r["reason"] for r in rows], pa.string()),
            "width": pa.array([240 if g else None for g in good], pa.int32()),
            "height": pa.array([240 if g else None for g in good], pa.int32()),
            "original_width": pa.array([640 if g else None for g in good], pa.int32()),
            "original_height": pa.array([480 if g else None for g in good], pa.int32()),
            "reason": pa.array([r["reason"] for r in rows], pa.string()),
            "http_status": pa.array(
                [404 if r["reason"] == "http_status" else None for r in rows], pa.int32()
            ),
            "uid": [sample_uid(r["caption"], r["url"]) for r in rows],
        }
    )


def _column(rows: list[dict[str, Any]], names: dict[str, str], kind: pa.DataType) -> Output:
    good = [r for r in rows if r["status"] == "success"]
    columns = {column: pa.array([r[field] for r in good], kind) for column, field in names.items()}
    table = pa.table({"key": [r["key"] for r in good], **columns})
    return Output(parts={".parquet": table}, counts=Counts(len(good), len(good)))


def _pack(root: Path) -> None:
    columns = tuple(str(root / "columns" / kind) for kind in ("clip", "dedup"))
    stage = Pack(PackConfig(input=str(root / "images"), columns=columns, where=WHERE, group=2))
    for unit in stage.plan([]):
        run_and_commit(stage, unit, str(root / "shards"))
    assert inputs.shards(str(root / "shards"), ".tar")


def _truth(rows: list[dict[str, Any]], path: Path) -> None:
    table = pa.table(
        {
            "url": [r["url"] for r in rows],
            "caption": [r["caption"] for r in rows],
            "is_wrong": [r["wrong"] for r in rows],
        }
    )
    pq.write_table(table, path)


def _run(folder: Path) -> None:
    (folder / "eval").mkdir(parents=True)
    rng = random.Random(3)
    lines = []
    for step in range(10, 1501, 10):
        fall = math.exp(-step / 400)
        itc, itm, mlm = 0.6 + 3.4 * fall, 0.25 + 0.45 * fall, 1.1 + 5.2 * fall
        itc, itm, mlm = (v * (1 + rng.gauss(0, 0.05)) for v in (itc, itm, mlm))
        lr = 3e-4 * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * step / 1500))
        row = {"step": step, "loss": itc + itm + mlm, "itc": itc, "itm": itm, "mlm": mlm, "lr": lr}
        lines.append(json.dumps({**row, "samples_per_s": 212 + rng.gauss(0, 9), "seconds": step / 3}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1510, "lo')
    semantic = {"recipe": "albef", "size": "tiny", "steps": 1500, "batch_size": 64}
    (folder / "run.json").write_text(json.dumps({"semantic": semantic, "zero_stage": 2, "state": "finished"}))
    (folder / "config.yaml").write_text("recipe: albef\nsize: tiny\nsteps: 1500\nzero:\n  stage: 2\n")
    retrieval = {
        "pool": {"pictures": 1000, "captions": 1000},
        "top_k": 16,
        "pairs_matched": 29000,
        "reranked": True,
        "tr": {"r1": 0.121, "r5": 0.334, "r10": 0.471},
        "ir": {"r1": 0.113, "r5": 0.322, "r10": 0.459},
        "itc": {"tr": {"r1": 0.09, "r5": 0.29, "r10": 0.43}, "ir": {"r1": 0.08, "r5": 0.28, "r10": 0.42}},
        "chance": {"r1": 0.001, "r5": 0.005, "r10": 0.01},
        "seconds": 41.2,
    }
    mlm_result = {
        "captions": 1000,
        "captions_without_word": 12,
        "seeds": [0, 1, 2],
        "words_masked": {"all": 2964, "colour": 1010, "object": 1954},
        "accuracy": {
            "with_picture": {"all": {"mean": 0.58}, "colour": {"mean": 0.81}, "object": {"mean": 0.46}},
            "withheld": {"all": {"mean": 0.21}, "colour": {"mean": 0.22}, "object": {"mean": 0.2}},
            "shuffled": {"all": {"mean": 0.16}, "colour": {"mean": 0.14}, "object": {"mean": 0.17}},
        },
        "gain_of_picture": 0.37,
        "seconds": 12.9,
    }
    (folder / "eval" / "retrieval.json").write_text(json.dumps(retrieval))
    (folder / "eval" / "config.yaml").write_text("model: runs/albef\npool: 1000\n")
    (folder / "eval" / "evaluation.json").write_text(json.dumps({"options": [1000], "words": {}}))
    (folder / "eval" / "mlm.json").write_text(json.dumps(mlm_result))


def truth_counts(rows: list[dict[str, Any]]) -> Counter[bool]:
    """How many captions of these rows are wrong, and how many right."""
    return Counter(bool(row["wrong"]) for row in rows)
