"""The funnel: a bar per stage on one scale, the drop reasons beside it."""

from __future__ import annotations

import re
from typing import Any

from jobs.reporting import charts
from jobs.reporting.books import StageFacts
from jobs.reporting.gather import Facts
from jobs.reporting.text import clean, count, plural, share

SHADES = 6
#: words for drop reasons that do not read well by themselves
WORDS = {
    "predicate": "the rule says no",
    "predicate_null": "the rule has no answer (a value is missing)",
    "not_in_uids": "not in the list of uids",
    "missing_in_shard": "no picture in the shard",
    "http_status": "HTTP error",
    "dns": "host not found",
    "no_alt": "no alt text",
    "no_url": "no address",
    "bad_url": "no valid address",
    "aspect_ratio": "too long and narrow",
    "not_an_image": "not a JPEG, PNG or WebP",
    "opt_out": "opted out",
    "max_per_text": "too many with this text",
    "max_per_domain": "too many of this domain",
    "below_top": "below the best share",
    "below_top_null": "no value to choose the best by",
    "no_caption_left": "no text left",
    "no_caption_left_null": "no text judged",
    "below_floor": "below the floor",
    "below_floor_null": "no value for the floor",
}


_OPPOSITE = {">=": "below", ">": "not above", "<=": "above", "<": "not below"}


def reason_words(reason: str) -> str:
    """A drop reason as a person reads it: `predicate: clip_score >= 0.28` gives `not clip_score >= 0.28`."""
    name, because, part = reason.partition(": ")
    if because and name == "predicate":
        return clean(_unmet(part), 120)
    if because and name == "predicate_null":
        found = re.fullmatch(r"(\w+) (>=|>|<=|<) CASE .* END", part, re.DOTALL)
        return clean(f"no value for {found[1] if found else part}", 120)
    preset, dot, rule = reason.partition(".")
    if dot and rule:
        return clean(f"{preset}: {rule.replace('_', ' ')}", 120)
    return clean(WORDS.get(reason) or reason.replace("_", " "), 120)


def _unmet(part: str) -> str:
    """A condition that does not hold, in words where it is a simple one."""
    if part == "duplicate_of IS NULL":
        return "duplicate of another picture"
    if found := re.fullmatch(r"(\w+)_duplicate_of IS NULL", part):
        return f"{found[1].replace('_', ' ')} duplicate of another picture"
    if part == "contaminated_by IS NULL":
        return "picture of a benchmark"
    if found := re.fullmatch(r"(\w+) (>=|>|<=|<) CASE .* END", part, re.DOTALL):
        return f"{found[1]} {_OPPOSITE[found[2]]} what the rule asks of it"
    if found := re.fullmatch(r"(\w+|\w+\(\w+\)) (>=|>|<=|<) (-?[\d.]+)", part):
        column, comparison, value = found.groups()
        return f"{column} {_OPPOSITE[comparison]} {value}"
    return f"fails {part}"


def shade(position: int) -> str:
    """The style class of the n-th most frequent reason."""
    return f"d{min(position, SHADES - 1) + 1}"


def funnel(facts: Facts) -> list[dict[str, Any]]:
    """One entry per given folder: a bar where rows were dropped or marked, a line otherwise."""
    stages = [facts.shown(stage) for stage in facts.stages]
    whole = max((s.taken for s in stages if s.role != "column"), default=0)
    return [_entry(stage, whole) for stage in stages]


def _entry(stage: StageFacts, whole: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": clean(stage.name), "bar": None, "warnings": _warnings(stage)}
    if stage.state == "absent":
        gone = f"; {plural(len(stage.quarantined), 'unit')} failed" if stage.quarantined else ""
        return {
            **entry,
            "sentence": f"This stage has not run (no finished unit in {clean(stage.folder)}){gone}.",
        }
    if stage.role == "column" and not stage.dropped:
        return {**entry, "sentence": " ".join([f"{stage.sentence}.", *_warnings(stage)])}
    segments = [("kept", float(stage.kept))]
    segments += [(shade(i), float(n)) for i, (_, n) in enumerate(stage.dropped)]
    reasons = [
        {"style": shade(i), "name": reason_words(reason), "number": count(n), "share": share(n, stage.taken)}
        for i, (reason, n) in enumerate(stage.dropped)
    ]
    return {
        **entry,
        "sentence": stage.sentence,
        "percent": share(stage.kept, stage.taken),
        "bar": charts.bar(segments, whole),
        "reasons": reasons,
    }


def _warnings(stage: StageFacts) -> list[str]:
    found = []
    if stage.planned > stage.units > 0:
        found.append(f"Not finished: {count(stage.units)} of {plural(stage.planned, 'unit')} stand.")
    if stage.quarantined:
        number, error = stage.quarantined[0]
        failed = plural(len(stage.quarantined), "unit")
        found.append(f"{failed} failed and stood aside; unit {number}: {clean(error, 200)}")
    return found
