"""Words, tables and cards of what curation found: languages, hosts, opt-outs, duplicates, captions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.reporting import charts
from jobs.reporting.bootstrapped import Pair, Written
from jobs.reporting.clusters import CONTAMINATED, KINDS, Clusters, Loser
from jobs.reporting.gather import Facts
from jobs.reporting.hitters import Hitters
from jobs.reporting.languages import OTHER, UNKNOWN, Languages
from jobs.reporting.rows import KEPT, SEEN
from jobs.reporting.sites import OPT_OUT, Sites
from jobs.reporting.survey import Survey, place
from jobs.reporting.tables import Table
from jobs.reporting.text import MAX_WORD, clean, count, measure, plural, share
from jobs.reporting.whatif import decimal

#: rows of a table, and histograms of languages
HOSTS, LANGUAGES, CHARTS = 20, 20, 6
BARS = 40
REFUSED = {
    OPT_OUT: "opted out",
    "rules_unavailable": "rules of the site could not be read",
    "taken_down": "taken down",
}


def section(facts: Facts) -> dict[str, Any]:
    found = facts.survey
    if found is None:
        return {"languages": None, "sites": None, "clusters": None, "captions": None}
    return {
        "languages": _languages(facts, found.languages),
        "sites": _sites(facts, found.sites),
        "clusters": _clusters(facts, found),
        "captions": _captions(facts, found),
    }


def _languages(facts: Facts, found: Languages) -> dict[str, Any] | None:
    if not found.counts:
        return None
    ranked = sorted(found.counts, key=lambda name: (-int(found.counts[name][0]), name))
    shown = [name for name in ranked if name != OTHER][:LANGUAGES]
    rest = [name for name in ranked if name not in shown]
    whole, all_kept = (int(sum(c[i] for c in found.counts.values())) for i in (0, 1))
    rows = [
        _language_row(_language(name), found.counts[name], whole, all_kept, found.threshold(name))
        for name in shown
    ]
    if rest:
        total = np.sum([found.counts[name] for name in rest], axis=0)
        rows.append(_language_row(f"{len(rest)} others", total, whole, all_kept, None))
    if found.cut is None or found.cut.start is None:
        rows = [row[:-1] for row in rows]
    head = ("Language", "Pictures", "Share", "Kept", "Kept of them", "Share of the kept", "Threshold")
    return {
        "table": Table(title="Pictures by language", head=head[: len(rows[0])], rows=tuple(rows)),
        "charts": _language_charts(found, shown, rest),
        "words": f"{plural(len(found.counts), 'language')}, as CLD3 names them.",
        "name": clean(facts.config.score),
    }


def _language(name: str) -> str:
    return "unknown" if name == UNKNOWN else "others" if name == OTHER else clean(name, 20)


def _language_row(
    name: str, counts: np.ndarray, whole: int, kept: int, threshold: float | None
) -> tuple[str, ...]:
    pictures, mine = int(counts[0]), int(counts[1])
    asked = "–" if threshold is None else decimal(threshold)
    return (
        name, count(pictures), share(pictures, whole), count(mine), share(mine, pictures), share(mine, kept),
        asked,
    )  # fmt: skip


def _language_charts(found: Languages, shown: Sequence[str], rest: Sequence[str]) -> list[dict[str, Any]]:
    """A histogram for each of the first languages, and one for all others, on one scale of scores."""
    cut = found.cut
    if cut is None or len(found.edges) < 2:
        return []
    groups = [(_language(name), [name]) for name in shown[:CHARTS]]
    others = [*shown[CHARTS:], *rest]
    groups += [(f"{len(others)} others", others)] if others else []
    charted = []
    for title, names in groups:
        known = [found.histograms[name] for name in names if name in found.histograms]
        counts = np.sum(known, axis=0) if known else np.zeros((2, len(found.edges) + 1), int)
        if not counts.sum():
            continue
        asked = {found.threshold(name) for name in names}
        lines = [t for t in asked if t is not None] if len(asked) == 1 else []
        label = f"{title}: {count(counts[1].sum())} kept, {count(counts[0].sum())} dropped"
        charted.append(
            {
                "title": title,
                "beside": plural(int(counts.sum()), "picture"),
                "chart": _chart(found, counts, lines, label),
            }
        )
    return charted


def _chart(found: Languages, counts: np.ndarray, lines: Sequence[float], label: str) -> Markup:
    edges = [float(e) for e in found.edges]
    size = max(1, -(-(len(edges) - 1) // BARS))
    # whole groups of bins from the left border on; a threshold falls where it falls
    borders = [*range(0, len(edges) - 1, size), len(edges) - 1]
    inner = counts[:, 1:-1]
    sums = [[int(row[a:b].sum()) for a, b in itertools.pairwise(borders)] for row in inner]
    return charts.histogram(
        [edges[b] for b in borders],
        [("dropped", "dropped", sums[0]), ("kept", "kept", sums[1])],
        thresholds=lines, width=340, height=190, label=label, axis="",
    )  # fmt: skip


def _sites(facts: Facts, found: Sites) -> dict[str, Any] | None:
    hosts = [(name, numbers) for name, numbers in found.hosts.top(HOSTS + 1) if name][:HOSTS]
    if not hosts:
        return None
    links = int(sum(n[0] for n in found.hosts.counts.values()))
    judged = facts.pack_stage is not None
    rows = []
    for name, (tried, pictures, kept) in hosts:
        row: tuple[str, ...] = (clean(name, MAX_WORD), count(tried), share(tried, links), count(pictures))
        row += (count(kept), share(kept, pictures)) if judged else ()
        rows.append(row)
    head = ("Host", "Links", "Share", "Pictures") + (("Kept", "Kept of them") if judged else ())
    many = len([name for name in found.hosts.counts if name])
    words = (
        f"{plural(many, 'host')}, {links:,} links."
        if not found.hosts.error
        else (
            f"More than {count(many)} hosts. Counts are approximate: each may be too low by up to "
            f"{count(found.hosts.error)}."
        )
    )
    return {
        "words": words + _partly(facts),
        "table": Table(title="Most frequent hosts", head=head, rows=tuple(rows)),
        **_refused(found),
    }


def _refused(found: Sites) -> dict[str, Any]:
    """Opt-outs by what said so, and by host."""
    ranked = sorted(found.words.items(), key=lambda item: (-item[1], item[0]))
    rows = tuple(
        (f"{REFUSED[reason]}: {clean(words, 60)}" if words else REFUSED[reason], count(number))
        for (reason, words), number in ranked[:HOSTS]
    )
    asked = tuple((clean(name, MAX_WORD) or "–", count(n[0])) for name, n in found.asked.top(HOSTS // 2))
    total = found.refused[OPT_OUT]
    words = f"{plural(total, 'link')} of sites that asked not to be collected; none was fetched or kept."
    return {
        "opt_out_words": words if total else "No site that was asked opted out.",
        "opt_outs": Table(title="By what said so", head=("Why", "Links"), rows=rows) if rows else None,
        "opt_out_hosts": Table(title="By host", head=("Host", "Links"), rows=asked) if asked else None,
    }


def _partly(facts: Facts) -> str:
    if facts.complete or facts.rows is None:
        return ""
    return f" Counted over {count(facts.rows.shards)} of {plural(facts.shards_in_all, 'image shard')}."


def _clusters(facts: Facts, found: Survey) -> dict[str, Any] | None:
    duplicates = found.clusters
    if not duplicates.present:
        return None
    kinds = [
        _kind(facts, found, mark, alike, name) for mark, alike, name in KINDS if mark in duplicates.present
    ]
    return {
        "kinds": kinds,
        "contaminated": _contaminated(facts, duplicates),
        "partly": _partly(facts).strip(),
    }


def _kind(facts: Facts, found: Survey, mark: str, alike: str, name: str) -> dict[str, Any]:
    kind = found.clusters.kinds[mark]
    winners: Hitters = kind.winners
    if not kind.marked:
        return {"name": name, "words": "None was marked.", "clusters": []}
    words = f"{plural(kind.marked, 'picture')} marked as a duplicate of {count(len(winners.counts))}"
    words += " or more others" if winners.error else (" other" if len(winners.counts) == 1 else " others")
    words += (
        f"; counts are approximate, each may be too low by up to {count(winners.error)}."
        if winners.error
        else "."
    )
    words += f" On each picture its {alike.rpartition('_')[2]}." if alike else ""
    shown = []
    for key, losers in found.top_clusters(mark):
        cards = [_winner(facts, found, key)]
        cards += [_loser(facts, loser) for loser in kind.losers.get(key, ())]
        hidden = losers - (len(cards) - 1)
        shown.append(
            {
                "words": plural(losers, "duplicate"),
                "cards": cards,
                "more": count(hidden) if hidden > 0 else "",
            }
        )
    return {"name": name, "words": words, "clusters": shown}


def _winner(facts: Facts, found: Survey, key: str) -> dict[str, Any]:
    if key not in found.winners:
        return {"picture": None, "caption": clean(key, 40), "mark": "wins", "style": "wins", "beside": ""}
    shard, row = found.winners[key]
    return {
        "picture": facts.pictures.small.get((shard.sibling(".tar"), key)),
        "caption": clean(row.get("caption"), 90), "mark": "wins", "style": "wins", "beside": "",
    }  # fmt: skip


def _loser(facts: Facts, loser: Loser) -> dict[str, Any]:
    sample = loser.sample
    mark = loser.why.replace("_", " ") if loser.measure is None else measure(loser.measure)
    kept = sample.judgement in (KEPT, SEEN)
    return {
        "picture": facts.pictures.small.get(place(sample)),
        "caption": clean(sample.row.get("caption"), 90),
        "mark": clean(mark, 40), "style": "",
        "beside": ("kept" if kept else "dropped") if sample.judgement != SEEN else "",
    }  # fmt: skip


def _contaminated(facts: Facts, found: Clusters) -> dict[str, Any] | None:
    if CONTAMINATED not in found.present:
        return None
    total = sum(found.sets.values())
    cards = []
    for _, sample, name, distance in found.hits:
        cards.append(
            {
                "picture": facts.pictures.small.get(place(sample)),
                "caption": clean(sample.row.get("caption"), 90),
                "mark": "" if distance is None else measure(distance), "style": "",
                "beside": clean(name, 60),
            }
        )  # fmt: skip
    rows = tuple((clean(name, 60), count(n)) for name, n in found.sets.most_common(HOSTS))
    return {
        "words": f"{plural(total, 'picture')} that a benchmark holds too; on each picture its distance."
        if total
        else "No picture of a benchmark.",
        "table": Table(title="By benchmark", head=("Benchmark", "Pictures"), rows=rows) if rows else None,
        "cards": cards,
    }


def _captions(facts: Facts, found: Survey) -> dict[str, Any] | None:
    captions = found.captions
    if not captions.present:
        return None
    words = f"{plural(captions.texts, 'synthetic caption')} for {plural(captions.worked, 'picture')}."
    if captions.compared:
        told = f"{count(captions.better)} ({share(captions.better, captions.compared)})"
        words += f" For {told} of {count(captions.compared)} pictures the filter believes the best synthetic "
        words += "caption more than the web’s."
    return {
        "words": words + _partly(facts),
        "pairs": [_pair(facts, pair) for pair in captions.pairs],
        "packed": any(pair.packed for pair in captions.pairs),
    }


def _pair(facts: Facts, pair: Pair) -> dict[str, Any]:
    row = pair.sample.row
    web = Written(text=str(row.get("caption") or ""), itm=pair.web_itm, clip=pair.web_clip)
    lines = [_line("web", web, pair)] + [_line("synthetic", one, pair) for one in pair.texts]
    scores = [("itm", "ITM"), ("clip", "CLIP"), ("clip2", "CLIP 2")]
    # a column in which nothing stands is left out
    used = [(key, title) for key, title in scores if any(line[key] for line in lines)]
    return {
        "picture": facts.pictures.large.get(place(pair.sample)),
        "caption": clean(row.get("caption"), 220),
        "lines": lines,
        "scores": used,
        "more": count(pair.more) if pair.more else "",
    }


def _line(source: str, one: Written, pair: Pair) -> dict[str, Any]:
    chosen = pair.packed is not None and pair.packed[0] == one.text and pair.packed[1] in (source, "")
    shown = {name: "" if value is None else f"{value:.3f}" for name, value in
             (("itm", one.itm), ("clip", one.clip), ("clip2", one.clip2))}  # fmt: skip
    return {"source": source, "text": clean(one.text, 220) or "–", "chosen": chosen, **shown}
