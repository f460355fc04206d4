"""Cap, a selecting stage: in one bucket of texts or domains, which rows are more than the limit allows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline import inputs
from pipeline.errors import InputError
from pipeline.inputs import Shard
from pipeline.ranges import READERS, read_between, write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.pack.select.state import CAPS, beyond
from pipeline.stages.pack.select.whole import all_shards


@dataclass(frozen=True, kw_only=True)
class CapConfig:
    """input: the image folder, all of whose shards must have a state. states: where these are. reason: which
    limit; limit: so many rows of a hash; buckets: as the states were made with."""

    input: str = operational("")
    states: str = operational("")
    reason: str = ""
    limit: int = 1
    buckets: int = 16


class Cap(Stage):
    """All states -> the keys of one bucket that are too many, in order."""

    name = "pack-cap"
    redo_on_new_inputs = True

    def __init__(self, config: CapConfig) -> None:
        self.config = config
        self._states: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.states, all_shards(self.config.states, self.config.input))
        return [Unit(number=b, source={"bucket": b}, inputs=(whole,)) for b in range(self.config.buckets)]

    def start(self) -> None:
        self._states = inputs.shards(self.config.states, ".parquet")

    def run(self, unit: Unit, scratch: Path) -> Output:
        if inputs.whole_folder(self.config.states, self._states) != unit.inputs[0]:
            raise InputError(f"{self.config.states}: it changed since the run was planned; run pack again")
        bucket, column = unit.source["bucket"], CAPS[self.config.reason]
        names = [column, "by", "key"]
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(
                pool.map(
                    lambda s: read_between(s.input.url, "bucket", bucket, bucket, names=names), self._states
                )
            )
        rows = pa.concat_tables(parts)
        del parts
        lost = rows.filter(pa.array(beyond(rows, column, self.config.limit))).select(["key"])
        lost = lost.sort_by("key").combine_chunks()
        counts = Counts(len(rows), len(rows) - len(lost), {self.config.reason: len(lost)})
        return Output(parts={".parquet": write_sorted(lost, scratch / "lost")}, counts=counts)
