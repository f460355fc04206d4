"""What is known of the jobs of a chain: what SLURM says of them, and where it says nothing, the run folder.

SLURM forgets a job some minutes after its end, and may not answer at all; the run folder knows how each
attempt ended that could still say so. What neither knows follows from the jobs that it waited for, or stays
unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.slurm import books, queue
from jobs.slurm.books import End, Submitted
from jobs.slurm.queue import JobState, QueueError
from pipeline.pulse import Pulse
from pipeline.summary import EXIT_DONE, EXIT_STOPPED

#: what a job, or a task of an array, is to a person; the first that some task of a step is, the step is
RUNNING, WAITING, FAILED, CANCELLED, STOPPED, SUBMITTED, UNKNOWN, DONE = WORDS = (
    *("running", "waiting", "failed", "cancelled", "stopped", "submitted", "unknown", "done"),
)
OVER = frozenset((FAILED, CANCELLED, STOPPED))
#: states of SLURM in which a job has its nodes
AT_WORK = frozenset(("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING"))


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job, or one task of an array.

    Attributes:
        job: `17`, or `17_3`.
        word: one of WORDS.
        state: what SLURM says; None where it says nothing.
        ends: how its attempts ended, the first one first, as far as they could tell.
    """

    job: str
    word: str
    state: JobState | None = None
    ends: Sequence[End] = ()

    @property
    def attempt(self) -> int:
        """1 for the first."""
        if self.state is not None and self.state.restarts:
            return self.state.restarts + 1
        return (self.ends[-1].restart + 1 + self.ends[-1].requeued) if self.ends else 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as it was submitted, with its tasks; one that is no array has a single one."""

    submitted: Submitted
    tasks: Sequence[Task]

    @property
    def counts(self) -> Counter[str]:
        return Counter(task.word for task in self.tasks)

    @property
    def word(self) -> str:
        counts = self.counts
        return next(word for word in WORDS if counts[word])


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The jobs of a chain.

    Attributes:
        run: the run folder.
        steps: step -> the jobs it was last submitted as: one, or an array and the one that finishes it.
        all: every job ever submitted, by id.
        states: what SLURM says, by `17` and `17_3`.
        silent: why SLURM is not asked or does not answer, in its words; empty where it answers.
    """

    run: Path
    steps: Mapping[str, Sequence[Job]] = field(default_factory=dict)
    all: Mapping[int, Job] = field(default_factory=dict)
    states: Mapping[str, JobState] = field(default_factory=dict)
    silent: str = ""

    def word(self, step: str) -> str:
        """What the jobs of a step are together; empty where there are none."""
        words = {job.word for job in self.steps.get(step, ())}
        return next((word for word in WORDS if word in words), "")

    def culprit(self, job: Job) -> Job | None:
        """The job because of which this one cannot start: it did not end well, however far before it."""
        for number in job.submitted.after:
            before = self.all.get(number)
            if before is not None and before.word in OVER:
                return self.culprit(before) or before
        return None

    def lives(self, pulse: Pulse) -> bool:
        """Whether a run may be what its pulse says: SLURM knows of no end of its job, nor of a later attempt.
        A pulse that a lost node has left counts for minutes else."""
        state = self.states.get(pulse.job)
        return state is None or (state.active and pulse.restart >= state.restarts)


def look(run: Path) -> Jobs:
    """Asks SLURM and reads the run folder; changes nothing."""
    submitted = books.read_submitted(run)
    if not submitted:
        return Jobs(run=run)
    states: dict[str, JobState] = {}
    silent = ""
    try:
        states = queue.ask_submitted(books.times(submitted))
    except QueueError as error:
        silent = str(error)
    found: dict[int, Job] = {}
    for entry in submitted:  # in order: what a job waits for comes before it
        found[entry.job] = _job(run, entry, states, found, answers=not silent)
    return Jobs(run=run, steps=_by_step(submitted, found), all=found, states=states, silent=silent)


def _by_step(submitted: Sequence[Submitted], found: Mapping[int, Job]) -> dict[str, list[Job]]:
    last: dict[str, Submitted] = {entry.step: entry for entry in submitted}
    steps = {}
    for step, entry in last.items():
        before = [found[n] for n in entry.after if n in found and found[n].submitted.step == step]
        steps[step] = [*(before if entry.finishes else ()), found[entry.job]]
    return steps


def _job(
    run: Path,
    entry: Submitted,
    states: Mapping[str, JobState],
    before: Mapping[int, Job],
    *,
    answers: bool,
) -> Job:
    names = [f"{entry.job}_{i}" for i in range(entry.tasks)] or [str(entry.job)]
    doomed = any(n in before and before[n].word in OVER for n in entry.after)
    tasks = []
    for name in names:
        state, ends = states.get(name), books.read_ends(run, name)
        word = _word_of_state(state, ends) if state else _word_of_ends(ends, answers=answers, doomed=doomed)
        tasks.append(Task(job=name, word=word, state=state, ends=ends))
    return Job(submitted=entry, tasks=tasks)


def _word_of_state(state: JobState, ends: Sequence[End]) -> str:
    if state.active:
        return RUNNING if state.state in AT_WORK else WAITING
    if state.state == "COMPLETED":
        return DONE
    if state.state == "CANCELLED":
        return CANCELLED
    # an end that was requeued is of an earlier attempt: the last one was killed before it could say anything
    stopped = bool(ends) and ends[-1].code == EXIT_STOPPED and not ends[-1].requeued
    return STOPPED if stopped else FAILED


def _word_of_ends(ends: Sequence[End], *, answers: bool, doomed: bool) -> str:
    """Of a job that SLURM does not speak of; `answers`: of others it does, so it has forgotten this one."""
    if not ends:
        if not answers:
            return SUBMITTED
        return CANCELLED if doomed else UNKNOWN
    last = ends[-1]
    if last.code == EXIT_DONE:
        return DONE
    if last.requeued:  # somebody has cancelled it in the queue, or it was killed in a later attempt
        return STOPPED if answers else SUBMITTED
    return STOPPED if last.code == EXIT_STOPPED else FAILED
