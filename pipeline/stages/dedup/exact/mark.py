"""Mark, the last stage of method exact: the columns `duplicate_of` and `duplicate_reason` of one shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Unit
from pipeline.stages.dedup.exact.entries import KINDS, LOSERS
from pipeline.stages.dedup.whole import MarkStage, first_of_each


@dataclass(frozen=True, kw_only=True)
class MarkConfig:
    """sketch, resolve: the folders of the stages before. buckets: as they were made with."""

    sketch: str = operational("")
    resolve: str = operational("")
    buckets: int = 16


class Mark(MarkStage):
    """Sketch of a shard, all losers -> a row for every row that took part: `duplicate_of` (key or null) and
    `duplicate_reason` (`url_caption`, `image` or `url`)."""

    name = "dedup"
    losers_schema = LOSERS

    def __init__(self, config: MarkConfig) -> None:
        self.config = config

    def run(self, unit: Unit, scratch: Path) -> Output:
        stem = unit.inputs[0].url.removesuffix(".parquet")
        keys = columns.read_column(f"{stem}_keys.parquet")["key"]
        # by the first kind where a key has lost by several
        losers = first_of_each(self.losers(unit, keys), ["kind"])
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
