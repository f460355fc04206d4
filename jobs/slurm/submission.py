"""Which jobs a chain comes to: what is to be done, which job waits for which, and the words of sbatch.

Nothing here writes or submits. A step is submitted unless it is done, or a job of it waits or runs already;
one that reads what another job is about to write is not known to be done, and is submitted too. It waits for
the step before it and all that write what it reads; or for those that its `after` names.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from jobs import remaining
from jobs.chain import Step
from jobs.slurm import books, lineage
from jobs.slurm.books import Submitted
from jobs.slurm.queue import ENDED, JobState
from jobs.slurm.scripts import script_for
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.settings import differences
from pipeline.stage import Stage

#: variables of sbatch that would undo what is submitted or what the batch scripts say, the secrets that they
#: keep out above all
UNDOING = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "DEBUG", "ERROR", "EXPORT", "EXPORT_FILE", "GET_USER_ENV", "INPUT", "JOB_NAME"),
        *("NO_REQUEUE", "OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "TEST_ONLY", "WAIT"),
    )
)
#: SLURM's reason of a job that waits for one that has failed
NEVER = "DependencyNeverSatisfied"
#: of SLURM's variables in a job those that a job which it submits may have: how SLURM is reached
REACHING = frozenset(("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that is to be submitted.

    Attributes:
        key: stands for the job's id until there is one: `@crawl`, of an array's tasks `@crawl/tasks`.
        step: what it runs.
        tasks: jobs of the array; 0: no array.
        finishes: whether it ends the output of an array.
        after: ids or keys of the jobs that it waits for.
        script: the batch script.
        run: the run folder.
    """

    key: str
    step: Step
    tasks: int = 0
    finishes: bool = False
    after: tuple[str, ...] = ()
    script: Path
    run: Path

    @property
    def config(self) -> Path:
        """What it is given as --config."""
        return step_file(self.run, self.step.name)

    @property
    def text(self) -> str:
        """The content of that file."""
        return self.step.request.resolved

    def log(self, job: int | str = "") -> str:
        """Where it writes what it prints; of an array, where task `*` does."""
        number = f"{job}_*" if self.tasks else str(job)
        return str(self.run / books.LOGS / f"{self.step.name}-{number}.log")

    def command(self, ids: Mapping[str, int] | None = None) -> list[str]:
        """sbatch and its words.

        Args:
            ids: key -> id of the jobs submitted so far; without them keys stand where ids will.
        """
        name = f"pairmill.{self.step.name}" + (".finish" if self.finishes else "")
        number = "%A_%a" if self.tasks else "%j"
        # sbatch puts numbers in for %j and the like; a % of the path itself is written twice
        log = str(self.run).replace("%", "%%") + f"/{books.LOGS}/{self.step.name}-{number}.log"
        words = ["sbatch", "--parsable", f"--job-name={name}", f"--output={log}"]
        slurm = self.step.slurm
        if self.tasks:
            words.append(f"--array=0-{self.tasks - 1}" + (f"%{slurm.at_once}" if slurm.at_once else ""))
        if self.after:
            waits = ":".join(str((ids or {}).get(name, name)) for name in self.after)
            # a job whose dependency has failed would else wait for ever
            words += [f"--dependency=afterok:{waits}", "--kill-on-invalid-dep=yes"]
        if self.finishes and "nodes" in slurm.flags:
            slurm = replace(slurm, flags={**slurm.flags, "nodes": "1"})
        return [*words, *slurm.words, str(self.script), "--config", str(self.config)]

    def variables(self) -> dict[str, str]:
        """What the batch scripts take over from the environment of sbatch."""
        found = {"PAIRMILL_RUN_DIR": str(self.run), "PAIRMILL_STEP": self.step.name}
        if self.step.slurm.max_restarts is not None:
            found["PAIRMILL_MAX_RESTARTS"] = str(self.step.slurm.max_restarts)
        return found


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


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the books and SLURM say of jobs submitted before: `submitted` in order, `states` by job."""

    submitted: Sequence[Submitted] = ()
    states: Mapping[str, JobState] = field(default_factory=dict)

    def of(self, step: str) -> list[Submitted]:
        return [job for job in self.submitted if job.step == step]

    def active(self, step: str) -> list[Submitted]:
        """The jobs of a step that wait or run, and may come to their end."""
        return [job for job in self.of(step) if self.state(job.job) and not self.is_doomed(job)]

    def is_doomed(self, job: Submitted) -> bool:
        """Whether a job still waits, but for one that failed: SLURM takes it out within a minute or so."""
        if self.state(job.job) != "PENDING":
            return False
        reasons = {state.reason for state in self._states_of(job.job)}
        return NEVER in reasons or any(self._fails(number) for number in job.after)

    def _fails(self, number: int) -> bool:
        if any(s.state in ENDED and s.state != "COMPLETED" for s in self._states_of(number)):
            return True
        return any(self.is_doomed(job) for job in self.submitted if job.job == number)

    def _states_of(self, job: int) -> list[JobState]:
        return self._by_job.get(str(job), [])

    def state(self, job: int) -> str:
        """SLURM's word for a job that waits or runs, of an array for its furthest task; else empty."""
        words = {state.state for state in self._states_of(job) if state.active}
        return "RUNNING" if "RUNNING" in words else min(words, default="")

    @cached_property
    def _by_job(self) -> dict[str, list[JobState]]:
        """The states of each job, of an array those of its tasks."""
        found: dict[str, list[JobState]] = {}
        for name, state in self.states.items():
            found.setdefault(name.partition("_")[0], []).append(state)
        return found

    def steps_before(self, job: int) -> set[str]:
        """Names of the steps whose jobs a job waits for, directly or not."""
        by_id = {known.job: known for known in self.submitted}
        found: set[str] = set()
        waiting = [job]
        while waiting:
            known = by_id.pop(waiting.pop(), None)
            if known is not None:
                found.add(known.step)
                waiting += known.after
        return found


def step_file(run: Path, step: str) -> Path:
    return run / books.STEPS / f"{step}.yaml"


def check_run_folder(run: Path) -> Path:
    """The run folder as an absolute path.

    Raises:
        ConfigError: SLURM could not write logs there.
    """
    run = run.absolute()
    wrong = re.search(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029]", str(run))
    if wrong:
        raise ConfigError(
            f"run folder {str(run)!r} has {wrong[0]!r} in it, which SLURM does not take in the path of a "
            "log; give another --run_dir"
        )
    return run


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
    path = step_file(run, step.name)
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


def environment(job: Job) -> dict[str, str]:
    """What sbatch is started with: this process's variables, but those that would undo what is submitted, and
    those of a job that this process may be part of."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in UNDOING and (not name.startswith("SLURM_") or name in REACHING)
    }
    path = os.pathsep.join(filter(None, (sysconfig.get_path("scripts"), kept.get("PATH", ""))))
    return {**kept, "PATH": path, **job.variables()}


def default_run_folder(root: str) -> Path:
    """`{root}/slurm`.

    Raises:
        ConfigError: the root is on an object store.
    """
    try:
        if storage.is_local(root):
            return storage.local_path(root) / "slurm"
    except (ValueError, ImportError):  # a protocol that nobody knows
        pass
    raise ConfigError(f"root {root!r} is no folder of this machine; say where logs go: --run_dir FOLDER")


def _listed(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
