"""Mark, the last stage of method near: the columns `near_duplicate_of` and `near_distance` of one shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Unit
from pipeline.stages.dedup.near.entries import LOSERS
from pipeline.stages.dedup.whole import MarkStage, first_of_each


@dataclass(frozen=True, kw_only=True)
class NearMarkConfig:
    """sketch, resolve: the folders of the stages before. buckets: as they were made with."""

    sketch: str = operational("")
    resolve: str = operational("")
    buckets: int = 16


class NearMark(MarkStage):
    """Rows of a shard, all losers -> for every row `near_duplicate_of` (key or null) and `near_distance`."""

    name = "dedup-near"
    losers_schema = LOSERS

    def __init__(self, config: NearMarkConfig) -> None:
        self.config = config

    def run(self, unit: Unit, scratch: Path) -> Output:
        rows = columns.read_column(unit.inputs[0].url.removesuffix(".parquet") + "_keys.parquet")
        losers = self.losers(unit, rows["key"])
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
    losers = first_of_each(losers, ["of", "distance"])
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
