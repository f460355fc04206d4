"""A small crawl with all columns of curation, packed by a rule of many thresholds, for the report's tests.

Four shards: scores in 32 and 64 bits with nulls, thresholds by language, clusters of duplicates, pictures of
a benchmark, synthetic captions, opt-outs. `build(folder)` writes it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.shards.format import sample_key, sample_uid
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stage import Counts, Output
from pipeline.stages.pack import Pack, PackConfig
from pipeline.stages.pack.captions import CaptionOptions
from tests.jobs.report_world import COLOURS, HOSTILE, SHAPES, Made, picture
from tests.pipeline.folders import run_here

SHARDS, PER_SHARD = 4, 90
WHERE = (
    "clip_score >= CASE WHEN language = 'en' THEN 0.28 ELSE 0.26 END AND unsafe < 0.5 AND "
    "near_duplicate_of IS NULL AND duplicate_of IS NULL AND length(caption) >= 5"
)
CAPTIONS = CaptionOptions(policy="mix", weights={"web": 1.0, "synthetic": 2.0})
LANGUAGES = ("en", "en", "en", "de", "de", "fr", "zh", None)
KINDS = ("clip", "quality", "safety", "language", "dedup", "near", "semantic", "contamination", "caption")
OPT_OUTS = {"robots.txt": 5, "X-Robots-Tag": 3, "tdmrep.json": 2}
FLOAT_LISTS = ("synthetic_itm", "synthetic_clip", "synthetic_clip2")
SCHEMAS: dict[str, list[tuple[str, pa.DataType]]] = {
    "clip": [("clip_score", pa.float32())],
    "quality": [("quality_sharpness", pa.float64()), ("quality_side", pa.int32())],
    "safety": [("unsafe", pa.float32()), ("unsafe_label", pa.string())],
    "language": [("language", pa.string())],
    "dedup": [("duplicate_of", pa.string()), ("duplicate_reason", pa.string())],
    "near": [("near_duplicate_of", pa.string()), ("near_distance", pa.int32())],
    "semantic": [
        ("semantic_duplicate_of", pa.string()),
        ("semantic_similarity", pa.float32()),
        ("semantic_cluster", pa.int32()),
    ],
    "contamination": [("contaminated_by", pa.string()), ("contamination_distance", pa.int32())],
    "caption": [
        ("synthetic_captions", pa.list_(pa.string())),
        *((name, pa.list_(pa.float32())) for name in FLOAT_LISTS),
        ("web_itm", pa.float32()),
        ("web_clip", pa.float32()),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Curated:
    """Where everything lies, and its rows."""

    root: Path
    rows: list[dict[str, Any]]
    folders: tuple[str, ...]

    def options(self, output: Path) -> dict[str, Any]:
        """The options of a report on all of it."""
        at = {name: str(self.root / name) for name in ("images", "shards")}
        return {**at, "columns": list(self.folders), "output": str(output)}

    @property
    def pictures(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] == "success"]


def build(root: Path, *, where: str = WHERE) -> Curated:
    """Writes the world below `root`."""
    rows = _rows(random.Random(11))
    by_shard = [[r for r in rows if r["shard"] == n] for n in range(SHARDS)]

    def images(number: int, scratch: Path) -> Output:
        mine, path = by_shard[number], scratch / "shard.tar"
        good = [r for r in mine if r["status"] == "success"]
        with ShardWriter(path) as shard:
            for row in good:
                members = {"jpg": picture(row), "txt": row["caption"].encode()}
                shard.write(Sample(row["key"], members))
        lost = sum(OPT_OUTS.values())
        counts = Counts(len(mine), len(good), {"opt_out": lost})
        return Output(parts={".tar": path, ".parquet": _table(mine)}, counts=counts)

    Made("crawl", images, (".tar", ".parquet")).write(str(root / "images"), range(SHARDS))
    for kind in KINDS:

        def column(number: int, scratch: Path, kind: str = kind) -> Output:
            good = [r for r in by_shard[number] if r["status"] == "success"]
            arrays = {name: pa.array([r[name] for r in good], type_) for name, type_ in SCHEMAS[kind]}
            table = pa.table({"key": [r["key"] for r in good], **arrays})
            return Output(parts={".parquet": table}, counts=Counts(len(good), len(good)))

        Made("score", column, (".parquet",)).write(str(root / "columns" / kind), range(SHARDS))
    folders = tuple(str(root / "columns" / kind) for kind in KINDS)
    world = Curated(root=root, rows=rows, folders=folders)
    repack(world, root / "shards", where, columns=folders, captions=CAPTIONS)
    return world


def repack(
    world: Curated,
    output: Path,
    where: str,
    *,
    columns: tuple[str, ...],
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
) -> str:
    """Packs the world by a rule; the output folder."""
    config = PackConfig(
        input=str(world.root / "images"), columns=columns, where=where, group=2, captions=captions
    )
    run_here(Pack(config), output)
    return str(output)


def _rows(rng: random.Random) -> list[dict[str, Any]]:
    fates = [words for words, n in OPT_OUTS.items() for _ in range(n)]
    rows: list[dict[str, Any]] = []
    for shard in range(SHARDS):
        mine = [*fates, *[""] * (PER_SHARD - len(fates))]
        rng.shuffle(mine)
        rows += [_row(rng, shard, index, fate) for index, fate in enumerate(mine)]
    _mark(rng, [r for r in rows if r["status"] == "success"])
    return rows


def _row(rng: random.Random, shard: int, index: int, fate: str) -> dict[str, Any]:
    scene = rng.choice(SHAPES), rng.choice(list(COLOURS))
    language = rng.choice(LANGUAGES)
    site = rng.choice(
        ("shop.example", "www.news.example", "blog.example:8080", f"small{rng.randrange(40)}.example")
    )
    row: dict[str, Any] = {
        "shard": shard,
        "index": index,
        "key": sample_key(shard, index),
        "url": f"https://{site}/{shard}/{index}.jpg",
        "caption": rng.choice((f"a {scene[1]} {scene[0]} on a pale ground", f"IMG {index}", "sale")),
        "scene": scene,
        "status": "failed_to_download" if fate else "success",
        "reason": "opt_out" if fate else None,
        "error_message": fate or None,
        **{name: None for kind in KINDS for name, _ in SCHEMAS[kind]},
        "clip_score": None if rng.random() < 0.04 else rng.gauss(0.29, 0.05),
        "quality_sharpness": None if rng.random() < 0.1 else rng.gammavariate(2, 40),
        "quality_side": rng.randrange(100, 2000),
        "unsafe": None if rng.random() < 0.05 else rng.random() ** 3,
        "language": language,
    }
    if rng.random() < 0.5:
        texts = [
            f"a {scene[1]} {scene[0]}",
            f"the {scene[0]} is {rng.choice(list(COLOURS))}",
            "a drawing of a shape",
        ]
        row |= {
            "synthetic_captions": texts,
            "synthetic_itm": [rng.random() for _ in texts],
            "synthetic_clip": [rng.gauss(0.3, 0.04) for _ in texts],
            "synthetic_clip2": [rng.gauss(0.3, 0.04), None, rng.gauss(0.3, 0.04)],
            "web_itm": rng.random(),
            "web_clip": rng.gauss(0.28, 0.05),
        }
    return row


def _mark(rng: random.Random, good: list[dict[str, Any]]) -> None:
    """Clusters, hits of a benchmark, hostile texts."""
    winner, other = good[3], good[4]
    for row in good[10:60:5]:
        row.update(near_duplicate_of=winner["key"], near_distance=rng.randrange(0, 12), scene=winner["scene"])
    for row in good[61:70:3]:
        row.update(duplicate_of=winner["key"], duplicate_reason="image", scene=winner["scene"])
    for row in good[100:140:4]:
        row.update(
            semantic_duplicate_of=other["key"], semantic_similarity=rng.uniform(0.9, 0.99), semantic_cluster=7
        )
    for i, row in enumerate(good[150:156]):
        row.update(contaminated_by=f"coco/val2014_{i}</script>.jpg", contamination_distance=i)
    for row in (winner, good[12], good[102], good[151], good[0]):
        row["caption"] = HOSTILE + "\u2028<!-- </script>"
    good[0].update(synthetic_captions=[HOSTILE], clip_score=0.281, unsafe=0.1)
    for name in FLOAT_LISTS:
        good[0][name] = [0.5]


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    good = [row["status"] == "success" for row in rows]
    sizes = {n: pa.array([240 if g else None for g in good], pa.int32()) for n in ("width", "height")}
    texts = ("url", "caption", "key", "status", "error_message", "reason")
    return pa.table(
        {
            **{name: pa.array([r[name] for r in rows], pa.string()) for name in texts},
            **sizes,
            "uid": [sample_uid(r["caption"], r["url"]) for r in rows],
        }
    )
