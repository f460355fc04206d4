"""How each process of a run ended, for those who start it by torchrun.

torchrun exits with 1 when one of its processes exits with anything but 0. Where `PAIRMILL_VERDICTS` names a
folder, each process writes its exit code there, in a file named by its rank; what was killed writes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from models.training.stopping import EXIT_CONFIG, EXIT_CRASHED, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from pipeline import storage

VARIABLE = "PAIRMILL_VERDICTS"


def write(code: int) -> int:
    """Tells the code where somebody wants to know it, and returns what the process is to exit with.

    A run that was stopped and saved has ended well in the eyes of torchrun: else it would kill the others.
    """
    shown = EXIT_FAILED if code == EXIT_CRASHED else code
    folder = os.environ.get(VARIABLE)
    if not folder:
        return shown
    storage.write_bytes(str(Path(folder) / f"rank-{os.environ.get('RANK', '0')}"), str(code).encode())
    return EXIT_DONE if code == EXIT_STOPPED else shown


def read(folder: Path, *, processes: int) -> int:
    """What the run of so many processes came to: 0, 1, 2, 75, or 70 where it crashed.

    An error that one process told counts for all: the others only lost their connection to it.
    """
    codes = [int(path.read_text()) for path in folder.glob("rank-*")]
    for told in (EXIT_CONFIG, EXIT_FAILED):
        if told in codes:
            return told
    if len(codes) < processes or EXIT_CRASHED in codes:
        return EXIT_CRASHED
    return EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE
