"""Resolve, the second stage of method exact: in one bucket of hashes, who is a duplicate of whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ranges import write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Unit
from pipeline.stages.dedup.exact.entries import ENTRIES, LOSERS
from pipeline.stages.dedup.whole import BucketStage

#: the columns of ENTRIES that are looked at within a bucket
COMPARED = ["kind", "hash", "key"]


@dataclass(frozen=True, kw_only=True)
class ResolveConfig:
    """input: the folder of sketches. buckets: as they were made with."""

    input: str = operational("")
    buckets: int = 16


class Resolve(BucketStage):
    """All sketches -> for one bucket a table of losers: key, kind, of."""

    name = "dedup-resolve"
    entries_schema, compared = ENTRIES, COMPARED

    def __init__(self, config: ResolveConfig) -> None:
        self.config = config

    def run(self, unit: Unit, scratch: Path) -> Output:
        entries = self.entries(unit)
        losers = find_losers(entries)
        counts = Counts(len(entries), len(entries))
        return Output(
            parts={".parquet": write_sorted(losers, scratch / "losers")},
            counts=counts,
            notes={"losers": len(losers)},
        )


def find_losers(entries: pa.Table) -> pa.Table:
    """Entries whose (kind, hash) a smaller key has too, each with the smallest such key; sorted by key."""
    if not len(entries):
        return LOSERS.empty_table()
    entries = entries.sort_by([("kind", "ascending"), ("hash", "ascending"), ("key", "ascending")])
    same = np.ones(len(entries), bool)
    same[0] = False
    for name in ("kind", "hash"):
        values = entries[name].combine_chunks()
        same[1:] &= pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    # the place of the first of each run of equal hashes, at every place of the run
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(entries))))
    winners = entries["key"].take(pa.array(first))
    table = pa.table([entries["key"], entries["kind"], winners], schema=LOSERS)
    return table.filter(pa.array(same)).sort_by([("key", "ascending"), ("kind", "ascending")])
