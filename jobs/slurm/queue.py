"""What SLURM knows of jobs, and ending them: squeue, sacct, scancel.

squeue knows what waits and runs, and for some minutes (MinJobAge) what has ended; sacct knows all of it where
the site keeps accounts. Nothing else is asked, and never for the name of a job: names may hold anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import RunError

#: seconds that SLURM gets to answer; its commands mostly give up before
PATIENCE = 30.0
#: ids in one command: an argument of a program has at most 128 KiB
IDS = 2000
#: states that a job does not leave any more, unless somebody requeues it by hand
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
#: the reason comes last: it is the only one of them that may be a sentence
SQUEUE_FIELDS = (
    *("JobArrayID", "State", "NodeList", "RestartCnt", "TimeUsed", "exit_code", "SubmitTime", "Reason"),
)
SACCT_FIELDS = ("JobID", "State", "NodeList", "ElapsedRaw", "ExitCode", "Reason")
#: what SLURM calls a job that it has forgotten, or never had
UNKNOWN = "Invalid job id specified"
#: of an array's tasks: `3`, `1-4`, `0-6:2`
RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
#: seconds by which two clocks, and two ways of reading one, may differ
SAME_TIME = 3 * 3600.0
#: what a user may have set to see less in squeue and sacct, or to be asked by scancel
HABITS = ("SQUEUE_", "SACCT_", "SCANCEL_")


class QueueError(RunError):
    """SLURM does not answer, or refuses; with its words."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What SLURM says of one job.

    Attributes:
        job: `17`, or `17_3` of an array.
        state: SLURM's word: PENDING, RUNNING, COMPLETED ...
        reason: why it waits or has ended, in SLURM's word; empty for none.
        nodes: where it runs or ran, such as `n[1-4]`.
        restarts: how often it was requeued; 0 where only sacct knows the job.
        elapsed: seconds that the present or last attempt has run.
        exit: `code:signal` of one that has ended, such as `1:0`; empty before.
        submitted: when it was, in seconds since 1970; 0 where nobody knows.
    """

    job: str
    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    elapsed: int = 0
    exit: str = ""
    submitted: float = 0.0

    @property
    def active(self) -> bool:
        """Whether it waits, runs, or is on its way to either; also a state that we do not know."""
        return self.state not in ENDED


def present() -> bool:
    """Whether there are SLURM's commands on this machine; it may still not answer."""
    return shutil.which("squeue") is not None and shutil.which("scancel") is not None


def ask(ids: Sequence[int]) -> dict[str, JobState]:
    """The states of jobs by `17`, of all tasks of an array by `17_3`. What SLURM has forgotten is left out.

    Raises:
        QueueError: SLURM does not answer, or is not there.
    """
    found = ask_squeue(ids)
    # of an array, squeue may have forgotten some tasks and know the others
    missing = [number for number in sorted(set(ids)) if str(number) not in found]
    for start in range(0, len(missing), IDS):
        found = _sacct(missing[start : start + IDS]) | found
    return found


def ask_squeue(ids: Sequence[int]) -> dict[str, JobState]:
    """As `ask`, of jobs that have not ended long ago, for who cannot wait for the accounts.

    Raises:
        QueueError: as `ask`.
    """
    wanted = sorted(set(ids))
    found: dict[str, JobState] = {}
    for start in range(0, len(wanted), IDS):
        found |= _squeue(wanted[start : start + IDS])
    return found


def ask_submitted(submitted: Mapping[int, float]) -> dict[str, JobState]:
    """As `ask`, of jobs by when they were submitted: `only_of` them.

    Raises:
        QueueError: as `ask`.
    """
    return only_of(ask(list(submitted)), submitted)


def only_of(states: Mapping[str, JobState], submitted: Mapping[int, float]) -> dict[str, JobState]:
    """The states of the jobs that were submitted then (id -> time; 0 where nobody knows).

    A SLURM that was set up anew counts from 1 again, and an old id is then another job of this user.
    Requeueing makes a new time of submission, so a job that was requeued is believed.
    """
    return {name: state for name, state in states.items() if _is_of(state, submitted)}


def _is_of(state: JobState, submitted: Mapping[int, float]) -> bool:
    told = submitted.get(int(state.job.partition("_")[0]), 0.0)
    unknown = not state.submitted or not told or state.restarts > 0
    return unknown or abs(state.submitted - told) < SAME_TIME


def cancel(ids: Sequence[int]) -> None:
    """Ends jobs, waiting or running, arrays with all their tasks; those that have ended stay as they are.

    Raises:
        QueueError: SLURM does not answer, is not there, or refuses.
    """
    wanted = sorted(set(ids))
    for start in range(0, len(wanted), IDS):
        done = _run("scancel", *map(str, wanted[start : start + IDS]))
        wrong = [line for line in done.stderr.splitlines() if line.strip() and not _is_over(line)]
        if done.returncode and wrong:
            raise QueueError(f"scancel: {wrong[0].strip().removeprefix('scancel: error: ')}")


def _is_over(line: str) -> bool:
    return UNKNOWN in line or "already completing or completed" in line


def _squeue(ids: Sequence[int]) -> dict[str, JobState]:
    fields = ",".join(f"{name}:|" for name in SQUEUE_FIELDS)
    done = _run(
        *("squeue", "--noheader", "--array", "--all", "--states=all", f"--Format={fields}"),
        f"--jobs={','.join(map(str, ids))}",
    )
    if (
        done.returncode and UNKNOWN not in done.stderr
    ):  # one single id that is forgotten is an error to squeue
        raise QueueError(f"squeue: {_said(done)}")
    return {state.job: state for line in done.stdout.splitlines() if (state := parse_squeue(line))}


def _sacct(ids: Sequence[int]) -> dict[str, JobState]:
    """Of jobs that squeue has forgotten; empty where no accounts are kept."""
    if shutil.which("sacct") is None:
        return {}
    # --array, which would name every task of an array, came only after SLURM 22.05
    done = _run(
        *("sacct", "--noheader", "--parsable2", "--allocations", f"--format={','.join(SACCT_FIELDS)}"),
        f"--jobs={','.join(map(str, ids))}",
        required=False,
    )
    if done.returncode:
        return {}
    states = (state for line in done.stdout.splitlines() for state in parse_sacct(line))
    # accounts may call a job running for ever whose end was lost; squeue would know of such a one
    return {state.job: state for state in states if not state.active}


def parse_squeue(line: str) -> JobState | None:
    """A line of squeue; None for what is none, such as the name of a cluster above its jobs."""
    words = line.split("|", len(SQUEUE_FIELDS) - 1)
    if len(words) != len(SQUEUE_FIELDS):
        return None
    job, state, nodes, restarts, used, status, submitted, reason = (word.strip() for word in words)
    return JobState(
        job=job,
        state=state,
        reason=_reason(reason.removesuffix("|")),
        nodes=_nodes(nodes),
        restarts=int(restarts) if restarts.isdigit() else 0,
        elapsed=seconds(used),
        exit=_exit_of(status) if state in ENDED else "",
        submitted=_moment(submitted),
    )


def parse_sacct(line: str) -> list[JobState]:
    """A line of sacct: mostly one job; several for tasks of an array that never ran, which share a line; none
    for what is no such line."""
    words = line.split("|", len(SACCT_FIELDS) - 1)
    if len(words) != len(SACCT_FIELDS):
        return []
    job, state, nodes, elapsed, code, reason = (word.strip() for word in words)
    word = (state.split() or [""])[0].rstrip("+")  # `CANCELLED by 1000`
    return [
        JobState(
            job=name,
            state=word,
            reason=_reason(reason),
            nodes=_nodes(nodes),
            elapsed=int(elapsed) if elapsed.isdigit() else 0,
            exit=code if word in ENDED else "",
        )
        for name in _tasks(job)
    ]


def _tasks(job: str) -> list[str]:
    """`17_1`, `17_2`, `17_5` of `17_[1-2,5%1]`; a job that is none of an array is the one."""
    array, bracket, rest = job.partition("_[")
    if not bracket:
        return [job]
    numbers: list[int] = []
    for part in rest.rstrip("]").partition("%")[0].split(","):
        if match := RANGE.fullmatch(part):
            first, last, step = match.groups()
            numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{array}_{number}" for number in numbers]


def seconds(text: str) -> int:
    """Seconds of SLURM's `[days-][hours:]minutes:seconds`; 0 for what is no time (`INVALID`)."""
    days, dash, rest = text.partition("-")
    if not dash:
        days, rest = "0", text
    parts = rest.split(":")
    if not days.isdigit() or not all(part.isdigit() for part in parts) or len(parts) > 3:
        return 0
    total = 0
    for part in parts:
        total = total * 60 + int(part)
    return int(days) * 86400 + total


def _moment(text: str) -> float:
    """Of SLURM's `2026-11-23T08:00:00`, in this machine's time zone; 0 for what is no time."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0


def _exit_of(status: str) -> str:
    """squeue tells the status as wait() does: the code above, the signal below."""
    if not status.isdigit():
        return ""
    return f"{int(status) >> 8}:{int(status) & 0x7F}"


def _reason(word: str) -> str:
    return "" if word in ("None", "(null)", "N/A") else word


def _nodes(text: str) -> str:
    return "" if text in ("None assigned", "(null)", "N/A") else text


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command of SLURM said was wrong: its last line, which is why it gave up."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (
        lines[-1].removeprefix("squeue: ").removeprefix("slurm_load_jobs error: ")
        if lines
        else f"it ended with exit code {done.returncode}"
    )


def _run(name: str, *words: str, required: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(HABITS)}
    environment["SLURM_BITSTR_LEN"] = "0"  # or the tasks of an array end in dots after 64 characters
    try:
        return subprocess.run(
            [name, *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=PATIENCE, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise QueueError(f"{name} is not on the PATH: no SLURM on this machine") from error
    except subprocess.TimeoutExpired as error:
        if not required:
            return subprocess.CompletedProcess([name, *words], 1, "", "")
        raise QueueError(f"{name}: no answer within {PATIENCE:g} s") from error
