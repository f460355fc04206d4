"""Mark, the last stage of balance: the columns `metaclip_matches` and `metaclip_keep` of one shard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError, InputError
from pipeline.settings import operational
from pipeline.stage import Counts, Input, Output, Stage, Unit

NO_MATCH, BALANCED_AWAY, NOT_ASKED = "no_match", "balanced_away", "not_selected"


@dataclass(frozen=True, kw_only=True)
class MarkConfig:
    """match, count: the folders of the stages before. cap, seed: as in BalanceConfig."""

    match: str = operational("")
    count: str = operational("")
    cap: int = 20_000
    seed: int = 0


class Mark(Stage):
    """Matches of a shard, counts of all -> a row for every row: `metaclip_matches` (entries that its caption
    holds) and `metaclip_keep`; both null for rows that were not asked about."""

    name = "balance"
    redo_on_new_inputs = True

    def __init__(self, config: MarkConfig) -> None:
        self.config = config
        self._entries, self._counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._counted: Input | None = None

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        counted = self._count_file()
        found = inputs.shards(self.config.match, ".parquet")
        return [Unit(number=s.number, source={"shard": s.number}, inputs=(s.input, counted)) for s in found]

    def _count_file(self) -> Input:
        found = inputs.shards(self.config.count, ".parquet")
        if len(found) != 1:
            raise ConfigError(f"{self.config.count}: {len(found)} tables of counts; run balance again")
        return found[0].input

    def start(self) -> None:
        self._counted = self._count_file()
        table = columns.read_parquet(self._counted.url)
        self._entries, self._counts = table["entry"].to_numpy(), table["count"].to_numpy()

    def run(self, unit: Unit, scratch: Path) -> Output:
        if self._counted != unit.inputs[1]:
            raise InputError(f"{self.config.count}: it changed since the run was planned; run balance again")
        stem = unit.inputs[0].url.removesuffix(".parquet")
        table = columns.read_parquet(f"{stem}_matches.parquet")
        asked = pc.is_valid(table["entries"])
        matches = pc.list_value_length(table["entries"]).cast(pa.int32())
        keep = pa.array(self._kept(table), pa.bool_(), mask=~asked.to_numpy(zero_copy_only=False))
        judged = pa.table({"key": table["key"], "metaclip_matches": matches, "metaclip_keep": keep})
        return Output(parts={".parquet": judged.combine_chunks()}, counts=_counts(matches, keep))

    def _kept(self, table: pa.Table) -> np.ndarray:
        """Whether the draw of any entry of a row keeps it: bool (rows,)."""
        lists = table["entries"].combine_chunks()
        row = pc.list_parent_indices(lists).to_numpy()
        entry = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.uint64)
        uid = np.array([_mark(uid) for uid in table["uid"].to_pylist()], np.uint64)
        place = np.searchsorted(self._entries, entry)
        if len(entry) and not (self._entries[np.minimum(place, len(self._entries) - 1)] == entry).all():
            raise InputError(f"{self.config.count}: it lacks entries of these matches; run balance again")
        draw = draws(self.config.seed, uid[row], entry)
        kept = np.zeros(len(table), bool)
        kept[row[draw * self._counts[place] < self.config.cap]] = True
        return kept


def draws(seed: int, uid: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each pair of uid and entry (uint64 both), given by them and the seed alone."""
    mixed = _splitmix(_splitmix(_splitmix(np.full(len(uid), seed, np.uint64)) ^ uid) ^ entry)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(state: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele et al. 2014), which mixes 64 bits into 64."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _mark(uid: str) -> int:
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "big")


def _counts(matches: pa.ChunkedArray, keep: pa.Array) -> Counts:
    rows = len(keep)
    kept = pc.sum(keep, min_count=0).as_py()
    without = pc.sum(pc.equal(matches, 0), min_count=0).as_py()
    dropped = {NOT_ASKED: keep.null_count, NO_MATCH: without}
    dropped[BALANCED_AWAY] = rows - kept - keep.null_count - without
    return Counts(rows, kept, dropped)
