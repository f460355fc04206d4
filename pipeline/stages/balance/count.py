"""Count, the second stage of balance: how many captions of all shards hold each entry."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import columns, inputs
from pipeline.errors import InputError
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.balance.match import COUNTS

#: files read at a time; their waiting is what counts on an object store
READERS = 8
#: files whose counts are held before they are summed
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    """input: the folder of matches."""

    input: str = operational("")


class Count(Stage):
    """The counts of all shards -> one table of them; memory goes with the number of entries."""

    name = "balance-count"
    redo_on_new_inputs = True

    def __init__(self, config: CountConfig) -> None:
        self.config = config

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.input, inputs.shards(self.config.input, ".parquet"))
        return [Unit(number=0, source={"all": True}, inputs=(whole,))]

    def run(self, unit: Unit, scratch: Path) -> Output:
        shards = inputs.shards(self.config.input, ".parquet")
        if inputs.whole_folder(self.config.input, shards) != unit.inputs[0]:
            raise InputError(f"{self.config.input}: it changed since the run was planned; run balance again")
        total = COUNTS.empty_table()
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(shards), BATCH):
                batch = shards[start : start + BATCH]
                found = list(pool.map(lambda s: columns.read_parquet(s.input.url), batch))
                total = _summed(pa.concat_tables([total, *found]))
        return Output(parts={".parquet": total}, counts=Counts(len(shards), len(shards)))


def _summed(table: pa.Table) -> pa.Table:
    entries, place = np.unique(table["entry"].to_numpy(), return_inverse=True)
    counts = np.zeros(len(entries), np.int64)
    np.add.at(counts, place, table["count"].to_numpy())
    return pa.table([pa.array(entries, pa.uint64()), pa.array(counts)], schema=COUNTS)
