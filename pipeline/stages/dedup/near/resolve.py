"""Resolve, the second stage of method near: in one bucket of band values, who looks like whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.ranges import write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Unit
from pipeline.stages.dedup.near.entries import ENTRIES
from pipeline.stages.dedup.near.pairs import find_losers
from pipeline.stages.dedup.whole import BucketStage

#: the columns of ENTRIES that are looked at within a bucket
COMPARED = ["band", "value", "whole", "hash", "key"]


@dataclass(frozen=True, kw_only=True)
class NearResolveConfig:
    """input: the folder of sketches. buckets: as they were made with. distance, most: as NearOptions have."""

    input: str = operational("")
    buckets: int = 16
    distance: int = 16
    most: int = 4096


class NearResolve(BucketStage):
    """All sketches -> for one bucket a table of losers: key, of, distance."""

    name = "dedup-near-resolve"
    entries_schema, compared = ENTRIES, COMPARED

    def __init__(self, config: NearResolveConfig) -> None:
        self.config = config

    def run(self, unit: Unit, scratch: Path) -> Output:
        entries = self.entries(unit)
        losers, skipped = find_losers(entries, distance=self.config.distance, most=self.config.most)
        return Output(
            parts={".parquet": write_sorted(losers, scratch / "losers")},
            counts=Counts(len(entries), len(entries)),
            notes={"losers": len(losers), "not_compared_with_all": skipped},
        )
