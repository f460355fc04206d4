"""The what-if section: a panel for every threshold, with a slider, a histogram, and pictures on either side.

What stands here is the rule as it is; `whatif.js` moves the thresholds. Without it the panels show the same
histogram and pictures, and no control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from jobs.reporting.charts import tag
from jobs.reporting.cuts import Cut
from jobs.reporting.embed import json_in_script, packed
from jobs.reporting.gather import Facts
from jobs.reporting.survey import place
from jobs.reporting.text import clean, count, measure, plural
from jobs.reporting.whatif import NEAREST, Rung, Steps, WhatIf, decimal

BARS = 84
#: below and above a threshold, in words
BESIDE = {
    ">=": ("below", "at least"),
    "<": ("below", "at least"),
    ">": ("at most", "above"),
    "<=": ("at most", "above"),
}
SIGNS = {">=": "≥", ">": ">", "<=": "≤", "<": "<"}


def section(facts: Facts) -> dict[str, Any]:
    """`panels`, the words around them and the script's data; no panel where nothing can be moved."""
    found = facts.survey
    if found is None or not found.what_if.pictures or not any(len(e) > 1 for e in found.what_if.edges):
        return {"panels": [], "what_if_data": None, "what_if_words": ""}
    what = found.what_if
    panels = [_panel(facts, what, i) for i in range(len(what.rule.cuts)) if len(what.edges[i]) > 1]
    return {"panels": panels, "what_if_data": _data(what), "what_if_words": _words(facts, what)}


def _words(facts: Facts, what: WhatIf) -> str:
    text = (
        f"{count(what.kept)} of {plural(what.pictures, 'picture')} pass the rule as it is. Move a threshold: "
        "every other part of the rule stays in force."
    )
    if what.open > len(what.codes):
        text += (
            f" One threshold alone is counted over all of them; several together are estimated from "
            f"{count(len(what.codes))} of the {count(what.open)} pictures that could be kept."
        )
    if not facts.complete:
        text += f" Counted over {count(facts.rows.shards if facts.rows else 0)} of "
        text += f"{plural(facts.shards_in_all, 'image shard')}."
    return text


def _data(what: WhatIf) -> Markup:
    cuts = []
    for i, cut in enumerate(what.rule.cuts):
        cuts.append(
            {
                "edges": list(what.edges[i]),
                "counts": [int(n) for n in what.steps[i].counts],
                "nulls": what.steps[i].nulls,
                "above": cut.above,
                "start": what.start_of(i),
                "asked": "" if cut.start is None else decimal(cut.start),
                "off": cut.off,
                "inRule": cut.part >= 0,
                "part": cut.part,
                "suffix": cut.suffix,
                "sql": f"{cut.value} {cut.op} ",
                "mark": cut.mark,
                "beside": list(BESIDE[cut.op]),
            }
        )
    parts = [{"text": part.text, "pieces": list(part.pieces)} for part in what.rule.parts]
    return json_in_script(
        {
            "kept": what.kept,
            "pictures": what.pictures,
            "open": what.open,
            "rows": len(what.codes),
            "codes": packed(what.codes),
            "cuts": cuts,
            "parts": parts,
            "nearest": NEAREST,
        }
    )


def _panel(facts: Facts, what: WhatIf, number: int) -> dict[str, Any]:
    cut, edges, steps = what.rule.cuts[number], what.edges[number], what.steps[number]
    start = what.start_of(number)
    positions = len(edges) + (start < 0)
    off_first = start < 0 and cut.off == cut.above
    low, high = _sides(facts, cut, steps, start)
    return {
        "number": number,
        "name": clean(cut.value, 60),
        "only": only_words(cut),
        "asked": asked(cut),
        "asked_number": "" if cut.start is None else decimal(cut.start),
        "last": positions - 1,
        "position": start if start >= 0 else (0 if off_first else len(edges)),
        "from": edges[0],
        "to": edges[-1],
        "off_first": off_first,
        "off_last": start < 0 and not off_first,
        "off_word": "off" if cut.off else "all marked",
        "chart": _chart(cut, steps, edges, start, off_first, number),
        "low": low,
        "high": high,
        "low_name": _side_name(cut, upper=False, start=start),
        "high_name": _side_name(cut, upper=True, start=start),
        "words": _panel_words(what, number),
    }


def only_words(cut: Cut) -> str:
    """Which rows a cut is over; empty where it is over all."""
    if not cut.only:
        return ""
    return "all others" if cut.only == "otherwise" else "where " + clean(cut.only.replace('"', ""), 80)


def asked(cut: Cut) -> str:
    """What the rule asks, in words."""
    if cut.start is not None:
        return f"the rule asks {SIGNS[cut.op]} {decimal(cut.start)}"
    if cut.mark:
        return f"the rule drops all with a {clean(cut.mark, 60)}" if not cut.off else "not in the rule"
    return "not in the rule"


def _panel_words(what: WhatIf, number: int) -> str:
    cut, steps = what.rule.cuts[number], what.steps[number]
    inside = int(steps.counts.sum())
    text = f"{plural(inside, 'picture')} with a value pass everything else"
    text += f", {count(steps.nulls)} without a value." if steps.nulls else "."
    if cut.mark:
        text += (
            " A threshold frees what is marked as it is marked now; dedup run anew may choose other winners."
        )
    return text


def _side_name(cut: Cut, *, upper: bool, start: int) -> str:
    if start < 0:
        return "From low to high" if upper == cut.above else ""
    return (
        f"{'Kept' if upper == cut.above else 'Dropped'}, {BESIDE[cut.op][upper]} {decimal(cut.start or 0.0)}"
    )


def _sides(
    facts: Facts, cut: Cut, steps: Steps, start: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The cards on both sides; those that are not nearest wait for the script."""
    ladder = steps.ladder
    if start >= 0:
        shown = {r.sample.row["key"] for r in (*steps.below, *steps.above)}
        upper = [r.code > start for r in ladder]
    else:
        step = max(1, len(ladder) // (2 * NEAREST))
        shown = {r.sample.row["key"] for r in ladder[::step][: 2 * NEAREST]}
        upper = [cut.above == cut.off] * len(ladder)
        if cut.mark and not cut.off:
            upper = [not cut.above] * len(ladder)
    cards = [_card(facts, r, hidden=r.sample.row["key"] not in shown) for r in ladder]
    return (
        [card for card, up in zip(cards, upper, strict=True) if not up],
        [card for card, up in zip(cards, upper, strict=True) if up],
    )


def _card(facts: Facts, rung: Rung, *, hidden: bool) -> dict[str, Any]:
    row = rung.sample.row
    return {
        "picture": facts.pictures.small.get(place(rung.sample)),
        "caption": clean(row.get("caption"), 90),
        "value": measure(rung.value),
        "code": rung.code,
        "hidden": hidden,
    }


def _chart(cut: Cut, steps: Steps, edges: Sequence[str], start: int, off_first: bool, number: int) -> Markup:
    """Bars over the slider's positions; those that pass lie over the others, cut off at the threshold."""
    first = int(off_first)
    last = len(edges) - 1 + first + (start < 0 and not off_first)
    size = max(1, -(-len(steps.counts) // BARS))
    heights = [
        (c, min(c + size, len(steps.counts)), int(steps.counts[c : c + size].sum()))
        for c in range(0, len(steps.counts), size)
    ]
    most = max((n for _, _, n in heights), default=0) or 1
    bars = Markup("")
    for begin, end, n in heights:
        if n:
            tall = max(1.0, 100 * n / most)
            bars += tag(
                "rect",
                x=begin - 1 + first + 0.06 * size,
                y=100 - tall,
                width=(end - begin) - 0.12 * size,
                height=tall,
            )
    at = start + first if start >= 0 else (0 if off_first else last)
    passing = (at, last + 1.0 - at) if cut.above else (-1.0, at + 1.0)
    if start < 0 and cut.off:
        passing = (-1.0, last + 2.0)
    elif start < 0:
        passing = (0.0, 0.0)
    clip = tag(
        "clipPath",
        tag("rect", x=float(passing[0]), y=0, width=float(passing[1]), height=100),
        id=f"clip{number}",
    )
    body = (
        clip
        + tag("g", bars, class_="dropped")
        + tag("g", bars, class_="kept", clip_path=f"url(#clip{number})")
    )
    if start >= 0:
        body += tag("line", class_="asked", x1=at, x2=at, y1=0, y2=100)
    body += tag("line", class_="now", x1=at, x2=at, y1=0, y2=100)
    name = clean(cut.value, 60)
    return tag(
        "svg", body, class_="strip", viewBox=f"0 0 {max(last, 1)} 100", preserveAspectRatio="none",
        role="img",
        aria_label=f"Histogram of {name} from {edges[0]} to {edges[-1]}, pictures that pass everything else",
    )  # fmt: skip
