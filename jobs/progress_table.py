"""The screen of `pairmill status`: how far the steps are, what their jobs do, what came of the rows.

Columns that say nothing of any step are left out: a chain without SLURM, or one that is done, is short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs import standing
from jobs.slurm import knowledge, wording
from jobs.slurm.knowledge import Jobs
from jobs.slurm.wording import clock
from jobs.standing import Standing

NOTHING = "-"
#: the most frequent reasons for which rows were dropped that a line names
REASONS = 4


@dataclass(frozen=True, kw_only=True)
class Line:
    """A step on the screen: how far its folder is, joined with what is known of its jobs.

    Attributes:
        standing: as the folder tells.
        word: what the step is, all in all.
        jobs: its jobs in a few words; empty for none.
        remarks: what a person has to know who is to mend it.
        known: the jobs as values, for scripts.
    """

    standing: Standing
    word: str
    jobs: str = ""
    remarks: Sequence[str] = ()
    known: Sequence[dict[str, object]] = ()


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What `pairmill status` shows of one chain, or of some folders (`chain` is empty then)."""

    lines: Sequence[Line]
    chain: str = ""
    run: Path | None = None
    silent: str = ""


def join(found: Standing, jobs: Jobs) -> Line:
    """A step's folder and its jobs together."""
    word = _word(found, jobs.word(found.name))
    if found.word == standing.DONE and word == standing.DONE:
        remarks: list[str] = []  # whatever failed, somebody has done it since
    else:
        remarks = wording.remarks(jobs, found.name)
    return Line(
        standing=found,
        word=word,
        jobs=wording.told(jobs, found.name),
        remarks=[*remarks, *_remarks(found, word)],
        known=wording.words_of(jobs.steps.get(found.name, ())),
    )


def _word(found: Standing, word: str) -> str:
    """The folder knows what is done, the jobs what is on its way; of what went wrong the jobs know more."""
    if found.word == standing.RUNNING or word == knowledge.RUNNING:
        return standing.RUNNING
    if word == knowledge.WAITING:
        return knowledge.WAITING
    if found.word == standing.DONE:
        return standing.DONE
    if word in (knowledge.FAILED, knowledge.CANCELLED, knowledge.STOPPED, knowledge.SUBMITTED):
        return word
    return found.word


def _remarks(found: Standing, word: str) -> list[str]:
    remarks = []
    if found.quarantined:
        allowed = f", {found.allowed} allowed" if found.allowed else ""
        units = "unit" if found.quarantined == 1 else "units"
        remarks.append(
            f"{found.quarantined} {units} quarantined{allowed}: _pairmill/quarantine of its output says why"
        )
    if found.pending and word != standing.RUNNING:
        remarks.append(f"{found.pending} replacements interrupted: run it again")
    if found.merged:
        remarks.append(f"{found.merged:.0%} of the manifests compacted")
    return remarks


def render(screen: Screen) -> str:
    """The screen as text."""
    head = [_headline(screen)] if screen.chain else []
    if screen.silent:
        head.append(f"SLURM does not answer: {screen.silent}")
    parts = ["\n".join(head), _progress(screen.lines), _rows(screen.lines), _all_remarks(screen.lines)]
    return "\n\n".join(part for part in parts if part)


def _headline(screen: Screen) -> str:
    """`chain.yaml: 2 of 7 steps done, 1 running, 4 waiting`"""
    words = Counter(line.word for line in screen.lines)
    done = words.pop(standing.DONE, 0)
    others = "".join(f", {number} {word}" for word, number in words.items())
    return f"{screen.chain}: {done} of {len(screen.lines)} steps done{others}"


def _progress(lines: Sequence[Line]) -> str:
    titles = ("step", "state", "units", "running", "failed", "quarantined", "rate", "left", "job")
    rows = []
    for line in lines:
        s = line.standing
        rows.append(
            (
                s.name,
                line.word,
                _units(s),
                _number(s.running),
                _number(s.retried),
                _number(s.quarantined),
                rate_told(s.rate),
                NOTHING if s.left is None else clock(s.left),
                line.jobs or NOTHING,
            )
        )
    runs = any(line.word == standing.RUNNING for line in lines)
    keep = (0, 1, 2, *((3, 6, 7) if runs else ()))
    return _table(titles, rows, keep=keep, right=(3, 4, 5, 6, 7))


def _units(s: Standing) -> str:
    if not s.total:
        return f"{s.done:,} {s.kind}".rstrip() if s.done else NOTHING
    return f"{s.done:,}/{s.total:,} {s.kind}".rstrip()


def _number(n: int) -> str:
    return f"{n:,}" if n else NOTHING


def rate_told(rate: float) -> str:
    """Units a second, a minute or an hour, whichever gives a number that one can grasp."""
    for seconds, name in ((1, "s"), (60, "min"), (3600, "h")):
        if rate * seconds >= 1 or (name == "h" and rate):
            return (
                f"{rate * seconds:,.1f}/{name}" if rate * seconds < 100 else f"{rate * seconds:,.0f}/{name}"
            )
    return NOTHING


def _rows(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        counts = line.standing.counts
        if counts is not None:
            reasons = ", ".join(f"{k} {v:,}" for k, v in counts.dropped.most_common(REASONS))
            rows.append((line.standing.name, f"{counts.taken:,}", f"{counts.kept:,}", reasons))
    return _table(("step", "in", "out", "dropped for"), rows, keep=(0, 1, 2), right=(1, 2)) if rows else ""


def _all_remarks(lines: Sequence[Line]) -> str:
    return "\n".join(f"{line.standing.name}: {remark}" for line in lines for remark in line.remarks)


def _table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, keep: Sequence[int], right: Sequence[int]
) -> str:
    """Columns two blanks apart: those to `keep`, and of the others those that have something to say."""
    shown = [i for i in range(len(titles)) if i in keep or any(row[i] not in ("", NOTHING) for row in rows)]
    table = [[cells[i] for i in shown] for cells in (titles, *rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(shown))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for cell, width, i in zip(row, widths, shown, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_json(screens: Sequence[Screen]) -> list[dict[str, Any]]:
    """The same as values, for scripts."""
    return [
        {
            "chain": screen.chain,
            "run_dir": str(screen.run) if screen.run else "",
            "slurm": {"answers": not screen.silent, "error": screen.silent},
            "steps": [_line_as_json(line) for line in screen.lines],
        }
        for screen in screens
    ]


def _line_as_json(line: Line) -> dict[str, Any]:
    s = line.standing
    values = asdict(replace(s, counts=None, word=""))
    del values["word"], values["counts"], values["name"]
    return {
        "step": s.name,
        "state": line.word,
        **values,
        "rows": s.counts.to_json() if s.counts is not None else None,
        "jobs": list(line.known),
        "jobs_told": line.jobs,
        "remarks": list(line.remarks),
    }
