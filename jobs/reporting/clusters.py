"""Duplicates: the biggest clusters of each kind, and pictures that benchmarks hold."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reporting.hitters import Hitters
from jobs.reporting.view import Sample, View, floats

#: (column of the winner's key, how alike they are, name)
KINDS = (
    ("duplicate_of", "", "Exact duplicates"),
    ("near_duplicate_of", "near_distance", "Near duplicates"),
    ("semantic_duplicate_of", "semantic_similarity", "Semantic duplicates"),
)
CONTAMINATED, DISTANCE = "contaminated_by", "contamination_distance"
COLUMNS = frozenset(
    {name for kind in KINDS for name in kind[:2] if name} | {"duplicate_reason", CONTAMINATED, DISTANCE}
)
#: clusters shown of each kind, losers shown of each, hits shown
CLUSTERS, LOSERS, HITS = 5, 5, 12
#: winners with their losers that are remembered on the way
CAPACITY = 5_000
MAX_SETS = 300


@dataclass(frozen=True, kw_only=True)
class Loser:
    """One duplicate: its row, how far from the winner it is (None: the same), and why it lost."""

    sample: Sample
    measure: float | None
    why: str = ""


@dataclass(kw_only=True)
class Kind:
    """Clusters of one kind: losers a winner, and a few of them. marked: all losers."""

    winners: Hitters = field(default_factory=lambda: Hitters(capacity=CAPACITY))
    losers: dict[str, list[Loser]] = field(default_factory=dict)
    marked: int = 0


@dataclass(kw_only=True)
class Clusters:
    """The section of the duplicates. present: the columns that stand."""

    kinds: dict[str, Kind] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    sets: Counter[str] = field(default_factory=Counter)
    hits: list[tuple[float, Sample, str, float | None]] = field(default_factory=list)

    def collect(self, view: View) -> Clusters:
        found = Clusters()
        for mark, measure, _ in KINDS:
            if view.has(mark) and pa.types.is_string(view.table[mark].type):
                found.present.add(mark)
                found.kinds[mark] = _kind(view, mark, measure)
        if view.has(CONTAMINATED):
            found.present.add(CONTAMINATED)
            _contaminated(view, found)
        return found

    def add(self, other: Clusters) -> None:
        self.present |= other.present
        for mark, theirs in other.kinds.items():
            mine = self.kinds.setdefault(mark, Kind())
            mine.marked += theirs.marked
            mine.winners.add((key, tuple(n)) for key, n in theirs.winners.counts.items())
            for key, losers in theirs.losers.items():
                mine.losers[key] = _first(mine.losers.get(key, []) + losers)
            if len(mine.losers) > len(mine.winners.counts):  # some were forgotten
                mine.losers = {key: mine.losers[key] for key in mine.winners.counts if key in mine.losers}
        for name, number in other.sets.items():
            known = name in self.sets or len(self.sets) < MAX_SETS
            self.sets[name if known else "other sets"] += number
        self.hits = heapq.nsmallest(HITS, self.hits + other.hits, key=lambda h: (h[0], h[1].row["key"]))


def _first(losers: list[Loser]) -> list[Loser]:
    return sorted(losers, key=lambda one: (one.sample.priority, one.sample.row["key"]))[:LOSERS]


def _kind(view: View, mark: str, measure: str) -> Kind:
    found = Kind()
    marked = np.asarray(view.table[mark].is_valid()) & view.has_picture
    at = np.flatnonzero(marked)
    found.marked = len(at)
    if not len(at):
        return found
    named = pc.dictionary_encode(view.table[mark].take(pa.array(at)).combine_chunks())
    which = np.asarray(named.indices)
    names = named.dictionary.to_pylist()
    found.winners.counts = {name: [int(n)] for name, n in zip(names, np.bincount(which), strict=True)}
    # a few losers of each winner, in the order of the shard's seeded choice
    order = np.lexsort((view.priority[at], which))
    place = np.arange(len(at)) - np.searchsorted(which[order], which[order])
    # of a shard with very many clusters the biggest alone are worth their rows
    big = {name for name, _ in found.winners.top(200)}
    picked = [
        i
        for i, p in zip(order.tolist(), place.tolist(), strict=True)
        if p < LOSERS and names[which[i]] in big
    ]
    values = floats(view.table, measure)[at]
    why = view.table["duplicate_reason"] if mark == "duplicate_of" and view.has("duplicate_reason") else None
    for i, sample in zip(picked, view.samples(at[picked]), strict=True):
        value = None if np.isnan(values[i]) else float(values[i])
        reason = str(why[int(at[i])].as_py() or "") if why is not None else ""
        found.losers.setdefault(names[which[i]], []).append(Loser(sample=sample, measure=value, why=reason))
    return found


def _contaminated(view: View, found: Clusters) -> None:
    hit = np.asarray(view.table[CONTAMINATED].is_valid()) & view.has_picture
    at = np.flatnonzero(hit)
    names = view.table[CONTAMINATED].take(pa.array(at, pa.int64())).to_pylist()
    found.sets = Counter(str(name).partition("/")[0] for name in names)
    distances = floats(view.table, DISTANCE)[at]
    order = np.lexsort((view.priority[at], distances))[:HITS]
    for i, sample in zip(order.tolist(), view.samples(at[order]), strict=True):
        known = None if np.isnan(distances[i]) else float(distances[i])
        found.hits.append((np.inf if known is None else known, sample, str(names[i]), known))
