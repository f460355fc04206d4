"""Resolve, the second stage of method near: in one bucket of band values, who looks like whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline import inputs
from pipeline.errors import InputError
from pipeline.inputs import Shard
from pipeline.ranges import read_between, write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.near.entries import ENTRIES
from pipeline.stages.dedup.near.pairs import find_losers
from pipeline.stages.dedup.parts import folder_input, read_all

#: the columns of ENTRIES that are looked at within a bucket
COMPARED = ["band", "value", "whole", "hash", "key"]


@dataclass(frozen=True, kw_only=True)
class NearResolveConfig:
    """input: the folder of sketches. buckets: as they were made with. distance, most: as NearOptions have."""

    input: str = operational("")
    buckets: int = 16
    distance: int = 16
    most: int = 4096


class NearResolve(Stage):
    """All sketches -> for one bucket a table of losers: key, of, distance."""

    name = "dedup-near-resolve"
    redo_on_new_inputs = True

    def __init__(self, config: NearResolveConfig) -> None:
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
        losers, skipped = find_losers(entries, distance=self.config.distance, most=self.config.most)
        return Output(
            parts={".parquet": write_sorted(losers, scratch / "losers")},
            counts=Counts(len(entries), len(entries)),
            notes={"losers": len(losers), "not_compared_with_all": skipped},
        )
