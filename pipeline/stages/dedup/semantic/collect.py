"""Collect, the fourth stage of method semantic: what was said of the samples of a group of shards, out of all
buckets. So the last stage opens one file a shard, and not one a shard and bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard
from pipeline.ranges import read_between, write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.parts import read_all
from pipeline.stages.dedup.semantic.resolve import RESOLVED


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """assigned, resolved: the folders of the stages before. buckets: as they were made with."""

    assigned: str = operational("")
    resolved: str = operational("")
    buckets: int


class Collect(Stage):
    """The keys of a group, all buckets -> the resolved rows of the group, sorted by key."""

    name = "dedup-semantic-collect"
    redo_on_new_inputs = True

    def __init__(self, config: CollectConfig) -> None:
        self.config = config
        self._resolved: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.resolved, self._buckets())
        groups = inputs.shards(self.config.assigned, ".parquet")
        return [Unit(number=g.number, source={"group": g.number}, inputs=(g.input, whole)) for g in groups]

    def _buckets(self) -> list[Shard]:
        found = [s for s in inputs.shards(self.config.resolved, ".parquet") if s.number < self.config.buckets]
        if len(found) != self.config.buckets:
            raise ConfigError(
                f"{self.config.resolved}: {len(found)} of {self.config.buckets} buckets are resolved; "
                "finish the resolve stage of dedup first, without --limit and over all tasks"
            )
        return found

    def start(self) -> None:
        self._resolved = self._buckets()

    def run(self, unit: Unit, scratch: Path) -> Output:
        if inputs.whole_folder(self.config.resolved, self._resolved) != unit.inputs[1]:
            raise InputError(f"{self.config.resolved}: it changed since the run was planned; run dedup again")
        keys = columns.read_parquet(unit.inputs[0].url, {"key"})["key"].combine_chunks()
        table = self._rows_of(keys).sort_by("key").combine_chunks()
        counts = Counts(len(table), len(table))
        return Output(parts={".parquet": write_sorted(table, scratch / "collected")}, counts=counts)

    def _rows_of(self, keys: pa.StringArray) -> pa.Table:
        if not len(keys):
            return RESOLVED.empty_table()
        ends = pc.min_max(keys).as_py()
        found = read_all(
            self._resolved,
            lambda url: read_between(url, "key", ends["min"], ends["max"], names=RESOLVED.names),
        )
        table = pa.concat_tables(found)
        # keys of other groups lie between these only where the images are another maker's
        return table.filter(pc.is_in(table["key"], value_set=keys))
