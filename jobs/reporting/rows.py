"""What is counted over the rows themselves: verdicts, the score's histogram, a seeded choice per reason.

A `Tally` holds counters, a histogram of fixed bins, and the few rows that may be shown; tallies add up, so
memory does not grow with the number of shards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from jobs.reporting.view import KEPT, SEEN, Sample, View

__all__ = ["BINS", "KEPT", "MISSED", "SEEN", "Sample", "Tally"]

BINS = np.linspace(-1.0, 1.0, 401)
MISSED = "missed"
FAILED_EXAMPLES = 4
#: reasons that a page can tell apart; what a foreign writer has beyond is counted as others
MAX_REASONS = 500


@dataclass(kw_only=True)
class Tally:
    """What was counted over some shards.

    Attributes:
        per_group: rows per verdict that may be shown.
        with_truth: whether some pairs' truth is known.
        shards: shards read.
        pictures: rows with a picture.
        verdicts: pictures per verdict: `kept`, a drop reason, or `seen` where nothing judges yet.
        histograms: `kept`, `dropped`, `right`, `wrong` -> counts in `BINS`.
        unscored: pictures without a score.
        truth_scores: scores of the pairs known to be `right` and `wrong`.
        truth: (`right` or `wrong`, `kept` or `dropped`) -> pictures.
        samples: verdict -> rows that may be shown.
        failed: drop reason of the crawl -> rows that may be shown.
        problems: shards that could not be read or judged, with the reason.
    """

    per_group: int = 12
    with_truth: bool = False
    shards: int = 0
    pictures: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    unscored: int = 0
    truth_scores: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    truth: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)

    def collect(self, view: View) -> Tally:
        """Counts one joined shard."""
        found = Tally(per_group=self.per_group, with_truth=self.with_truth, shards=1)
        pictures, kept = view.has_picture, view.kept
        found.pictures = int(pictures.sum())
        found.verdicts = Counter(view.verdict[pictures].tolist())
        found.unscored = int(np.isnan(view.scores[pictures]).sum())
        valid = pictures & ~np.isnan(view.scores)
        for name, chosen in (
            ("kept", kept),
            ("dropped", ~kept),
            ("right", view.answers == 0),
            ("wrong", view.answers == 1),
        ):
            found.histograms[name] = np.histogram(np.clip(view.scores[chosen & valid], -1, 1), BINS)[0]
        for name, answer in (("right", 0), ("wrong", 1)):
            known = pictures & (view.answers == answer)
            found.truth_scores[name].append(view.scores[known & valid])
            if view.judge:
                found.truth[name, "kept"] = int((known & kept).sum())
                found.truth[name, "dropped"] = int((known & ~kept).sum())
        self._choose(view, found)
        return found

    def _choose(self, view: View, found: Tally) -> None:
        pictures = view.has_picture
        for name in found.verdicts:
            rows = np.flatnonzero(pictures & (view.verdict == name))
            found.samples[name] = view.choose(rows, self.per_group)
        if self.with_truth and view.judge:
            rows = np.flatnonzero(pictures & view.kept & (view.answers == 1))
            found.samples[MISSED] = view.choose(rows, self.per_group)
        failures = np.array(pc.fill_null(view.table["reason"], "").to_pylist(), dtype=object)
        for name in set(failures[~pictures].tolist()):
            rows = np.flatnonzero(~pictures & (failures == name))
            found.failed[name] = view.choose(rows, FAILED_EXAMPLES)

    def add(self, other: Tally) -> None:
        self.shards += other.shards
        self.pictures += other.pictures
        self.unscored += other.unscored
        self.verdicts.update(other.verdicts)
        self.truth.update(other.truth)
        for name, counts in other.histograms.items():
            self.histograms[name] = self.histograms.get(name, 0) + counts
        for name, scores in other.truth_scores.items():
            self.truth_scores[name] += scores
        for mine, theirs, most in (
            (self.samples, other.samples, self.per_group),
            (self.failed, other.failed, FAILED_EXAMPLES),
        ):
            for name, rows in theirs.items():
                if name in mine or len(mine) < MAX_REASONS:
                    mine[name] = sorted(mine[name] + rows, key=lambda s: (s.priority, s.row["key"]))[:most]

    @property
    def scored(self) -> bool:
        return any(counts.sum() for counts in self.histograms.values())
