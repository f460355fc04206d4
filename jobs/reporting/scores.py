"""The score section: histogram with the threshold, and what another threshold would keep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.reporting import charts
from jobs.reporting.gather import Facts
from jobs.reporting.rows import BINS, Tally
from jobs.reporting.tables import Table
from jobs.reporting.text import clean, count, plural, share

WIDE, NARROW = 1060, 380
MOST_BARS = {WIDE: 72, NARROW: 36}


def section(facts: Facts) -> dict[str, Any]:
    """`histogram`, `truth`, `what_if` and the words around them; `histogram` is None without any score."""
    rows, name = facts.rows, clean(facts.config.score)
    if rows is None or not rows.scored:
        why = f"No picture has a {name} yet: the score stage has not run, or its folder was not given."
        return {"histogram": None, "truth": None, "no_scores": why}
    judged = facts.pack_stage is not None
    series = [("dropped", "dropped"), ("kept", "kept")] if judged else [("kept", "kept")]
    names = {
        "kept": "kept" if judged else "scored, not yet packed",
        "dropped": "dropped, for whatever reason",
    }
    return {
        "histogram": {
            "legend": [(names[key], style) for key, style in reversed(series)],
            "charts": _charts(
                rows, [(names[key], style, key) for key, style in series], facts, mirrored=False
            ),
        },
        "truth": _truth(facts, rows),
        "what_if": what_if(rows, facts.thresholds),
        "score_words": _words(facts, rows),
    }


def _words(facts: Facts, rows: Tally) -> str:
    name, scored = clean(facts.config.score), int(_all(rows).sum())
    text = f"{plural(scored, 'picture')} with a {name}"
    text += f", {count(rows.unscored)} without." if rows.unscored else "."
    for threshold in facts.thresholds:
        above = int(_at_least(_all(rows), threshold))
        text += f" {count(above)} of them ({share(above, scored)}) score at least {threshold:g}."
    if not facts.complete:
        whole = plural(facts.shards_in_all, "image shard")
        text += f" Counted over {count(rows.shards)} of {whole}, chosen by seed {facts.config.seed}."
    return text


def _truth(facts: Facts, rows: Tally) -> dict[str, Any] | None:
    right, wrong = (int(rows.histograms[name].sum()) for name in ("right", "wrong"))
    if not right + wrong:
        return None
    names = [("right captions", "right", "right"), ("wrong captions", "wrong", "wrong")]
    return {
        "words": truth_words(facts, rows),
        "legend": [
            (f"{name}, {'upwards' if key == 'right' else 'downwards'}", style) for name, style, key in names
        ],
        "charts": _charts(rows, names, facts, mirrored=True),
    }


def truth_words(facts: Facts, rows: Tally) -> str:
    """How the filter did on pairs whose truth is known."""
    numbers = rows.truth
    wrong = numbers["wrong", "kept"] + numbers["wrong", "dropped"]
    right = numbers["right", "kept"] + numbers["right", "dropped"]
    words = []
    if wrong:
        caught, missed = numbers["wrong", "dropped"], numbers["wrong", "kept"]
        told = f"{count(caught)} were dropped and {count(missed)} slipped through"
        words.append(f"Of {plural(wrong, 'wrong caption')}, {told}.")
    if right:
        kept, lost = numbers["right", "kept"], numbers["right", "dropped"]
        told = f"{count(kept)} were kept and {count(lost)} lost, to whatever rule"
        words.append(f"Of {plural(right, 'right caption')}, {told}.")
    if facts.auc is not None:
        words.append(f"The score alone tells right from wrong with a ROC AUC of {facts.auc:.3f}.")
    return " ".join(words)


def _charts(
    rows: Tally, names: Sequence[tuple[str, str, str]], facts: Facts, *, mirrored: bool
) -> tuple[Markup, Markup]:
    """The same histogram drawn for a wide and for a narrow window."""
    chosen = {key: rows.histograms[key] for _, _, key in names}
    label = f"Histogram of {clean(facts.config.score)}: " + ", ".join(
        f"{count(chosen[key].sum())} {name}" for name, _, key in names
    )
    drawn = []
    for width in (WIDE, NARROW):
        edges, counts = trimmed(chosen, facts.thresholds, MOST_BARS[width])
        chart = charts.histogram(
            edges,
            [(name, style, counts[key]) for name, style, key in names],
            thresholds=facts.thresholds,
            width=width,
            height=300 if mirrored else 260,
            mirrored=mirrored,
            label=label,
            axis=clean(facts.config.score),
        )
        drawn.append(chart)
    return drawn[0], drawn[1]


def trimmed(
    histograms: Mapping[str, np.ndarray], thresholds: Sequence[float], most: int
) -> tuple[list[float], dict[str, list[int]]]:
    """The occupied part of fine histograms with the thresholds in it, in at most about `most` bins
    of whole fine bins, laid so that the first threshold falls between two bars."""
    used = np.flatnonzero(sum(histograms.values()))
    marks = [int(np.clip(np.searchsorted(BINS, t + 1e-9) - 1, 0, len(BINS) - 2)) for t in thresholds]
    low, high = min([used[0], *marks]), max([used[-1], *marks]) + 1
    size = next(s for s in (1, 2, 4, 5, 8, 10, 20, 40) if (high - low) / s <= most - 2 or s == 40)
    origin = marks[0] if marks else 0
    first, last = low - (low - origin) % size, high + (origin - high) % size
    borders = np.clip(np.arange(first, last + 1, size), 0, len(BINS) - 1)
    edges = [round(float(BINS[i]), 6) for i in borders]
    pairs = list(itertools.pairwise(borders))
    return edges, {n: [int(h[a:b].sum()) for a, b in pairs] for n, h in histograms.items()}


def what_if(rows: Tally, thresholds: Sequence[float]) -> Table:
    """What nearby thresholds of the score would keep, all other rules aside."""
    scored = _all(rows)
    whole, known = int(scored.sum()), rows.histograms["wrong"].sum() > 0
    levels, current = _levels(scored, thresholds)
    lines = []
    for level, words in zip(levels, charts.tick_words(levels), strict=True):
        above = _at_least(scored, level)
        line = [f"≥ {words}", count(above), share(above, whole)]
        if known:
            wrong, right = rows.histograms["wrong"], rows.histograms["right"]
            line += [
                share(wrong.sum() - _at_least(wrong, level), wrong.sum()),
                share(right.sum() - _at_least(right, level), right.sum()),
            ]
        lines.append(tuple(line))
    head = ["Threshold", "Pictures kept", "Share"] + (
        ["Wrong captions caught", "Right captions lost"] if known else []
    )
    title = "What another threshold would keep, by the score alone"
    return Table(title=title, head=tuple(head), rows=tuple(lines), current=current)


def _levels(scored: np.ndarray, thresholds: Sequence[float]) -> tuple[list[float], int]:
    """About nine round thresholds over where the scores lie, the one in use among them."""
    cumulative = np.cumsum(scored) / max(1, scored.sum())
    low, high = (float(BINS[int(np.searchsorted(cumulative, q))]) for q in (0.02, 0.98))
    ticks = [t for t in charts.nice_ticks(low, high, 8) if -1 <= t <= 1]
    used = thresholds[0] if thresholds else None
    levels = sorted({*ticks, used} if used is not None else set(ticks))
    return levels, levels.index(used) if used is not None else -1


def _all(rows: Tally) -> np.ndarray:
    return rows.histograms["kept"] + rows.histograms["dropped"]


def _at_least(counts: np.ndarray, threshold: float) -> int:
    """Of a fine histogram; a threshold inside of a bin counts the bin's share."""
    whole = counts[BINS[:-1] >= threshold - 1e-9].sum()
    inside = int(np.searchsorted(BINS, threshold - 1e-9)) - 1
    if 0 <= inside < len(counts) and BINS[inside] < threshold - 1e-9:
        width = BINS[inside + 1] - BINS[inside]
        whole += counts[inside] * (BINS[inside + 1] - threshold) / width
    return round(float(whole))
