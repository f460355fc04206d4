"""Mark, the last stage of method exact: the columns `duplicate_of` and `duplicate_reason` of one shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard
from pipeline.ranges import read_between
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.exact.entries import KINDS, LOSERS
from pipeline.stages.dedup.parts import folder_input, read_all


@dataclass(frozen=True, kw_only=True)
class MarkConfig:
    """sketch, resolve: the folders of the stages before. buckets: as they were made with."""

    sketch: str = operational("")
    resolve: str = operational("")
    buckets: int = 16


class Mark(Stage):
    """Sketch of a shard, all losers -> a row for every row that took part: `duplicate_of` (key or null) and
    `duplicate_reason` (`url_caption`, `image` or `url`)."""

    name = "dedup"
    redo_on_new_inputs = True

    def __init__(self, config: MarkConfig) -> None:
        self.config = config
        self._losers: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = folder_input(self.config.resolve, self._buckets())
        found = inputs.shards(self.config.sketch, ".parquet")
        return [Unit(number=s.number, source={"shard": s.number}, inputs=(s.input, whole)) for s in found]

    def _buckets(self) -> list[Shard]:
        found = [s for s in inputs.shards(self.config.resolve, ".parquet") if s.number < self.config.buckets]
        if len(found) != self.config.buckets:
            raise ConfigError(
                f"{self.config.resolve}: {len(found)} of {self.config.buckets} buckets are resolved; "
                "finish the resolve stage of dedup first, without --limit and over all tasks"
            )
        return found

    def start(self) -> None:
        self._losers = self._buckets()

    def run(self, unit: Unit, scratch: Path) -> Output:
        if folder_input(self.config.resolve, self._losers) != unit.inputs[1]:
            raise InputError(f"{self.config.resolve}: it changed since the run was planned; run dedup again")
        stem = unit.inputs[0].url.removesuffix(".parquet")
        keys = columns.read_column(f"{stem}_keys.parquet")["key"]
        losers = self._losers_among(keys)
        place = pc.index_in(keys, value_set=losers["key"])
        kinds = losers["kind"].take(place)
        table = pa.table(
            {
                "key": keys,
                "duplicate_of": losers["of"].take(place),
                "duplicate_reason": pa.chunked_array([pa.array(KINDS, pa.string())]).take(kinds),
            }
        ).combine_chunks()
        found = pc.value_counts(table["duplicate_reason"].drop_null()).to_pylist()
        dropped = {f"duplicate_{count['values']}": count["counts"] for count in found}
        counts = Counts(len(keys), len(keys) - sum(dropped.values()), dropped)
        return Output(parts={".parquet": table}, counts=counts)

    def _losers_among(self, keys: pa.ChunkedArray) -> pa.Table:
        """The losers with one of these keys, each once: by the first kind where it has lost by several."""
        if not len(keys):
            return LOSERS.empty_table()
        ends = pc.min_max(keys).as_py()
        table = pa.concat_tables(
            read_all(
                self._losers,
                lambda url: read_between(url, "key", ends["min"], ends["max"], names=LOSERS.names),
            )
        ).combine_chunks()
        table = table.sort_by([("key", "ascending"), ("kind", "ascending")])
        found = table["key"].combine_chunks()
        first = np.ones(len(found), bool)
        first[1:] = pc.not_equal(found[1:], found[:-1]).to_numpy(zero_copy_only=False)
        return table.filter(pa.array(first)).combine_chunks()
