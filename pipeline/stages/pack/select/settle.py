"""Settle, a selecting stage: what a limit or the top means for the rows of one image shard.

After a limit it makes the state ready for what comes next; the last one writes the verdicts that pack reads:
the keys that are out, each with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard
from pipeline.ranges import READERS, read_between, write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.pack.rule import BELOW_TOP, BELOW_TOP_NULL, GLOBAL_REASONS
from pipeline.stages.pack.select.state import asked_next, mark
from pipeline.stages.pack.select.top import inside
from pipeline.stages.pack.select.whole import all_shards

VERDICTS = pa.schema([("key", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True, kw_only=True)
class SettleConfig:
    """input: the image folder. states: of the shards so far. decided: the folder of what was decided on all
    of them, of so many units. reason: the limit that it was, or `below_top`. limits: what comes next, in
    order, as for the rows; buckets: as there. last: whether verdicts are written."""

    input: str = operational("")
    states: str = operational("")
    decided: str = operational("")
    units: int = 1
    reason: str = ""
    limits: tuple[tuple[str, int], ...] = ()
    buckets: int = 16
    last: bool = False


class Settle(Stage):
    """State of a shard, all decisions -> its next state, or its verdicts."""

    name = "pack-settle"
    redo_on_new_inputs = True

    def __init__(self, config: SettleConfig) -> None:
        self.config = config
        self._decided: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.decided, self._decisions())
        states = all_shards(self.config.states, self.config.input)
        return [Unit(number=s.number, source={"shard": s.number}, inputs=(s.input, whole)) for s in states]

    def _decisions(self) -> list[Shard]:
        found = [s for s in inputs.shards(self.config.decided, ".parquet") if s.number < self.config.units]
        if len(found) != self.config.units:
            raise ConfigError(
                f"{self.config.decided}: {len(found)} of {self.config.units} parts are done; run pack again "
                "over all tasks, where it runs as several"
            )
        return found

    def start(self) -> None:
        self._decided = self._decisions()

    def run(self, unit: Unit, scratch: Path) -> Output:
        if inputs.whole_folder(self.config.decided, self._decided) != unit.inputs[1]:
            raise InputError(f"{self.config.decided}: it changed since the run was planned; run pack again")
        state = columns.read_parquet(unit.inputs[0].url)
        state = self._below_top(state) if self.config.reason == BELOW_TOP else self._too_many(state)
        state = asked_next(state, self.config.limits[:1], self.config.buckets)
        dropped = Counter(r for r in state["reason"].to_pylist() if r is not None)
        counts = Counts(len(state), len(state) - dropped.total(), dropped)
        part = _verdicts(state) if self.config.last else state
        return Output(parts={".parquet": write_sorted(part, scratch / "part")}, counts=counts)

    def _below_top(self, state: pa.Table) -> pa.Table:
        kept = inside(state, columns.read_parquet(self._decided[0].input.url))
        reason = pc.if_else(pc.is_valid(kept), BELOW_TOP, BELOW_TOP_NULL)
        return mark(state, pc.invert(pc.fill_null(kept, False)), reason)

    def _too_many(self, state: pa.Table) -> pa.Table:
        if not len(state):
            return state
        ends = pc.min_max(state["key"]).as_py()
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(
                pool.map(
                    lambda s: read_between(s.input.url, "key", ends["min"], ends["max"], names=["key"]),
                    self._decided,
                )
            )
        lost = pa.concat_tables(parts)["key"].combine_chunks()
        return mark(state, pc.is_in(state["key"], lost), self.config.reason)


def _verdicts(state: pa.Table) -> pa.Table:
    ours = pc.is_in(state["reason"], pa.array(GLOBAL_REASONS))
    return state.filter(ours).select(["key", "reason"]).sort_by("key").cast(VERDICTS).combine_chunks()
