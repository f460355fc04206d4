"""What another threshold would keep: counted once over all rows, answered in the page at once.

For every cut of the rule (`cuts`) the rows that pass everything else are counted in bins of its value. Their
borders are the thresholds that can be chosen, so the count of one moved cut is exact. Several cuts moved
together need the rows themselves: a seeded sample of those that could be kept by some thresholds, each as the
numbers of its bins; where all of them fit, that is exact as well.

A bin's number is how many thresholds a value reaches (`above`: it passes threshold i where its bin is > i) or
exceeds (`below`: where its bin is <= i). Values are compared as DuckDB compares them, in 32 bits where the
column has 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from jobs.reporting import expressions
from jobs.reporting.cuts import Cut, Rule
from jobs.reporting.view import Sample, View

#: thresholds that a cut can be moved to, about
STEPS = 200
#: part of the values on each side that may lie beyond the first and the last threshold
OUTERMOST = 0.002
#: a row's bin where the cut does not apply to it, and where it has no value
ALWAYS, NEVER = 65534, 65535
#: pictures of each cut: nearest to its threshold on each side, and one for each of so many parts of its range
NEAREST, STRATA = 5, 20


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A picture on the ladder of a cut: where it stands. `distance` is to the rule's threshold."""

    sample: Sample
    value: float
    code: int
    distance: float


@dataclass(kw_only=True)
class Steps:
    """What was counted for one cut.

    counts: rows by bin that pass everything else, one bin more than there are thresholds.
    nulls: rows without a value that pass everything else.
    strata, below, above: pictures that may be shown.
    """

    counts: np.ndarray
    nulls: int = 0
    strata: dict[int, Rung] = field(default_factory=dict)
    below: list[Rung] = field(default_factory=list)
    above: list[Rung] = field(default_factory=list)

    def add(self, other: Steps) -> None:
        self.counts = self.counts + other.counts
        self.nulls += other.nulls
        for place, rung in other.strata.items():
            mine = self.strata.get(place)
            if mine is None or _first(rung) < _first(mine):
                self.strata[place] = rung
        self.below = sorted(self.below + other.below, key=_nearest)[:NEAREST]
        self.above = sorted(self.above + other.above, key=_nearest)[:NEAREST]

    @property
    def ladder(self) -> list[Rung]:
        """All pictures that may be shown, by their value."""
        every = {r.sample.row["key"]: r for r in (*self.strata.values(), *self.below, *self.above)}
        return sorted(every.values(), key=lambda r: (r.code, r.value, r.sample.row["key"]))


def _first(rung: Rung) -> tuple[float, str]:
    return rung.sample.priority, rung.sample.row["key"]


def _nearest(rung: Rung) -> tuple[float, float, str]:
    return rung.distance, rung.sample.priority, rung.sample.row["key"]


@dataclass(kw_only=True)
class WhatIf:
    """The section of the thresholds.

    Attributes:
        rule: its parts and cuts.
        edges: the thresholds of each cut, as decimals.
        sample: rows that the page may hold.
        pictures: rows with a picture. kept: by the rule as it is.
        open: rows that no part without a cut refuses.
        steps: of each cut.
        codes: [n, cuts] uint16, the bins of the sampled rows. ranks: what they were chosen by.
    """

    rule: Rule
    edges: Sequence[Sequence[str]]
    sample: int
    pictures: int = 0
    kept: int = 0
    open: int = 0
    steps: list[Steps] = field(default_factory=list)
    codes: np.ndarray = field(init=False)
    ranks: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.codes = np.zeros((0, len(self.rule.cuts)), np.uint16)
        self.ranks = np.zeros(0)
        if not self.steps:
            self.steps = [Steps(counts=np.zeros(len(e) + 1, np.int64)) for e in self.edges]

    def collect(self, view: View) -> WhatIf:
        """Counts one joined shard."""
        found = WhatIf(rule=self.rule, edges=self.edges, sample=self.sample)
        at = np.flatnonzero(view.basis)
        table = expressions.selected(view.table, self.rule.columns).take(pa.array(at, pa.int64()))
        true = expressions.flags(table, [part.text for part in self.rule.parts])
        placed = place(table, self.rule.cuts, self.edges)
        all_true = np.logical_and.reduce(true) if true else np.ones(len(at), bool)
        could = np.logical_and.reduce([np.ones(len(at), bool), *(true[i] for i in self.rule.fixed)])
        for cuts in _levels(self.rule.cuts).values():
            # a row whose threshold is null is kept by none
            could &= ~np.logical_and.reduce([~placed[i].member for i in cuts])
        found.pictures, found.kept, found.open = (
            int(view.has_picture.sum()),
            int(all_true.sum()),
            int(could.sum()),
        )
        for number, cut in enumerate(self.rule.cuts):
            others = [true[i] for i in range(len(true)) if i != cut.part]
            base = np.logical_and.reduce([placed[number].member, *others])
            self._count(view, found.steps[number], cut, placed[number], base, at)
        chosen = np.flatnonzero(could)
        ranks = view.rank[at[chosen]]
        codes = np.stack([p.codes[chosen] for p in placed], axis=1) if placed else found.codes
        found.codes, found.ranks = _smallest(codes, ranks, self.sample)
        return found

    def _count(
        self, view: View, steps: Steps, cut: Cut, placed: Placed, base: np.ndarray, at: np.ndarray
    ) -> None:
        known = base & (placed.codes != NEVER)
        steps.counts = np.bincount(placed.codes[known], minlength=len(steps.counts)).astype(np.int64)
        steps.nulls = int((base & ~known).sum())
        rows = np.flatnonzero(known)
        if not len(rows):
            return
        priority = view.priority[at]
        strata = placed.codes[rows].astype(np.int64) * STRATA // len(steps.counts)
        order = np.lexsort((priority[rows], strata))
        firsts = order[np.unique(strata[order], return_index=True)[1]]
        start = cut.start if cut.start is not None else np.nan
        distance = np.abs(placed.values[rows] - start)
        near = np.lexsort((priority[rows], distance)) if not view.far else np.zeros(0, np.int64)
        upper = placed.codes[rows] > placed.start
        sides = (
            [near[upper[near] == side][:NEAREST] for side in (False, True)] if placed.start >= 0 else [[], []]
        )
        picked = np.concatenate([firsts, *sides]).astype(np.int64)
        samples = view.samples(at[rows[picked]])
        rungs = [
            Rung(
                sample=sample,
                value=float(placed.values[rows[i]]),
                code=int(placed.codes[rows[i]]),
                distance=float(distance[i]) if cut.start is not None else 0.0,
            )
            for i, sample in zip(picked.tolist(), samples, strict=True)
        ]
        steps.strata = {int(strata[i]): rung for i, rung in zip(firsts.tolist(), rungs, strict=False)}
        rest = rungs[len(firsts) :]
        steps.below, steps.above = rest[: len(sides[0])], rest[len(sides[0]) :]

    def add(self, other: WhatIf) -> None:
        self.pictures += other.pictures
        self.kept += other.kept
        self.open += other.open
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            mine.add(theirs)
        codes, ranks = np.concatenate([self.codes, other.codes]), np.concatenate([self.ranks, other.ranks])
        self.codes, self.ranks = _smallest(codes, ranks, self.sample)

    def start_of(self, number: int) -> int:
        """Which of a cut's thresholds is the rule's; -1 where it has none."""
        return start_of(self.rule.cuts[number], self.edges[number])

    def passing(self, number: int, threshold: int) -> int:
        """Rows that pass everything else and this threshold of a cut; -1 is the cut while it is off."""
        cut, steps = self.rule.cuts[number], self.steps[number]
        if threshold < 0:
            return int(steps.counts.sum()) + steps.nulls if cut.off else 0
        passed = steps.counts[threshold + 1 :] if cut.above else steps.counts[: threshold + 1]
        return int(passed.sum())

    def kept_at(self, number: int, threshold: int) -> int:
        """Rows kept where one cut stands at another threshold."""
        return self.kept - self.passing(number, self.start_of(number)) + self.passing(number, threshold)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The values of one cut over rows, and their bins. member: where the cut applies at all. start: the bin
    border that is the rule's threshold, -1 without one."""

    values: np.ndarray
    codes: np.ndarray
    member: np.ndarray
    start: int


def place(table: pa.Table, cuts: Sequence[Cut], edges: Sequence[Sequence[str]]) -> list[Placed]:
    """The bin of every row for every cut."""
    texts = [cut.value for cut in cuts] + [cut.level or "NULL" for cut in cuts]
    answers = expressions.numbers(table, texts)
    found = []
    for i, (cut, borders) in enumerate(zip(cuts, edges, strict=True)):
        values, null = answers[i]
        levels, no_level = answers[len(cuts) + i]
        member = np.ones(len(table), bool)
        if cut.level:
            member = ~no_level & np.isclose(levels, cut.start or 0.0, rtol=1e-12, atol=0)
        codes = bins(values, borders, cut)
        codes[null] = NEVER
        if cut.mark:
            codes[np.asarray(table[cut.mark].is_null())] = ALWAYS
            member = np.asarray(table[cut.mark].is_valid())
        codes[~member] = ALWAYS
        found.append(Placed(values=values, codes=codes, member=member, start=start_of(cut, borders)))
    return found


def bins(values: np.ndarray, edges: Sequence[str], cut: Cut) -> np.ndarray:
    """How many thresholds each value reaches, or exceeds, whichever the comparison asks; NaN lies above all,
    as DuckDB has it."""
    kind = np.float32 if cut.single else np.float64
    borders = np.array([float(e) for e in edges], kind)
    side: Literal["left", "right"] = "right" if cut.op in (">=", "<") else "left"
    return np.searchsorted(borders, values.astype(kind), side).astype(np.uint16)


def start_of(cut: Cut, edges: Sequence[str]) -> int:
    return next((i for i, e in enumerate(edges) if cut.start is not None and float(e) == cut.start), -1)


def thresholds(values: np.ndarray, cut: Cut) -> list[str]:
    """Round thresholds over where values lie, the rule's own among them, as decimals.

    Values beyond (the outermost 0.2 % of a column with long tails) fall into the first and the last bin.
    """
    values = values[np.isfinite(values)]
    known = [] if cut.start is None else [cut.start]
    if not len(values) and not known:
        return []
    ordered = np.sort(values)
    tail = round(len(ordered) * OUTERMOST)
    low, high = min([*ordered[tail : tail + 1], *known]), max([*ordered[-tail - 1 :][:1], *known])
    step = _nice((high - low) / STEPS or abs(low) / STEPS or 1 / STEPS)
    if len(values) and np.all(values == np.round(values)):
        step = max(step, 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    if cut.op in (">", "<=") and first * step >= low:
        first -= 1  # the lowest value exceeds the first threshold
    found = {f"{i * step:.{decimals}f}" for i in range(first, last + 1)}
    found = {"0" + e.removeprefix("-0") if float(e) == 0 and e.startswith("-") else e for e in found}
    if cut.start is not None and not any(float(e) == cut.start for e in found):
        found.add(decimal(cut.start))
    return sorted(found, key=float)


def decimal(value: float) -> str:
    """A number without an exponent, as short as names it."""
    return np.format_float_positional(value, trim="-")


def _nice(step: float) -> float:
    """The next of 1, 2, 5, 10, ... at or above."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def _levels(cuts: Sequence[Cut]) -> dict[int, list[int]]:
    """The cuts of each part that has several, by the row."""
    found: dict[int, list[int]] = {}
    for number, cut in enumerate(cuts):
        if cut.level:
            found.setdefault(cut.part, []).append(number)
    return found


def _smallest(codes: np.ndarray, ranks: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    if len(ranks) > most:
        chosen = np.argpartition(ranks, most)[:most]
        codes, ranks = codes[chosen], ranks[chosen]
    return codes, ranks


def reference(
    values: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], cuts: Sequence[Cut]
) -> list[list[str]]:
    """The thresholds of each cut from the values that some shards have of it: [shard][cut] (values, null)."""
    found = []
    for number, cut in enumerate(cuts):
        known = [shard[number][0][~shard[number][1]] for shard in values]
        found.append(thresholds(np.concatenate([np.zeros(0), *known]), cut))
    return found
