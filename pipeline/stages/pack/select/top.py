"""Top, a selecting stage: where the cut through all rows lies, in an order that `by` and the keys give.

Rows are in the order of a byte string: 8 bytes that sort as `by` falls, then the key. The row at the cut is
found from its front, two bytes at a time: each pass over the states counts which two bytes follow what is
known already, until few enough rows begin so to be sorted. So memory is bounded whatever the number of rows
and however many of them have the same value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import InputError
from pipeline.inputs import Shard
from pipeline.ranges import READERS
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.pack.rule import BELOW_TOP, BELOW_TOP_NULL, parse_top, taken_of
from pipeline.stages.pack.select.whole import all_shards

T = TypeVar("T")

#: bytes of an order string: `by`, and a key of at most 64 characters
BY_BYTES, KEY_BYTES = 8, 64
WIDTH = BY_BYTES + KEY_BYTES
#: rows that are sorted in memory: 72 bytes each
AT_ONCE = 1_000_000
#: the row at the cut, the last that is taken; none where none is
CUT = pa.schema([("by", pa.float64()), ("key", pa.string())])


@dataclass(frozen=True, kw_only=True)
class TopConfig:
    """input: the image folder, all of whose shards must have a state. states: where these are. top: a share
    or a number, as `pack` takes it. of_all: whether rows compete that are out already."""

    input: str = operational("")
    states: str = operational("")
    top: int | str = ""
    by: str = ""
    of_all: bool = False


class Top(Stage):
    """All states -> the row at the cut."""

    name = "pack-top"
    redo_on_new_inputs = True

    def __init__(self, config: TopConfig, *, at_once: int = AT_ONCE) -> None:
        self.config, self.at_once = config, at_once
        self._states: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.states, all_shards(self.config.states, self.config.input))
        return [Unit(number=0, source={}, inputs=(whole,))]

    def start(self) -> None:
        self._states = inputs.shards(self.config.states, ".parquet")

    def run(self, unit: Unit, scratch: Path) -> Output:
        if inputs.whole_folder(self.config.states, self._states) != unit.inputs[0]:
            raise InputError(f"{self.config.states}: it changed since the run was planned; run pack again")
        tables = list(self._each(lambda t: (len(t), len(t) - t["by"].null_count)))
        competing, valued = (sum(column) for column in zip(*tables, strict=True))
        if competing and not valued:
            raise InputError(
                f"column {self.config.by!r} has no value in any of {competing:,} rows, so there is no top; "
                "run the stage that writes it, or give --by another column"
            )
        wanted = min(valued, taken_of(parse_top(self.config.top), competing))
        cut = self._cut(wanted) if wanted else None
        counts = Counts(competing, wanted, {BELOW_TOP: valued - wanted, BELOW_TOP_NULL: competing - valued})
        table = pa.table([[by] for by in cut] if cut else [[], []], schema=CUT)
        return Output(parts={".parquet": table}, counts=counts, notes={"cut": cut[0] if cut else None})

    def _each(self, look: Callable[[pa.Table], T]) -> Iterator[T]:
        """What is seen in each state, of the rows that compete."""

        def of_shard(shard: Shard) -> T:
            table = columns.read_parquet(shard.input.url, {"key", "by", "reason"})
            return look(table if self.config.of_all else table.filter(pc.is_null(table["reason"])))

        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(self._states), READERS):
                yield from pool.map(of_shard, self._states[start : start + READERS])

    def _cut(self, wanted: int) -> tuple[float, str]:
        """The `wanted`-th row of all."""
        known, left = b"", wanted
        while True:
            counts = np.zeros(1 << 16, np.int64)
            for found in self._each(functools.partial(_next_digits, known=known)):
                counts += found
            if counts.sum() <= self.at_once or len(known) == WIDTH - 2:
                break
            upto = np.cumsum(counts)
            digit = int(np.searchsorted(upto, left))
            left -= int(upto[digit] - counts[digit])
            known += digit.to_bytes(2, "big")
        parts = list(self._each(functools.partial(_beginning, known=known)))
        rows = pa.concat_tables(parts).combine_chunks()
        rows = rows.sort_by([("by", "descending"), ("key", "ascending")])
        return rows["by"][left - 1].as_py(), rows["key"][left - 1].as_py()


def order_strings(table: pa.Table) -> np.ndarray:
    """(N, WIDTH) uint8 of the rows that have a value: rows are better the smaller their bytes are."""
    rows = table.filter(pc.is_valid(table["by"]))
    bits = rows["by"].to_numpy().astype(np.float64).view(np.uint64)
    # floats sort as integers once the sign is turned, and all bits of those below zero; then downwards
    rising = np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))
    by = (~rising).astype(">u8").view(np.uint8).reshape(-1, BY_BYTES)
    keys = np.array([key.encode() for key in rows["key"].to_pylist()], dtype=f"S{KEY_BYTES}")
    return np.concatenate([by, keys.view(np.uint8).reshape(-1, KEY_BYTES)], axis=1)


def _beginning(table: pa.Table, known: bytes) -> pa.Table:
    rows = table.filter(pc.is_valid(table["by"])).select(["by", "key"])
    return rows.filter(pa.array(_begins(order_strings(rows), known)))


def _begins(strings: np.ndarray, known: bytes) -> np.ndarray:
    return (strings[:, : len(known)] == np.frombuffer(known, np.uint8)).all(axis=1)


def _next_digits(table: pa.Table, known: bytes) -> np.ndarray:
    """How often each two bytes come next in the strings that begin so."""
    strings = order_strings(table)
    mine = strings[_begins(strings, known)][:, len(known) : len(known) + 2].astype(np.int64)
    return np.bincount(mine[:, 0] << 8 | mine[:, 1], minlength=1 << 16)


def inside(table: pa.Table, cut: pa.Table) -> pa.Array:
    """Which rows with a value are not behind the cut; null for those without a value."""
    if not len(cut):
        return pc.if_else(pc.is_valid(table["by"]), False, pa.scalar(None, pa.bool_()))
    by, key = cut["by"][0], cut["key"][0]
    same = pc.and_(pc.equal(table["by"], by), pc.less_equal(table["key"], key))
    return pc.or_(pc.greater(table["by"], by), same)
