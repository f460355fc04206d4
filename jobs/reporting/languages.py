"""Languages: how many pictures of each were kept, and where their scores lie against their own threshold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reporting import expressions
from jobs.reporting.cuts import Cut
from jobs.reporting.view import View
from jobs.reporting.whatif import NEVER, bins

#: languages that are told apart; CLD3 knows 107
MAX_LANGUAGES = 300
UNKNOWN, OTHER = "", "\x00other"


@dataclass(kw_only=True)
class Languages:
    """The section of the languages.

    Attributes:
        cut: of the score's histograms, and `edges` its thresholds; None without a score.
        counts: language -> [pictures, kept].
        histograms: language -> [2, bins]: dropped, kept.
        levels: (language, threshold of the rule) -> pictures.
        single: the threshold of all rows, where it does not depend on the row.
    """

    cut: Cut | None = None
    edges: Sequence[str] = ()
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    levels: Counter[tuple[str, float]] = field(default_factory=Counter)

    def collect(self, view: View) -> Languages:
        found = Languages(cut=self.cut, edges=self.edges)
        if not view.has("language"):
            return found
        at = np.flatnonzero(view.has_picture)
        rows = view.table.take(pa.array(at, pa.int64()))
        named = pc.dictionary_encode(pc.fill_null(rows["language"], UNKNOWN).combine_chunks())
        names, which = named.dictionary.to_pylist(), np.asarray(named.indices)
        kept = view.kept[at].astype(np.int64)
        for i, name in enumerate(names):
            found.counts[name] = np.array([(which == i).sum(), kept[which == i].sum()])
        if self.cut is not None:
            self._scores(found, rows, names, which, kept)
        return found

    def _scores(
        self, found: Languages, rows: pa.Table, names: list[str], which: np.ndarray, kept: np.ndarray
    ) -> None:
        cut = self.cut
        assert cut is not None
        wanted = set(expressions.columns_in(expressions.parse(cut.value)))
        if cut.level:
            wanted |= set(expressions.columns_in(expressions.parse(cut.level)))
        table = expressions.selected(rows, wanted)
        (values, null), (levels, no_level) = expressions.numbers(table, [cut.value, cut.level or "NULL"])
        codes = bins(values, self.edges, cut)
        codes[null] = NEVER
        for i, name in enumerate(names):
            mine = (which == i) & ~null
            flat = np.bincount(
                kept[mine] * (len(self.edges) + 1) + codes[mine], minlength=2 * len(self.edges) + 2
            )
            found.histograms[name] = flat.reshape(2, -1)
            if cut.level:
                found.levels.update((name, float(t)) for t in levels[(which == i) & ~no_level])

    def add(self, other: Languages) -> None:
        known = defaultdict(lambda: OTHER)
        for name in other.counts:
            room = name in self.counts or len(self.counts) < MAX_LANGUAGES
            known[name] = name if room else OTHER
            self.counts[known[name]] = self.counts.get(known[name], 0) + other.counts[name]
        for name, counts in other.histograms.items():
            self.histograms[known[name]] = self.histograms.get(known[name], 0) + counts
        for (name, level), number in other.levels.items():
            self.levels[known[name], level] += number

    def threshold(self, name: str) -> float | None:
        """What the rule asks of a language; None where its rows have several thresholds or no one."""
        if self.cut is None or not self.cut.level:
            return self.cut.start if self.cut else None
        found = [level for (language, level) in self.levels if language == name]
        return found[0] if len(found) == 1 else None
