"""Sketch, the first stage of method near: the hashes of every picture of a shard under the values of their
bands, sorted by bucket. Pictures of a shard with exactly the same hashes (blank ones, say) are one entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError
from pipeline.ranges import write_sorted
from pipeline.settings import location
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.hashes import INNER, LONG, hash_folder, read_outlines
from pipeline.stages.dedup.near.entries import ROWS, make_entries


@dataclass(frozen=True, kw_only=True)
class NearSketchConfig:
    """As DedupConfig and NearOptions have them."""

    input: str = location("")
    columns: list[str] | str = location(factory=list)
    bands: int = 4
    band_bits: int = 24
    buckets: int = 16


class NearSketch(Stage):
    """Hash column of a shard -> entries, and its rows."""

    name = "dedup-near-sketch"
    suffixes = (".parquet", "_keys.parquet")

    def __init__(self, config: NearSketchConfig) -> None:
        """Raises ConfigError for a number of buckets that cannot be."""
        if not 1 <= config.buckets <= 100_000:
            raise ConfigError(f"buckets {config.buckets} must be in 1..100000")
        self.config = config

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        found = inputs.shards(self.config.input, ".tar")
        hashes = hash_folder(self.config.columns, "near")
        return [
            Unit(number=s.number, source={"shard": s.number}, inputs=(hashes.shard(s.number),)) for s in found
        ]

    def run(self, unit: Unit, scratch: Path) -> Output:
        url = unit.inputs[0].url
        table = columns.read_column(url, {LONG, INNER})
        keys = table["key"].combine_chunks()
        hashes, has = read_outlines(table, url)
        hashed = np.nonzero(has)[0]
        first = same_as(hashes, pc.rank(keys).to_numpy()[hashed].astype(np.int64))
        own = first == np.arange(len(hashed))
        entries = make_entries(
            keys.take(pa.array(hashed[own])),
            hashes[own],
            bands=self.config.bands,
            band_bits=self.config.band_bits,
            buckets=self.config.buckets,
        )
        of = np.full(len(keys), -1, np.int64)
        of[hashed] = np.where(own, -1, hashed[first])
        like = keys.take(pa.array(of, mask=of < 0))
        rows = pa.table([keys, like, pa.array(has)], schema=ROWS)
        parts = {".parquet": write_sorted(entries, scratch / "entries"), "_keys.parquet": rows}
        notes = {"entries": len(entries), "same_hashes": int((~own).sum())}
        return Output(parts=parts, counts=Counts(len(keys), len(keys)), notes=notes)


def same_as(hashes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """int64 [n]: for each picture the place of the one with the same hashes and the smallest rank.

    Args:
        hashes: uint64 [n, ...].
        ranks: int64 [n], all different.
    """
    if not len(hashes):
        return np.empty(0, np.int64)
    flat = np.ascontiguousarray(hashes.reshape(len(hashes), -1))
    _, group = np.unique(flat.view(f"V{8 * flat.shape[1]}").ravel(), return_inverse=True)
    group = group.ravel()
    order = np.argsort(ranks)[::-1]
    smallest = np.empty(group.max() + 1, np.int64)
    smallest[group[order]] = order  # the last one written has the smallest rank
    return smallest[group]
