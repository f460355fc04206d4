"""A large crawl of made-up sidecars: `python -m tests.jobs.scale_world 1000000 folder` measures the report.

Every column of curation but embeddings, 10,000 rows a shard, a long tail of hosts, synthetic captions for
one row in eight; pictures in the first shards only. Writes the world, then the report, and prints time,
memory and size.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.report import ReportConfig, report
from pipeline.shards.format import sample_key
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stage import Counts, Output
from tests.jobs.report_world import Made, picture

PER_SHARD = 10_000
WHERE = (
    "clip_score >= CASE WHEN language = 'en' THEN 0.28 ELSE 0.26 END AND unsafe < 0.5 AND "
    "near_duplicate_of IS NULL AND duplicate_of IS NULL AND quality_sharpness > 20 AND length(caption) >= 5"
)
LANGUAGES = np.array(["en", "de", "fr", "zh", "ru", "es", "ja", "pl", "it", "iw"])


def build(root: Path, rows: int, *, with_pictures: int = 4, per_shard: int = PER_SHARD) -> dict[str, object]:
    """Writes the world; the options of a report on it."""
    shards = range(-(-rows // per_shard))
    tar = _scene()

    def images(number: int, scratch: Path) -> Output:
        rng = np.random.default_rng(number)
        keys = [sample_key(number, i) for i in range(per_shard)]
        path = scratch / "x.tar"
        with ShardWriter(path) as writer:
            for key in keys if number < with_pictures else ():
                writer.write(Sample(key, {"jpg": tar}))
        fate = rng.random(per_shard)
        reason = np.where(fate < 0.05, "opt_out", np.where(fate < 0.2, "timeout", None))
        hosts = np.minimum(rng.zipf(1.3, per_shard), 10**9)
        table = pa.table(
            {
                "key": keys,
                "url": [f"https://host{h}.example/{number}/{i}.jpg" for i, h in enumerate(hosts)],
                "caption": [
                    f"a picture number {i} of shard {number}, as its page tells" for i in range(per_shard)
                ],
                "status": np.where(fate < 0.2, "failed_to_download", "success"),
                "reason": pa.array(reason, pa.string()),
                "error_message": pa.array(np.where(fate < 0.05, "robots.txt", None), pa.string()),
                "uid": [f"{number:016x}{i:016x}" for i in range(per_shard)],
                **{n: pa.array(np.full(per_shard, 256), pa.int32()) for n in ("width", "height")},
            }
        )
        good = int((fate >= 0.2).sum())
        lost = {"opt_out": int((fate < 0.05).sum())}
        lost["timeout"] = per_shard - good - lost["opt_out"]
        return Output(parts={".tar": path, ".parquet": table}, counts=Counts(per_shard, good, lost))

    def columns(number: int, scratch: Path) -> Output:
        good = np.flatnonzero(np.random.default_rng(number).random(per_shard) >= 0.2)
        return Output(parts={".parquet": _columns(number, good)}, counts=Counts(len(good), len(good)))

    Made("crawl", images, (".tar", ".parquet")).write(str(root / "images"), shards)
    Made("score", columns, (".parquet",)).write(str(root / "columns"), shards)
    one = pa.table({"key": ["x"]})
    packed = Made("pack", lambda n, s: Output(parts={".parquet": one}, counts=Counts(1, 1)), (".parquet",))
    packed.config = PackedConfig()  # type: ignore[assignment]
    packed.write(str(root / "shards"), range(1))
    return {
        "images": str(root / "images"),
        "columns": [str(root / "columns")],
        "shards": str(root / "shards"),
    }


@dataclass(frozen=True, kw_only=True)
class PackedConfig:
    """What the manifests of pack say of its rule."""

    where: str = WHERE
    preset: str | None = None


def _scene() -> bytes:
    return picture({"scene": ("circle", "red"), "index": 3})


def _columns(number: int, good: np.ndarray) -> pa.Table:
    rng, n = np.random.default_rng([7, number]), len(good)

    def some(values: np.ndarray, part: float, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=rng.random(n) >= part)

    winners = np.array([sample_key(number, int(i)) for i in rng.choice(good, n)], dtype=object)
    texts = [["a made-up caption", "another made-up caption"]] * n
    lists = [[0.5, 0.25]] * n
    rare = rng.random(n) >= 0.125
    return pa.table(
        {
            "key": [sample_key(number, int(i)) for i in good],
            "clip_score": some(rng.normal(0.28, 0.05, n), 0.98, pa.float32()),
            "unsafe": some(rng.random(n) ** 3, 0.99, pa.float32()),
            "quality_sharpness": some(rng.gamma(2, 40, n), 1, pa.float64()),
            "quality_entropy": some(rng.normal(6, 1, n), 1, pa.float32()),
            "language": some(LANGUAGES[rng.integers(0, 10, n)], 0.9, pa.string()),
            "duplicate_of": some(winners, 0.05, pa.string()),
            "near_duplicate_of": some(winners, 0.08, pa.string()),
            "near_distance": some(rng.integers(0, 12, n), 0.08, pa.int32()),
            "semantic_duplicate_of": some(winners, 0.1, pa.string()),
            "semantic_similarity": some(rng.uniform(0.9, 1, n), 0.1, pa.float32()),
            "contaminated_by": some(np.array(["coco/val_1.jpg"] * n, dtype=object), 0.001, pa.string()),
            "contamination_distance": some(rng.integers(0, 9, n), 0.001, pa.int32()),
            "synthetic_captions": pa.array([None if r else t for r, t in zip(rare, texts, strict=True)]),
            "synthetic_itm": pa.array([None if r else t for r, t in zip(rare, lists, strict=True)]),
            "synthetic_clip": pa.array([None if r else t for r, t in zip(rare, lists, strict=True)]),
            "web_itm": pa.array(rng.random(n), pa.float32(), mask=rare),
            "web_clip": pa.array(rng.normal(0.28, 0.05, n), pa.float32(), mask=rare),
        }
    )


def main() -> None:
    rows, root = int(sys.argv[1]), Path(sys.argv[2])
    if not root.exists():
        build(root, rows)
    options = {
        "images": str(root / "images"),
        "columns": [str(root / "columns")],
        "shards": str(root / "shards"),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.monotonic(), time.process_time()
    report(ReportConfig(**options, output=str(root / "report.html")))
    took, used = time.monotonic() - began, time.process_time() - cpu
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = (root / "report.html").stat().st_size
    print(
        f"{rows:,} rows: {took:.1f} s, {used:.1f} s CPU, {most / 1024:.0f} MB ({before / 1024:.0f} before), ",
        end="",
    )
    print(f"page {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
