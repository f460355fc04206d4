"""Stages that see a whole folder: those of one bucket of all sketches, and of one shard beside all losers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import inputs
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard
from pipeline.ranges import read_between
from pipeline.stage import Stage, Unit
from pipeline.stages.dedup.parts import read_all


class BucketStage(Stage):
    """All sketches -> something for each bucket of their entries. Its config has `input`, the folder of
    sketches, and `buckets`, as they were made with.

    Attributes:
        entries_schema: of a sketch. compared: its columns that are looked at within a bucket.
    """

    redo_on_new_inputs = True
    entries_schema: ClassVar[pa.Schema]
    compared: ClassVar[Sequence[str]]

    _sketches: Sequence[Shard] = ()

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.input, inputs.shards(self.config.input, ".parquet"))
        return [Unit(number=b, source={"bucket": b}, inputs=(whole,)) for b in range(self.config.buckets)]

    def start(self) -> None:
        self._sketches = inputs.shards(self.config.input, ".parquet")

    def entries(self, unit: Unit) -> pa.Table:
        """What all sketches hold of the unit's bucket.

        Raises:
            InputError: a sketch is damaged, or others stand than when the run was planned.
        """
        if inputs.whole_folder(self.config.input, self._sketches) != unit.inputs[0]:
            raise InputError(
                f"{self.config.input}: sketches changed since the run was planned; run dedup again"
            )
        bucket, names = unit.source["bucket"], list(self.compared)
        parts = read_all(self._sketches, lambda url: read_between(url, "bucket", bucket, bucket, names=names))
        return pa.concat_tables([self.entries_schema.empty_table().select(names), *parts]).combine_chunks()


class MarkStage(Stage):
    """The sketch of a shard and all losers -> its columns. Its config has `sketch` and `resolve`, the folders
    of the stages before, and `buckets`, as they were made with.

    Attributes:
        losers_schema: of what resolve wrote, sorted by `key`.
    """

    redo_on_new_inputs = True
    losers_schema: ClassVar[pa.Schema]

    _resolved: Sequence[Shard] = ()

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.resolve, self._buckets())
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
        self._resolved = self._buckets()

    def losers(self, unit: Unit, keys: pa.ChunkedArray) -> pa.Table:
        """The losers of all buckets from the least to the greatest of a shard's keys.

        Raises:
            InputError: a bucket is damaged, or others stand than when the run was planned.
        """
        if inputs.whole_folder(self.config.resolve, self._resolved) != unit.inputs[1]:
            raise InputError(f"{self.config.resolve}: it changed since the run was planned; run dedup again")
        if not len(keys):
            return self.losers_schema.empty_table()
        ends, names = pc.min_max(keys).as_py(), self.losers_schema.names
        return pa.concat_tables(
            read_all(
                self._resolved, lambda url: read_between(url, "key", ends["min"], ends["max"], names=names)
            )
        )


def first_of_each(losers: pa.Table, then: Sequence[str]) -> pa.Table:
    """Each losing key once: its first row in the order of the columns `then`."""
    losers = losers.sort_by([("key", "ascending"), *((name, "ascending") for name in then)])
    # of equal neighbours the first; dictionaries make this a comparison of numbers
    codes = losers["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = pa.array([True] * min(1, len(codes)) + (codes[1:] != codes[:-1]).tolist(), pa.bool_())
    return losers.filter(first).combine_chunks()
