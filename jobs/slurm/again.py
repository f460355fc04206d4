"""Whether a job that ended goes on in a requeued one.

* A command that was stopped by USR1 (time runs out, preemption) has saved and goes on; likewise one that
  SLURM ends because its time is over.
* One that told an error (1: units failed; 2: configuration) would tell it again.
* One that crashed (a process killed, a node lost, Ray gone) goes on.
* Unless that happened three times where it was: the work has not got any further, so the cause lies in the
  work, or in a time limit that is too short for a piece of it. A stop in the first minutes does not count:
  others may well need the nodes three times in a row.
* One that SLURM ends for another reason was cancelled, or SLURM itself requeues it. Requeued by us, a
  cancelled job would come back.
* One that stopped though the job was told nothing was asked by a person: a file STOP, a signal to it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.slurm.books import End
from models.training.stopping import EXIT_CRASHED
from pipeline.errors import ConfigError
from pipeline.summary import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED

#: of a command that came to no end of its own: a process was killed, Ray was lost
CRASHED = EXIT_CRASHED
#: attempts that ended at the same place after which it is no accident
ATTEMPTS = 3
#: seconds that an attempt which was stopped must have had to count as one of them
A_CHANCE = 600.0
#: requeued so often; `PAIRMILL_MAX_RESTARTS` or `max_restarts` of a chain's `slurm:` section
MAX_RESTARTS = 50


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows.

    requeue: whether the job is to be requeued. code: what it exits with otherwise. why: in words.
    """

    requeue: bool
    code: int
    why: str


def judge(
    code: int,
    *,
    cancelled: bool,
    restart: int,
    cap: int,
    mark: str,
    before: Sequence[End],
    told: bool = True,
    seconds: float = 0.0,
) -> Verdict:
    """What follows from how a command ended.

    Args:
        code: 0, 1, 2, 75 or CRASHED.
        cancelled: SLURM ends the job, and not because its time is over.
        restart: how often this job was requeued.
        cap: it may be requeued so often.
        mark: how far the work is.
        before: how the earlier attempts at this job ended.
        told: the job was sent a signal.
        seconds: how long this attempt took.
    """
    if code == EXIT_DONE:
        return Verdict(requeue=False, code=code, why="done")
    if code not in (EXIT_STOPPED, CRASHED):
        return Verdict(requeue=False, code=code, why="failed: the log says why")
    if cancelled:
        why = "ended by SLURM, or asked to end; what is done stays"
        return Verdict(requeue=False, code=EXIT_STOPPED, why=why)
    if code == EXIT_STOPPED and not told:
        why = "stopped by a file STOP, or by a signal to the command alone; submit it again to go on"
        return Verdict(requeue=False, code=code, why=why)
    end_code = EXIT_STOPPED if code == EXIT_STOPPED else EXIT_FAILED
    if restart >= cap:
        what = "stopped by a signal, saved" if code == EXIT_STOPPED else "crashed"
        why = f"{what}; requeued {restart} times, which is the limit: submit it again to go on"
        return Verdict(requeue=False, code=end_code, why=why)
    tries = _counts(code, seconds) * (1 + _in_vain(before, mark))
    if tries >= ATTEMPTS and code == EXIT_STOPPED:
        why = f"its time ran out {tries} times at the same place ({mark or 'the start'}): give it more time"
        return Verdict(requeue=False, code=end_code, why=why)
    if tries >= ATTEMPTS:
        why = f"crashed {tries} times at the same place ({mark or 'the start'})"
        return Verdict(requeue=False, code=end_code, why=why)
    what = (
        "stopped by a signal, saved; goes on"
        if code == EXIT_STOPPED
        else "crashed; goes on from what is saved"
    )
    return Verdict(requeue=True, code=code, why=what)


def _counts(code: int, seconds: float) -> bool:
    """Whether an attempt that got no further had its chance to."""
    return code == CRASHED or (code == EXIT_STOPPED and seconds >= A_CHANCE)


def _in_vain(before: Sequence[End], mark: str) -> int:
    """How many attempts in a row, up to the last, ended where the work is now; short stops left out."""
    found = 0
    for end in reversed(before):
        if end.mark != mark:
            break
        found += _counts(end.code, end.ended - end.began)
    return found


def parse_cap(text: str) -> int:
    """Raises ConfigError when it is no number."""
    if not text:
        return MAX_RESTARTS
    if not text.isdigit():
        raise ConfigError(f"PAIRMILL_MAX_RESTARTS {text!r} must be a number, such as {MAX_RESTARTS}")
    return int(text)
