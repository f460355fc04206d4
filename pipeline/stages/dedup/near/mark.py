"""Mark, the last stage of method near: the columns `near_duplicate_of` and `near_distance` of one shard."""

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
from pipeline.stages.dedup.near.entries import LOSERS
from pipeline.stages.dedup.parts import folder_input, read_all


@dataclass(frozen=True, kw_only=True)
class NearMarkConfig:
    """sketch, resolve: the folders of the stages before. buckets: as they were made with."""

    sketch: str = operational("")
    resolve: str = operational("")
    buckets: int = 16


class NearMark(Stage):
    """Rows of a shard, all losers -> for every row `near_duplicate_of` (key or null) and `near_distance`."""

    name = "dedup-near"
    redo_on_new_inputs = True

    def __init__(self, config: NearMarkConfig) -> None:
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
        rows = columns.read_column(unit.inputs[0].url.removesuffix(".parquet") + "_keys.parquet")
        losers = LOSERS.empty_table()
        if len(rows):
            ends = pc.min_max(rows["key"]).as_py()
            parts = read_all(
                self._losers,
                lambda url: read_between(url, "key", ends["min"], ends["max"], names=LOSERS.names),
            )
            losers = pa.concat_tables(parts)
        of, distance = marks(rows, losers)
        table = pa.table(
            {"key": rows["key"].combine_chunks(), "near_duplicate_of": of, "near_distance": distance}
        )
        lost = len(of) - of.null_count
        counts = Counts(len(rows), len(rows) - lost, {"near_duplicate": lost})
        notes = {"without_hash": len(rows) - pc.sum(rows["hashed"]).as_py() if len(rows) else 0}
        return Output(parts={".parquet": table}, counts=counts, notes=notes)


def marks(rows: pa.Table, losers: pa.Table) -> tuple[pa.StringArray, pa.Int32Array]:
    """(key of the winner, distance) of each row; null where it is kept.

    Args:
        rows: as ROWS has them. Rows like another one of the shard have no entry of their own: they lose to
            whom that one loses, or to it. Where a takedown removed it, the next of them stands for it.
        losers: of one or several buckets.
    """
    losers = losers.sort_by([("key", "ascending"), ("of", "ascending"), ("distance", "ascending")])
    losing = losers["key"].combine_chunks()
    first = np.ones(len(losing), bool)
    first[1:] = pc.not_equal(losing[1:], losing[:-1]).to_numpy(zero_copy_only=False)
    losers = losers.filter(pa.array(first)).combine_chunks()
    keys = rows["key"].combine_chunks()
    like = _standing(keys, rows["like"].combine_chunks())
    place = pc.index_in(pc.coalesce(like, keys), value_set=losers["key"].combine_chunks())
    of, distance = losers["of"].combine_chunks().take(place), losers["distance"].combine_chunks().take(place)
    none = pa.scalar(None, pa.int32())
    same = pc.if_else(pc.is_valid(like), pa.scalar(0, pa.int32()), none)
    return pc.coalesce(of, like), pc.coalesce(distance, same)


def _standing(keys: pa.StringArray, like: pa.StringArray) -> pa.StringArray:
    """`like`, with the smallest key of those that are like a row that is gone in its place."""
    gone = pc.and_(pc.is_valid(like), pc.invert(pc.is_in(like, value_set=keys)))
    if not pc.any(gone).as_py():
        return like
    values = like.to_pylist()
    heirs: dict[str, str] = {}
    for key, of in sorted(
        (k, o) for k, o, g in zip(keys.to_pylist(), values, gone.to_pylist(), strict=True) if g
    ):
        heirs.setdefault(of, key)
    found = [heirs.get(of, of) for of in values]
    return pa.array(
        [None if of == key else of for key, of in zip(keys.to_pylist(), found, strict=True)], pa.string()
    )
