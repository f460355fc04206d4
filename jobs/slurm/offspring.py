"""The processes that this one started, those that they started, and no others.

Ray's servers leave their parent behind when they start, and so do their workers when a server is killed; they
would then belong to init, where nobody can tell whose they are. A subreaper inherits them instead, so what is
below this process is all that it ever started: no `ray stop`, which ends every Ray of the user on the node.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
#: seconds that processes have to end when they are asked
PATIENCE = 5.0


def adopt() -> None:
    """From now on orphans below this process become its children (Linux).

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def below(root: int | None = None) -> dict[int, str]:
    """All processes below `root` (by default this one), children before theirs: number -> program's name."""
    parents: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            # the name, in parentheses, may hold anything: what follows it is of fixed order
            head, _, rest = (place / "stat").read_text().rpartition(")")
        except OSError:  # ended meanwhile
            continue
        state, parent = rest.split()[:2]
        if state != "Z":
            parents.setdefault(int(parent), []).append(int(place.name))
            names[int(place.name)] = head.partition("(")[2]
    found: dict[int, str] = {}
    waiting = [os.getpid() if root is None else root]
    while waiting:
        for child in parents.get(waiting.pop(0), ()):
            found[child] = names[child]
            waiting.append(child)
    return found


def reap() -> None:
    """Lets go of adopted children that have ended. Not where `subprocess` waits for children of its own."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_all(*, seconds: float = PATIENCE) -> int:
    """Ends everything below this process: SIGTERM, SIGKILL for what is left; returns how many those were."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        left = below()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        killed = len(left)
        limit = time.monotonic() + patience
        while time.monotonic() < limit:
            reap()
            if not below():
                return killed if number == signal.SIGKILL else 0
            time.sleep(0.1)
    return killed
