"""Embeddings for the tests of dedup's method semantic, and a plain definition of what it is to find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import inputs
from pipeline.shards.format import sample_key
from pipeline.stage import Input, Unit
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.dedup.semantic import vectors
from pipeline.stages.dedup.semantic.config import SemanticOptions
from tests.pipeline.folders import FixedColumns, crawled, make_images, run_here

COLUMN = "image_embedding"


def embedding_column(rows: Sequence[Any], dimensions: int) -> pa.Array:
    """float16 lists as `score --kind embedding` writes them; None for a row without one."""
    values = [None if row is None else np.asarray(row, np.float16) for row in rows]
    return pa.array(values, pa.list_(pa.float16(), dimensions))


class Embedded(FixedColumns):
    """A stand-in for `score --kind embedding`: made from the shards of images."""

    def __init__(self, shards: dict[int, pa.Table], images: Path) -> None:
        super().__init__(shards)
        self._images = images

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        images = {s.number: s.input for s in inputs.shards(str(self._images), ".tar")}
        return [
            Unit(
                number=u.number,
                source={"shard": u.number},
                inputs=(images[u.number], Input(url=f"{u.number:08d}", fingerprint=u.inputs[0].fingerprint)),
            )
            for u in super().plan(planned)
        ]


def make_world(base: Path, shards: dict[int, Sequence[Any]], dimensions: int) -> tuple[Path, Path]:
    """Images, and the embeddings given for each shard; returns both folders."""
    make_images(
        base / "images",
        {n: [crawled(n, i, picture=b"x") for i in range(len(rows))] for n, rows in shards.items()},
    )
    tables = {
        n: pa.table(
            {
                "key": [sample_key(n, i) for i in range(len(rows))],
                COLUMN: embedding_column(rows, dimensions),
            }
        )
        for n, rows in shards.items()
    }
    run_here(Embedded(tables, base / "images"), base / "embedding", overwrite=True)
    return base / "images", base / "embedding"


def run_semantic(
    images: Path,
    columns: Path | list[str],
    output: Path,
    *,
    buckets: int = 3,
    overwrite: bool = False,
    **options: Any,
) -> list[Any]:
    config = DedupConfig(
        input=str(images),
        method="semantic",
        columns=columns if isinstance(columns, list) else [str(columns)],
        buckets=buckets,
        semantic=SemanticOptions(**options),
    )
    return [run_here(s, folder, overwrite=overwrite) for s, folder in dedup_stages(config, str(output))]


def marks(output: Path) -> dict[str, dict[str, Any]]:
    """key -> its row of the columns."""
    table = pa.concat_tables(pq.read_table(p) for p in sorted(output.glob("*.parquet")))
    return {row["key"]: row for row in table.to_pylist()}


def all_bytes(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*.parquet"))}


def whole_numbers(row: Any) -> list[int]:
    """The definition of a code, in Python's own numbers: s x / |x|, rounded."""
    values = [float(v) for v in np.asarray(row, np.float16)]
    length = sum(v * v for v in values) ** 0.5
    return [round(vectors.scale(len(values)) * v / length) for v in values]


def expected(rows: dict[str, Any], eps: float) -> dict[str, tuple[str | None, float | None]]:
    """Every sample with every one before it, one by one: key -> (duplicate of, similarity), for rows
    of one cluster, in the order in which they are looked at."""
    codes = {key: whole_numbers(row) for key, row in rows.items()}
    found: dict[str, tuple[str | None, float | None]] = {}
    seen: list[str] = []
    for key, code in codes.items():
        best: tuple[float, str] | None = None
        for other in seen:
            cosine = 2.0 if codes[other] == code else _cosine(code, codes[other])
            if best is None or cosine > best[0]:
                best = (cosine, other)
        seen.append(key)
        if best is None:
            found[key] = (None, None)
        else:
            similarity = min(best[0], 1.0)
            found[key] = (best[1] if similarity > 1 - eps else None, similarity)
    return found


def _cosine(one: list[int], other: list[int]) -> float:
    """As float32 has it, from an exact scalar product."""
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    inverse = [np.float32(1 / sum(a * a for a in v) ** 0.5) for v in (other, one)]
    return float(np.float32(dot) * inverse[0] * inverse[1])


def planted(
    seed: int, *, originals: int, copies: int, dimensions: int, cosine: float
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors far from each other and copies at a given cosine to one of them: (vectors, of). `of`
    is -1 for originals; copies come last."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((originals, dimensions))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    of = rng.integers(0, originals, copies)
    aside = rng.standard_normal((copies, dimensions))
    aside -= (aside * first[of]).sum(1, keepdims=True) * first[of]
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    near = cosine * first[of] + (1 - cosine**2) ** 0.5 * aside
    return np.concatenate([first, near]), np.concatenate([np.full(originals, -1), of])
