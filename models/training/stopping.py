"""How a run is asked to stop: SIGTERM, SIGINT, SIGUSR1, or a file STOP in the run folder."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from types import FrameType

EXIT_DONE, EXIT_FAILED, EXIT_CONFIG, EXIT_STOPPED = 0, 1, 2, 75
#: of a process that something unforeseen has ended, such as a lost connection to another (EX_SOFTWARE); the
#: command says 1 then, but a batch job that ended so may go on from the last checkpoint
EXIT_CRASHED = 70
#: put into the run folder by anybody: the run saves and stops
STOP = "STOP"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class TrainingError(RuntimeError):
    """The run cannot go on: damaged data, or a loss that is no number. The command exits with 1."""


class LocalError(TrainingError):
    """What went wrong in this process alone, so that it must tell; a `TrainingError` is raised in all."""


class StopRequest:
    """Remembers that somebody asked to stop; the training loop looks at it after each step.

    Args:
        listen: whether to take the signals over.
        look: whether to look for the file as well. One process is enough: what it finds, all are told.
    """

    def __init__(self, run: Path, *, listen: bool = True, look: bool = True) -> None:
        self.file = run / STOP
        self.look = look
        self.signalled = False
        for number in SIGNALS if listen else ():
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def __bool__(self) -> bool:
        return self.signalled or (self.look and self.file.exists())


def die_with_parent(parent: int) -> None:
    """Ends this process when `parent` dies (Linux): a killed launcher must not leave workers behind that
    write into a run folder which the next launcher uses."""
    if hasattr(signal, "SIGKILL") and os.uname().sysname == "Linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_FAILED)
