"""Pictures kept and dropped, a seeded sample per verdict, and the links that gave no picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.reporting.funnel import reason_words
from jobs.reporting.gather import Facts
from jobs.reporting.rows import KEPT, MISSED, SEEN, Sample
from jobs.reporting.text import MAX_CAPTION, clean, count, host_of, plural, safe_url, share

MAX_GROUPS = 24


def section(facts: Facts) -> dict[str, Any]:
    """`groups` of cards and `failed` links, with the words around them."""
    stage, rows = facts.pictures_stage, facts.rows
    if stage is None or rows is None:
        gone = "The crawl has not run, or its folder was not given: there are no pictures."
        return {"groups": [], "no_pictures": gone, "failed": [], "no_failed": gone}
    names = [v for v, _ in rows.verdicts.most_common()]
    order = [v for v in (KEPT, SEEN) if v in names]
    order += [MISSED] if rows.samples.get(MISSED) else []
    order += [v for v in names if v not in order]
    groups = [_group(facts, verdict) for verdict in order[:MAX_GROUPS] if rows.samples.get(verdict)]
    chosen = f"A random choice per verdict (seed {facts.config.seed}), not the best and not the worst."
    if not facts.complete:
        chosen += f" Taken from {count(rows.shards)} of {plural(facts.shards_in_all, 'image shard')}."
    return {
        "groups": groups,
        "pictures_words": chosen,
        "no_pictures": "The crawl brought no picture in.",
        **_failed(facts),
    }


def _group(facts: Facts, verdict: str) -> dict[str, Any]:
    rows = facts.rows
    assert rows is not None
    samples = rows.samples[verdict]
    if verdict == MISSED:
        number = rows.truth["wrong", "kept"]
        name, style, reason = "Kept, though the caption is wrong", "wrong", "kept"
        words = f"{plural(number, 'wrong caption')} slipped through"
    else:
        number = rows.verdicts[verdict]
        name, style, reason = _heading(verdict)
        words = f"{plural(number, 'picture')}, {share(number, rows.pictures)} of those that were crawled"
    words += f"; {len(samples)} shown" if len(samples) < number else ""
    return {"name": name, "style": style, "words": words, "cards": [_card(facts, s, reason) for s in samples]}


def _heading(verdict: str) -> tuple[str, str, str]:
    """(heading, style, word on each card)"""
    if verdict == KEPT:
        return "Kept", "kept", "kept"
    if verdict == SEEN:
        return "Crawled, not yet judged", "kept", "crawled"
    words = reason_words(verdict)
    return f"Dropped: {words}", "dropped", words


def _card(facts: Facts, sample: Sample, reason: str) -> dict[str, Any]:
    row = sample.row
    url = safe_url(row.get("url"))
    width, height = (
        row.get("original_width") or row.get("width"),
        row.get("original_height") or row.get("height"),
    )
    return {
        "picture": facts.pictures.large.get((sample.shard, row["key"])),
        "caption": clean(row.get("caption"), MAX_CAPTION),
        "score": None if sample.score is None else f"{sample.score:.3f}",
        "wrong": bool(sample.wrong),
        "reason": reason,
        "size": f"{width:.0f}×{height:.0f}" if width and height else "",
        "url": url,
        "host": host_of(url),
    }


def _failed(facts: Facts) -> dict[str, Any]:
    """Reasons of the crawl with examples; numbers from its manifests where they tell this reason."""
    stage, rows = facts.pictures_stage, facts.rows
    assert stage is not None
    assert rows is not None
    counted = dict(stage.dropped)
    reasons = sorted(rows.failed, key=lambda r: (-counted.get(r, 0), r))
    lost = stage.taken - stage.kept
    return {
        "failed": [
            {
                "name": reason_words(reason or "unknown"),
                "number": count(counted[reason]) if reason in counted else "–",
                "examples": _examples(rows.failed[reason]),
            }
            for reason in reasons
        ],
        "failed_words": f"{plural(lost, 'link')} of {count(stage.taken)} gave no picture; a few of each.",
        "no_failed": "Every link gave a picture.",
    }


def _examples(samples: Sequence[Sample]) -> list[tuple[str, str | None, str]]:
    """(caption, link or None, its host or the address as text)"""
    found = []
    for sample in samples:
        url = safe_url(sample.row.get("url"))
        words = host_of(url) if url else clean(sample.row.get("url"), 80)
        found.append((clean(sample.row.get("caption"), 100), url, words))
    return found
