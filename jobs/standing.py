"""How far a step is, as its folder tells: manifests, quarantine, pulses of runs, the log of a training."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import evaluate
from jobs.chain import Step
from models.training import rundir
from pipeline import commit, manifest, pulse, storage
from pipeline.errors import ConfigError, InputError
from pipeline.pulse import Pulse
from pipeline.stage import Counts

#: bytes at the end of metrics.jsonl that surely hold its last row
TAIL = 1 << 16

NOT_STARTED, RUNNING, DONE = "not started", "running", "done"
FAILED, STOPPED, INTERRUPTED = "failed", "stopped", "interrupted"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far one step or folder is.

    Attributes:
        name: of the step, or of the folder.
        word: what it is, for a person, by its folder alone.
        done: units that stand; steps of a training.
        total: how many there are; 0: not known (yet).
        kind: `steps` of a training, the part of a step of several stages that is at work; empty for units.
        running: units under way just now.
        retried: attempts at units that have failed in the runs under way.
        quarantined: units given up after three attempts, until a run is tried again.
        allowed: so many of these may be (`--allow-failed`).
        rate: units a second, of all runs under way together; 0: not known (yet).
        left: seconds until all units are done at this rate; None: not known.
        pending: units whose replacement a crash has interrupted.
        merged: share of the manifests that `compact` has merged, 0 to 1.
        counts: rows in, out, and dropped for which reason; None where there is nothing to count.
        pulses: the runs under way.
    """

    name: str
    word: str = NOT_STARTED
    done: int = 0
    total: int = 0
    kind: str = ""
    running: int = 0
    retried: int = 0
    quarantined: int = 0
    allowed: int = 0
    rate: float = 0.0
    left: float | None = None
    pending: int = 0
    merged: float = 0.0
    counts: Counts | None = None
    pulses: Sequence[Pulse] = field(default_factory=tuple)


#: whether a pulse counts: SLURM may know that its job has ended
Lives = Callable[[Pulse], bool]


def _always(_: Pulse) -> bool:
    return True


def of_step(step: Step, lives: Lives = _always) -> Standing:
    """How far a step of a chain is."""
    if step.verb.stage:
        return _of_stages(step, lives)
    if step.job == "train":
        return of_training(step.name, Path(step.output), lives)
    done = _evaluated(step) if step.job == "evaluate" else bool(step.output) and storage.exists(step.output)
    return Standing(name=step.name, word=DONE if done else NOT_STARTED)


def _evaluated(step: Step) -> bool:
    try:
        return evaluate.is_done(step.config)
    except (ConfigError, InputError, OSError, ValueError):  # no model to evaluate yet
        return False


def _of_stages(step: Step, lives: Lives) -> Standing:
    """Of a verb's last stage, whose folder is the step's output; of one before it while that is at work."""
    output, allowed = step.output, step.request.options.allow_failed
    last = of_folder(step.name, output, lives, allowed=allowed)
    if last.pulses or last.total:
        return last
    for place in _inner_folders(step):
        kind = storage.basename(place).lstrip("_")
        part = of_folder(step.name, place, lives, allowed=allowed, kind=kind)
        if part.pulses or (part.total and part.word != DONE):
            return part
        if part.total:
            last = Standing(name=step.name, word=STOPPED)  # one part is done, and the next has not begun
    return last


def _inner_folders(step: Step) -> list[str]:
    """Of the stages before the last one, where the step's options can tell them by now."""
    try:
        stages = step.verb.stages(step.config, step.output) if step.verb.stages else ()
    except (ConfigError, InputError, OSError, ValueError):
        return []
    return [place for _, place in list(stages)[:-1] if place != step.output]


def of_folder(
    name: str, output: str, lives: Lives = _always, *, allowed: int = 0, kind: str = ""
) -> Standing:
    """How far one output folder is."""
    planned = {unit.number for unit in manifest.read_units(output)}
    done = manifest.list_done(output)
    quarantined = manifest.list_quarantined(output) - done.keys()
    places = storage.list_folders(commit.pending_folder(output))
    pending = sum(storage.exists(storage.join(url, commit.INTENT)) for url in places)
    pulses = [p for p in pulse.living(output) if lives(p)]
    rate = sum(p.rate for p in pulses)
    left = max(len(planned) - len(done) - len(quarantined), _left_of_runs(pulses))
    return Standing(
        name=name,
        word=_word(len(planned), len(done), len(quarantined), allowed, pending, bool(pulses)),
        done=len(done),
        total=len(planned),
        kind=kind,
        running=sum(p.running for p in pulses),
        retried=sum(p.failed for p in pulses),
        quarantined=len(quarantined),
        allowed=allowed,
        rate=rate,
        left=left / rate if rate else None,
        pending=pending,
        merged=sum(d.compacted is not None for d in done.values()) / (len(done) or 1),
        # what a part of a step makes of its rows is between the parts
        counts=manifest.total_counts(manifest.iter_all(output)) if done and not kind else None,
        pulses=pulses,
    )


def _left_of_runs(pulses: Sequence[Pulse]) -> int:
    """Units that the runs under way have before them. Two runs of one task do the same units; a `retry` does
    units that stand."""
    by_task: dict[str, int] = defaultdict(int)
    for run in pulses:
        by_task[run.task] = max(by_task[run.task], run.left)
    return sum(by_task.values())


def _word(total: int, done: int, quarantined: int, allowed: int, pending: int, runs: bool) -> str:
    if runs:
        return RUNNING
    if not total:
        return NOT_STARTED
    if pending:
        return INTERRUPTED
    if done + quarantined >= total and quarantined <= allowed:
        return DONE
    return FAILED if quarantined > allowed else STOPPED


def of_training(name: str, run: Path, lives: Lives = _always) -> Standing:
    """How far a training is, by its run folder."""
    record = rundir.read_record(run)
    if record is None:
        return Standing(name=name)
    pulses = [p for p in pulse.living(str(run)) if lives(p)]
    total = int(record.get("steps") or 0)
    if record.get("state") == rundir.FINISHED:
        last = int(_last_row(run).get("step", 0))
        return Standing(name=name, word=DONE, done=total or last, total=total or last, kind="steps")
    row = _last_row(run)
    done = int(row.get("step", 0))
    batch_size = int(record.get("semantic", {}).get("batch_size") or 0)
    rate = float(row.get("samples_per_s", 0.0)) / batch_size if pulses and batch_size else 0.0
    return Standing(
        name=name,
        word=RUNNING if pulses else STOPPED,
        done=done,
        total=total,
        kind="steps",
        rate=rate,
        left=(total - done) / rate if rate and total else None,
        pulses=pulses,
    )


def _last_row(run: Path) -> dict[str, Any]:
    """The last whole row of the log; one that a kill has cut is passed over."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return {}
    with path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
        lines = stream.read().splitlines()
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            return row
    return {}
