"""The jobs of a step in a few words, for one cell of a table: `17 on n1 for 0:12:03, attempt 2`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.slurm.again import CRASHED
from jobs.slurm.books import LOGS
from jobs.slurm.knowledge import (
    CANCELLED,
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    SUBMITTED,
    UNKNOWN,
    WAITING,
    WORDS,
    Job,
    Jobs,
    Task,
)  # fmt: skip


def clock(seconds: float) -> str:
    """`h:mm:ss`, with days before it where there are some: `2d 3:04:05`."""
    days, rest = divmod(int(seconds + 0.5), 86400)
    hours, rest = divmod(rest, 3600)
    return f"{f'{days}d ' if days else ''}{hours}:{rest // 60:02d}:{rest % 60:02d}"


def told(jobs: Jobs, step: str) -> str:
    """What is known of the jobs of a step; empty where there are none."""
    found = jobs.steps.get(step, ())
    if not found:
        return ""
    *arrays, last = found
    if arrays and (arrays[-1].word != DONE or last.word == DONE):
        return _job_told(jobs, arrays[-1])  # the job that finishes it is of interest between these two alone
    return "; then ".join(_job_told(jobs, job) for job in found)


def _job_told(jobs: Jobs, job: Job) -> str:
    if not job.submitted.tasks:
        return f"{job.submitted.job} {_task_told(jobs, job, job.tasks[0])}"
    return f"{job.submitted.job} ({len(job.tasks)} tasks){_tasks_told(jobs, job)}"


def _tasks_told(jobs: Jobs, job: Job) -> str:
    counts = job.counts
    if len(counts) == 1 and job.word in (WAITING, CANCELLED, SUBMITTED, UNKNOWN):
        return f" {_task_told(jobs, job, job.tasks[0])}"
    order = (DONE, *(word for word in WORDS if word != DONE))
    return ": " + ", ".join(f"{counts[word]} {word}" for word in order if counts[word])


def _task_told(jobs: Jobs, job: Job, task: Task) -> str:
    state = task.state
    again = f", attempt {task.attempt}" if task.attempt > 1 else ""
    if task.word == RUNNING and state is not None:
        return f"on {state.nodes or '?'} for {clock(state.elapsed)}{again}"
    if task.word == WAITING and state is not None:
        return _why_it_waits(jobs, job, task)
    if task.word == DONE:
        return f"took {clock(_seconds(task))}{again}"
    if task.word == CANCELLED:
        culprit = jobs.culprit(job)
        return f"CANCELLED because step {culprit.submitted.step} {_fate(culprit)}" if culprit else "CANCELLED"
    if task.word in (FAILED, STOPPED):
        return f"{_how_it_ended(task)}{again}"
    if task.word == SUBMITTED:
        return f"of unknown state{again}"
    return "forgotten by SLURM"


def _fate(job: Job) -> str:
    return {FAILED: "failed", STOPPED: "was stopped", CANCELLED: "was cancelled"}.get(job.word, job.word)


def _why_it_waits(jobs: Jobs, job: Job, task: Task) -> str:
    assert task.state is not None
    reason = task.state.reason
    if reason == "DependencyNeverSatisfied" and (culprit := jobs.culprit(job)):
        return f"never starts because step {culprit.submitted.step} {_fate(culprit)}"
    if reason.startswith("Dependency"):
        before = [jobs.all[n] for n in job.submitted.after if n in jobs.all]
        open_ = [b for b in before if b.word != DONE] or before
        if open_:
            return "waits for " + ", ".join(f"{b.submitted.step} ({b.submitted.job})" for b in open_)
    if task.attempt > 1:
        return f"waits for attempt {task.attempt}: {reason or task.state.state}"
    return f"waits: {reason or task.state.state}"


def _how_it_ended(task: Task) -> str:
    state, end = task.state, task.ends[-1] if task.ends else None
    after = f" after {clock(_seconds(task))}"
    if state is not None and state.state not in ("FAILED", "COMPLETED"):
        return f"{state.state}{after}"  # TIMEOUT, NODE_FAIL, OUT_OF_MEMORY: SLURM's word says it all
    if end is not None and not end.requeued:
        return f"crashed{after}" if end.code == CRASHED else f"exit code {end.code}{after}"
    if state is not None and state.exit:
        code, _, number = state.exit.partition(":")
        return f"killed by signal {number}{after}" if number not in ("", "0") else f"exit code {code}{after}"
    return f"ended{after}"


def _seconds(task: Task) -> float:
    """Of its last attempt; SLURM counts from when it gave the nodes."""
    if task.state is not None and task.state.elapsed:
        return task.state.elapsed
    return task.ends[-1].ended - task.ends[-1].began if task.ends else 0.0


def remarks(jobs: Jobs, step: str) -> list[str]:
    """What a person has to know who is to mend a step: why it failed or began again, where the log is."""
    found = []
    for job in jobs.steps.get(step, ()):
        bad = [task for task in job.tasks if task.word in (FAILED, STOPPED)]
        again = [task for task in job.tasks if task.word in (RUNNING, WAITING) and task.ends]
        for tasks, tell in ((bad, _why_it_ended), (again, _why_again)):
            if tasks:
                more = f" (and {len(tasks) - 1} more tasks)" if len(tasks) > 1 else ""
                log = log_of(jobs.run, step, tasks[0].job)
                found.append(f"job {tasks[0].job}{more}: {tell(tasks[0])}; log {log}")
    return found


def _why_it_ended(task: Task) -> str:
    last = task.ends[-1] if task.ends else None
    why = f"; {last.why}" if last and last.why and not last.requeued else ""
    return f"{_how_it_ended(task)}{why}"


def _why_again(task: Task) -> str:
    return f"attempt {task.ends[-1].restart + 1} {task.ends[-1].why}"


def log_of(run: Path, step: str, job: str) -> Path:
    """Where a job's output is (`pairmill submit` names it so)."""
    return run / LOGS / f"{step}-{job}.log"


def words_of(found: Sequence[Job]) -> list[dict[str, object]]:
    """The same as values, for scripts."""
    return [
        {
            "job": job.submitted.job,
            "tasks": job.submitted.tasks,
            "finishes": job.submitted.finishes,
            "after": list(job.submitted.after),
            "state": job.word,
            "counts": dict(job.counts),
            "slurm": [vars(task.state) for task in job.tasks if task.state is not None],
            "ends": [vars(end) for task in job.tasks for end in task.ends],
        }
        for job in found
    ]
