"""Which jobs a chain comes to: what is to be done, and which job waits for which.

Nothing here writes or submits. A step is submitted unless it is done, or a job of it waits or runs already;
one that reads what another job is about to write is not known to be done, and is submitted too. It waits for
the step before it and all that write what it reads; or for those that its `after` names.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from jobs import remaining
from jobs.chain import Step
from jobs.slurm import books, lineage
from jobs.slurm.books import Submitted
from jobs.slurm.job import Job
from jobs.slurm.known import Known
from jobs.slurm.scripts import script_for
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.settings import differences
from pipeline.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a step.

    Attributes:
        step: the step.
        why: in words.
        jobs: what is to be submitted.
        active: ids of its jobs that wait or run already.
        doomed: ids of its jobs that wait for one that has failed, and give way to those in `jobs`.
        writes: whether its output may yet change, by a job submitted now or before.
        left_out: whether nobody has looked how far it is.
        ends: keys or ids of the jobs that one has to wait for where one would wait for this step.
        covers: names of the steps whose jobs have ended when those of `ends` have.
    """

    step: Step
    why: str
    jobs: tuple[Job, ...] = ()
    active: tuple[int, ...] = ()
    doomed: tuple[int, ...] = ()
    writes: bool = False
    left_out: bool = False
    ends: tuple[str, ...] = ()
    covers: frozenset[str] = frozenset()


def plan_submission(
    steps: Sequence[Step], *, chosen: Collection[str], run: Path, scripts: Path, known: Known
) -> list[Fate]:
    """What becomes of each step of a chain, in order.

    Args:
        steps: all of the chain.
        chosen: names of those that may be submitted.

    Raises:
        ConfigError: a name that cannot be one of a job, an array of a verb that cannot be one, an input that
            nobody makes, an output made differently, a step that does not wait for what it reads, or whose
            job that waits or runs was given other options.
    """
    fates: dict[str, Fate] = {}
    for number, step in enumerate(steps):
        books.check_name(step.name, what="step")
        before = steps[:number]
        if known.active(step.name):
            fates[step.name] = _active(step, step.name in chosen, run, scripts, known)
        elif step.name not in chosen:
            passed = _passed(step, "left out by --from or --only", before, fates)
            fates[step.name] = replace(passed, left_out=True)
        else:
            fates[step.name] = _chosen(step, before, fates, run, scripts, known)
    return list(fates.values())


def _chosen(
    step: Step, before: Sequence[Step], fates: Mapping[str, Fate], run: Path, scripts: Path, known: Known
) -> Fate:
    script = script_for(step.job, scripts)
    makers = lineage.makers(step, before)
    # a report tells of the whole chain: whatever is about to change may be in it
    sources = [s.name for s in (before if step.job == "report" else makers) if fates[s.name].writes]
    tasks, units_stand = step.slurm.array, False
    if sources:
        remaining.check(step)
        _check_made(step, makers, fates)
        why = f"reads what {_listed(sources)} will write"
    else:
        found = remaining.look(step)
        why, units_stand = found.why, found.done
        if units_stand and not _lacks_end(step, run, known):
            return _passed(step, why, before, fates)
        if units_stand:
            why, tasks = f"{why}, but no job has finished the folder", 0
    _check_array(step)
    waits, covers = _waits(step, before, fates, sources)
    jobs = _jobs(step, tasks, waits, script, run)
    return Fate(
        step=step,
        why=why,
        jobs=jobs,
        doomed=tuple(job.job for job in known.of(step.name) if known.is_doomed(job)),
        writes=not units_stand,
        ends=(jobs[-1].key,),
        covers=covers | {step.name},
    )


def _check_made(step: Step, makers: Sequence[Step], fates: Mapping[str, Fate]) -> None:
    """Raises ConfigError where a part of what a step reads is yet to be written, and another is not there and
    nobody makes it. What such a part lacks, if it is there, the job will say."""
    for maker in makers:
        if fates[maker.name].left_out and step.job != "report" and not storage.exists(maker.output):
            raise ConfigError(
                f"step {step.name} reads {maker.output}, which step {maker.name} makes: that has not run, "
                "and is left out by --from or --only; submit it too"
            )


def _jobs(step: Step, tasks: int, waits: tuple[str, ...], script: Path, run: Path) -> tuple[Job, ...]:
    whole = Job(key=f"@{step.name}", step=step, after=waits, script=script, run=run)
    if not tasks:
        return (whole,)
    shared = replace(whole, key=f"@{step.name}/tasks", tasks=tasks)
    return (shared, replace(whole, finishes=True, after=(shared.key,)))


def _passed(step: Step, why: str, before: Sequence[Step], fates: Mapping[str, Fate]) -> Fate:
    """A step without a job: who would wait for it waits for what it would have waited for."""
    previous = [fates[name] for name in _previous(step, before)]
    return Fate(
        step=step,
        why=why,
        ends=tuple(dict.fromkeys(end for fate in previous for end in fate.ends)),
        covers=frozenset().union(*(fate.covers for fate in previous)),
    )


def _previous(step: Step, before: Sequence[Step]) -> list[str]:
    if step.slurm.after is not None:
        return list(step.slurm.after)
    return [before[-1].name] if before else []


def _waits(
    step: Step, before: Sequence[Step], fates: Mapping[str, Fate], sources: Sequence[str]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """(jobs that the step waits for, steps that have ended when these have).

    Raises:
        ConfigError: `after` leaves out a step that writes what this one reads.
    """
    previous = [fates[name] for name in _previous(step, before)]
    covered = frozenset().union(*(fate.covers for fate in previous))
    missing = [name for name in sources if name not in covered]
    if missing and step.slurm.after is not None:
        raise ConfigError(
            f"step {step.name} reads what {_listed(missing)} will write, but does not wait for it; give "
            f"`after: [{', '.join((*step.slurm.after, *missing))}]` in its section of `slurm:`"
        )
    previous += [fates[name] for name in missing]
    ends = tuple(dict.fromkeys(end for fate in previous for end in fate.ends))
    return ends, frozenset().union(*(fate.covers for fate in previous))


def _active(step: Step, chosen: bool, run: Path, scripts: Path, known: Known) -> Fate:
    jobs = known.active(step.name)
    last = jobs[-1]
    if chosen:
        _check_same(step, jobs[0], run)
    fate = Fate(
        step=step,
        why=", ".join(f"job {job.job} is {known.state(job.job).lower()} already" for job in jobs),
        active=tuple(job.job for job in jobs),
        writes=True,
        ends=(str(last.job),),
        covers=frozenset(known.steps_before(last.job) | {step.name}),
    )
    if not chosen or not last.tasks or known.of(step.name)[-1].finishes:
        return fate
    # submitting was cut off between an array and the job that ends its output
    end = Job(
        key=f"@{step.name}", step=step, finishes=True, after=(str(last.job),), run=run,
        script=script_for(step.job, scripts),
    )  # fmt: skip
    return replace(fate, jobs=(end,), ends=(end.key,))


def _check_same(step: Step, job: Submitted, run: Path) -> None:
    """A job that is requeued reads its file again, so that must stay what it was given.

    Raises:
        ConfigError: the step would be given something else now.
    """
    path = books.step_file(run, step.name)
    if not path.is_file():
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = yaml.safe_load(step.request.resolved)
    if _placed(before) != _placed(now):
        found = "; ".join(differences(before, now))
        raise ConfigError(
            f"step {step.name}: job {job.job} waits or runs with other options ({found}); end it "
            f"first with `pairmill cancel CHAIN {step.name}`, or leave the options as they were"
        )


def _placed(value: Any) -> Any:
    """With all relative paths made absolute, as they are once what they name exists."""
    if isinstance(value, dict):
        return {str(key): _placed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner) for inner in value]
    if not isinstance(value, str) or not value or "://" in value:
        return value
    name, equals, place = value.rpartition("=")
    return name + equals + os.path.join(os.getcwd(), place)  # noqa: PTH109, PTH118 - a text, not a path


def _lacks_end(step: Step, run: Path, known: Known) -> bool:
    """Whether all units of a step stand, but the job that was to finish the folder (indexes over all of it)
    is not known to have done so."""
    if all(type(stage).finish is Stage.finish for stage, _ in remaining.stages_of(step)):
        return False
    jobs = known.of(step.name)
    if not jobs:
        return False
    last = jobs[-1]
    if last.tasks:
        return True
    ends = books.read_ends(run, str(last.job))
    if ends:
        return ends[-1].code != 0
    # killed without a word; one that never began was cancelled, and others have done its work
    return last.finishes or books.job_folder(run, str(last.job)).exists()


def _check_array(step: Step) -> None:
    """Raises ConfigError where a step cannot be shared by the jobs of an array."""
    if not step.slurm.array:
        return
    where = f"step {step.name}: array {step.slurm.array}"
    if not step.verb.stage:
        raise ConfigError(f"{where}: `{step.job}` has no units to share; leave `array` out, `nodes` may help")
    if step.request.options.task:
        raise ConfigError(f"{where}: the array gives each job its `task`; leave that option of the step out")
    stages = remaining.stages_of(step)
    if len(stages) != 1 or stages[0][0].redo_on_new_inputs:
        names = ", ".join(stage.name for stage, _ in stages)
        raise ConfigError(
            f"{where}: `{step.job}` exchanges between all shards ({names or 'nothing is written'}), which "
            "jobs of an array cannot; leave `array` out, and give it more `nodes`"
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
