"""How each process of a run ended, for those who start it by torchrun.

torchrun exits with 1 when one of its processes exits with anything but 0. Where `PAIRMILL_VERDICTS` names a
folder, each process writes its exit code there, and why, in a file named by its rank; what was killed writes
nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.training.stopping import EXIT_CONFIG, EXIT_CRASHED, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from pipeline import storage

VARIABLE = "PAIRMILL_VERDICTS"
#: characters of a reason: some errors hold whole tensors
LONGEST = 500


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        code: 0, 1, 2, 75, or 70 where it crashed.
        why: what a process told, for people; may be empty.
        ranks: of the processes that told it.
        silent: ranks of those that told nothing.
    """

    code: int
    why: str = ""
    ranks: Sequence[int] = ()
    silent: Sequence[int] = ()


def tell(code: int, why: str = "") -> None:
    """Writes down how this process ended, where somebody wants to know it. The first word stands: it comes
    from where the reason is known."""
    if folder := os.environ.get(VARIABLE):
        path = Path(folder) / f"rank-{os.environ.get('RANK', '0')}"
        if not path.exists():
            _write(path, {"code": code, "why": why})


def tell_of(rank: int, why: str) -> None:
    """Writes down how another process ended, which was killed: the cause of what the others tell."""
    if folder := os.environ.get(VARIABLE):
        _write(Path(folder) / f"rank-{rank}", {"code": EXIT_CRASHED, "why": why, "killed": True})


def _write(path: Path, verdict: dict[str, Any]) -> None:
    words = " ".join(verdict["why"].split())[:LONGEST]
    storage.write_bytes(str(path), json.dumps({**verdict, "why": words}).encode())


def exit_code(code: int) -> int:
    """What a process is to exit with.

    A run that was stopped and saved has ended well in the eyes of torchrun: else it would kill the others. A
    crash is a failure to whoever knows no more codes than the command has.
    """
    if code == EXIT_CRASHED:
        return EXIT_FAILED
    return EXIT_DONE if code == EXIT_STOPPED and os.environ.get(VARIABLE) else code


def read(folder: Path, *, processes: int) -> Outcome:
    """What the run of so many processes came to.

    An error that one process told counts for all: the others only lost their connection to it.
    """
    found = {int(p.name.removeprefix("rank-")): json.loads(p.read_text()) for p in folder.glob("rank-*")}
    silent = [rank for rank in range(processes) if rank not in found]
    for code in (EXIT_CONFIG, EXIT_FAILED, EXIT_CRASHED):
        ranks = sorted(rank for rank, verdict in found.items() if verdict["code"] == code)
        ranks = [rank for rank in ranks if found[rank].get("killed")] or ranks
        if ranks:
            why = next((found[rank]["why"] for rank in ranks if found[rank]["why"]), "")
            return Outcome(code=code, why=why, ranks=ranks, silent=silent)
    if silent:
        return Outcome(code=EXIT_CRASHED, silent=silent)
    stopped = any(verdict["code"] == EXIT_STOPPED for verdict in found.values())
    return Outcome(code=EXIT_STOPPED if stopped else EXIT_DONE)
