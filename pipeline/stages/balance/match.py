"""Match, the first stage of balance: which entries each caption of a shard holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.asked import Asked
from pipeline.errors import InputError
from pipeline.settings import location
from pipeline.stage import Counts, Input, Output, Stage, Unit
from pipeline.stages.balance.entries import Matcher, entry_mark, load_entries

#: how many captions of a shard hold an entry
COUNTS = pa.schema([("entry", pa.uint64()), ("count", pa.int64())])
#: of each row: its pair, and the entries that its caption holds; null where it is not asked about
MATCHES = pa.schema([("key", pa.string()), ("uid", pa.string()), ("entries", pa.list_(pa.uint64()))])


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """As in BalanceConfig."""

    input: str = location("")
    entries: str = location("")
    lower: bool = False
    columns: list[str] | str = location(factory=list)
    where: str | None = None


class Match(Stage):
    """Image shard, or part of the candidates -> COUNTS, and MATCHES in `N_matches.parquet`. Entries go by
    their mark (`entries.entry_mark`), so their order in the file means nothing."""

    name = "balance-match"
    suffixes = (".parquet", "_matches.parquet")

    def __init__(self, config: MatchConfig) -> None:
        """Raises ConfigError for a predicate that is none."""
        self.config = config
        self.asked = Asked(
            input=config.input, columns=config.columns, where=config.where, needs=("caption", "uid")
        )
        self._matcher: Matcher | None = None
        self._marks = np.empty(0, np.uint64)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        return self.asked.units([Input(url=self.config.entries, fingerprint=self._fingerprint())])

    def _fingerprint(self) -> str:
        """Of the set of entries; a file in another order says the same."""
        text = "\n".join(sorted(load_entries(self.config.entries)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def start(self) -> None:
        entries = load_entries(self.config.entries)
        self._matcher = Matcher(entries, lower=self.config.lower)
        self._marks = np.array([entry_mark(entry) for entry in entries], np.uint64)

    def run(self, unit: Unit, scratch: Path) -> Output:
        assert self._matcher is not None, "start() builds the matcher"
        if unit.inputs[1].fingerprint != self._fingerprint():
            raise InputError(
                f"{self.config.entries}: it changed since the run was planned; run balance again"
            )
        table, refused = self.asked.read(unit)
        dropped = Counter(reason for reason in refused.to_pylist() if reason is not None)
        found: list[list[int] | None] = []
        for caption, reason in zip(table["caption"].to_pylist(), refused.to_pylist(), strict=True):
            places = self._matcher.find(caption or "") if reason is None else None
            found.append(None if places is None else sorted(self._marks[places].tolist()))
        matches = pa.table(
            [table["key"], table["uid"], pa.array(found, MATCHES.field(2).type)], schema=MATCHES
        )
        counts = Counts(len(table), len(table) - sum(dropped.values()), dropped)
        return Output(parts={".parquet": _counted(found), "_matches.parquet": matches}, counts=counts)


def _counted(found: Sequence[Sequence[int] | None]) -> pa.Table:
    marks = np.array([mark for row in found for mark in row or ()], np.uint64)
    entries, counts = np.unique(marks, return_counts=True)
    return pa.table([pa.array(entries), pa.array(counts.astype(np.int64))], schema=COUNTS)
