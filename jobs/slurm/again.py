"""Whether a job that ended goes on in a requeued one.

* A command that was stopped by USR1 (time runs out, preemption) has saved and goes on; likewise one that
  SLURM ends because its time is over.
* One that told an error (1: units failed; 2: configuration) would tell it again.
* One that crashed (a process killed, a node lost, Ray gone) goes on, unless it crashed three times where it
  was: the work has not got any further, so the cause lies in the work.
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
#: crashes at the same place after which it is no accident
ATTEMPTS = 3
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
    if code == EXIT_STOPPED:
        return Verdict(requeue=True, code=code, why="stopped by a signal, saved; goes on")
    crashes = 1
    for end in reversed(before):
        if end.code != CRASHED or end.mark != mark:
            break
        crashes += 1
    if crashes >= ATTEMPTS:
        why = f"crashed {crashes} times at the same place ({mark or 'the start'})"
        return Verdict(requeue=False, code=end_code, why=why)
    return Verdict(requeue=True, code=code, why="crashed; goes on from what is saved")


def parse_cap(text: str) -> int:
    """Raises ConfigError when it is no number."""
    if not text:
        return MAX_RESTARTS
    if not text.isdigit():
        raise ConfigError(f"PAIRMILL_MAX_RESTARTS {text!r} must be a number, such as {MAX_RESTARTS}")
    return int(text)
