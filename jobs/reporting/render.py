"""From facts to the page: words, numbers and charts, then one jinja2 template with autoescape.

The page is one file: style inside, charts as SVG, pictures as `data:` addresses, one script of our own where
there are thresholds to move. Its content security policy allows exactly that style and that script, by their
hashes, so that text from the web that got past escaping would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from jobs.reporting import charts, curation, gallery, scores, tables, thresholds
from jobs.reporting.books import StageFacts, named
from jobs.reporting.contact import draw
from jobs.reporting.funnel import funnel
from jobs.reporting.gather import Facts
from jobs.reporting.pictures import opened, shrink
from jobs.reporting.rows import Tally
from jobs.reporting.runs import RunFacts
from jobs.reporting.sheet import Sheet
from jobs.reporting.text import clean, count, duration, figure, plural, printable, redact, share
from pipeline import storage

MAX_CONFIG = 20_000


def render(facts: Facts) -> str:
    """The whole page."""
    style, script = _read("report.css"), _read("whatif.js")
    assert "</" not in script, "it would end its element"
    assert "<!--" not in script
    template = _environment().from_string(_read("report.html"))
    # both are ours and hold no `</`; escaping their quotes would break the hashes
    text = template.render(
        page=page(facts),
        style=Markup(style),
        style_hash=_mark(style),
        script=Markup(script),
        script_hash=_mark(script),
    )
    return text.encode("utf-8", "replace").decode() + "\n"


def render_sheet(sheet: Sheet, *, kind: str) -> tuple[bytes, int]:
    """A contact sheet as a file of a kind (`HTML`, `JPEG`, `PNG`), and how many pictures are unreadable."""
    name = storage.basename(sheet.tar)
    words = f"{plural(len(sheet.pictures), 'picture')} of {count(sheet.whole)}"
    if sheet.matching != sheet.whole:
        words += f", of {count(sheet.matching)} that match"
    if kind != "HTML":
        unreadable = sum(one.data is None or opened(one.data, side=16) is None for one in sheet.pictures)
        return draw(sheet, f"{clean(name)}: {words}", kind), unreadable
    style = _read("report.css")
    pictures = []
    for one in sheet.pictures:
        small = shrink(one.data) if one.data is not None else None
        address = "data:image/jpeg;base64," + base64.b64encode(small).decode() if small else None
        pictures.append(
            {"address": address, "key": clean(one.key), "caption": one.caption, "told": one.values}
        )
    text = (
        _environment()
        .from_string(_read("sheet.html"))
        .render(
            title=clean(name),
            words=words + ".",
            pictures=pictures,
            style=Markup(style),
            style_hash=_mark(style),
        )
    )
    data = text.encode("utf-8", "replace") + b"\n"
    return data, sum(one["address"] is None for one in pictures)


def _environment() -> Environment:
    return Environment(
        loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _mark(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _read(name: str) -> str:
    return resources.files("jobs.reporting").joinpath(name).read_text(encoding="utf-8")


def page(facts: Facts) -> dict[str, Any]:
    """The values that the template shows: plain strings and numbers, and charts as markup."""
    config = facts.config
    return {
        "title": clean(config.title),
        "attribution": clean(config.attribution, 500),
        "lead": lead(facts),
        "figures": key_figures(facts),
        "notes": [clean(note, 600) for note in (*facts.notes, *_left_out(facts))],
        "funnel": funnel(facts),
        "rule": clean(facts.rule, 600),
        "score_name": clean(config.score),
        **scores.section(facts),
        **thresholds.section(facts),
        **gallery.section(facts),
        **curation.section(facts),
        "runs": [_run(run) for run in facts.runs],
        "results": tables.results(facts.runs),
        "configs": _configs(facts),
        "work": _work(facts.stages),
        "versions": tables.Table(
            title="Versions of the installation that wrote this report",
            head=("Package", "Version"),
            rows=tuple((name, clean(version)) for name, version in facts.versions),
        ),
    }


def _left_out(facts: Facts) -> list[str]:
    if not facts.pictures.left_out:
        return []
    many = plural(facts.pictures.left_out, "picture")
    return [f"{many} left out: the page stays below {facts.config.page_mb:g} MB (--page_mb, --thumbnails)"]


def lead(facts: Facts) -> str:
    """One or two sentences on what came of it all."""
    known = [s.sentence for s in (facts.pictures_stage, facts.pack_stage) if s]
    if not known:
        stood = [s.sentence for s in facts.stages if s.state != "absent"]
        known = stood[:1] or ["No data stage has run yet"]
    text = ", and ".join(known) + "."
    if facts.latest:
        text += f" Last unit finished {facts.latest.replace('T', ' ').replace('Z', ' UTC')}."
    return text


def key_figures(facts: Facts) -> list[tuple[str, str, str]]:
    """(name, number, what it is out of)"""
    found = []
    crawl, pack, rows = facts.pictures_stage, facts.pack_stage, facts.rows
    if discover := named(facts.stages, "discover"):
        found.append(("Candidate pairs", count(discover.kept), f"of {plural(discover.taken, 'image tag')}"))
    if crawl:
        found.append(
            (
                "Pictures",
                count(crawl.kept),
                f"of {plural(crawl.taken, 'link')}, {share(crawl.kept, crawl.taken)}",
            )
        )
    if pack:
        found.append(
            (
                "Training pairs",
                count(pack.kept),
                f"of {plural(pack.taken, 'picture')}, {share(pack.kept, pack.taken)}",
            )
        )
    if rows and (wrong := _known(rows, "wrong")):
        caught = rows.truth["wrong", "dropped"]
        found.append(("Wrong captions caught", count(caught), f"of {count(wrong)}, {share(caught, wrong)}"))
    if facts.auc is not None:
        found.append(("ROC AUC of the score", f"{facts.auc:.3f}", "right against wrong captions"))
    return found + tables.headline(facts.runs)


def _known(rows: Tally, answer: str) -> int:
    return rows.truth[answer, "kept"] + rows.truth[answer, "dropped"]


def _run(run: RunFacts) -> dict[str, Any]:
    words = []
    if not run.exists:
        words.append("has not run: there is no such folder")
    elif not run.curves:
        words.append("has logged nothing yet")
    else:
        words += [run.summary, f"{plural(run.steps, 'step')} logged", run.state]
    if run.torn:
        words.append(f"{plural(run.torn, 'line')} of metrics.jsonl cut off")
    curves = [
        {
            "title": clean(curve.title),
            "last": f"{figure(curve.last)} {curve.unit}".strip(),
            "chart": charts.curve(curve),
        }
        for curve in run.curves
    ]
    return {"name": clean(run.name), "words": clean(" · ".join(w for w in words if w)), "curves": curves}


def _configs(facts: Facts) -> list[tuple[str, str]]:
    found = [
        (s.name if s.name in s.folder else f"{s.name} ({storage.basename(s.folder)})", s.resolved)
        for s in facts.stages
    ]
    for run in facts.runs:
        found += [(f"train ({run.name})", run.resolved), (f"evaluate ({run.name})", run.evaluated)]
    return [(clean(name), redact(printable(text))[:MAX_CONFIG]) for name, text in found if text.strip()]


def _work(stages: tuple[StageFacts, ...]) -> tables.Table:
    rows = []
    for stage in stages:
        state = {"absent": "has not run", "partial": "not finished", "done": "done"}[stage.state]
        units = f"{count(stage.units)} of {count(max(stage.planned, stage.units))}"
        when = stage.finished.replace("T", " ").replace("Z", "") or "–"
        rows.append((clean(stage.name), state, units, duration(stage.seconds) if stage.units else "–", when))
    head = ("Stage", "State", "Units", "Work", "Last unit, UTC")
    return tables.Table(title="Work done, summed over the units of each stage", head=head, rows=tuple(rows))
