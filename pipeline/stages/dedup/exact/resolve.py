"""Resolve, the second stage of method exact: in one bucket of hashes, who is a duplicate of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import inputs
from pipeline.errors import InputError
from pipeline.inputs import Shard
from pipeline.ranges import read_between, write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.exact.entries import ENTRIES, LOSERS
from pipeline.stages.dedup.parts import folder_input, read_all

#: the columns of ENTRIES that are looked at within a bucket
COMPARED = ["kind", "hash", "key"]


@dataclass(frozen=True, kw_only=True)
class ResolveConfig:
    """input: the folder of sketches. buckets: as they were made with."""

    input: str = operational("")
    buckets: int = 16


class Resolve(Stage):
    """All sketches -> for one bucket a table of losers: key, kind, of."""

    name = "dedup-resolve"
    redo_on_new_inputs = True

    def __init__(self, config: ResolveConfig) -> None:
        self.config = config
        self._sketches: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = folder_input(self.config.input, inputs.shards(self.config.input, ".parquet"))
        return [Unit(number=b, source={"bucket": b}, inputs=(whole,)) for b in range(self.config.buckets)]

    def start(self) -> None:
        self._sketches = inputs.shards(self.config.input, ".parquet")

    def run(self, unit: Unit, scratch: Path) -> Output:
        if folder_input(self.config.input, self._sketches) != unit.inputs[0]:
            raise InputError(
                f"{self.config.input}: sketches changed since the run was planned; run dedup again"
            )
        bucket = unit.source["bucket"]
        parts = read_all(
            self._sketches, lambda url: read_between(url, "bucket", bucket, bucket, names=COMPARED)
        )
        entries = pa.concat_tables([ENTRIES.empty_table().select(COMPARED), *parts]).combine_chunks()
        del parts
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
