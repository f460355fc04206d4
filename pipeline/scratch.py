"""Scratch folders of units: swept when their owner is gone.

A worker that is killed cannot clean up, and a folder of half-made shards may hold gigabytes. So every folder
has a file that its owner keeps locked (flock) for as long as it lives: the kernel lets go of it when the
process ends, however it ends, and whatever process number is given out next. The next worker that starts on
the machine removes the folders whose lock nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "pairmill-"
OWNER = ".owner"
#: seconds after which a folder without a lock is nobody's; one is made before its lock is
GRACE = 60.0


@contextlib.contextmanager
def folder(*, base: str | None = None) -> Iterator[Path]:
    """An empty folder on the local disk (`TMPDIR`, or `base`) for the time of the block."""
    place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    with (place / OWNER).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            inner = place / "work"
            inner.mkdir()
            yield inner
        finally:
            shutil.rmtree(place, ignore_errors=True)


def sweep(*, base: str | None = None) -> int:
    """Removes the folders that killed processes left on this machine (in `TMPDIR`, or `base`); returns how
    many."""
    swept = 0
    for place in Path(base or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        swept += _sweep_one(place)
    return swept


def _sweep_one(place: Path) -> bool:
    """Only folders with an owner file are ours to judge: others that begin alike may be anything."""
    try:
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        with (place / OWNER).open("r+") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(owner.fileno()).st_mtime < GRACE and not _was_locked(place):
                return False
            shutil.rmtree(place, ignore_errors=True)
            return True
    except OSError:  # held by its owner, or gone meanwhile, or never one of ours
        return False


def _was_locked(place: Path) -> bool:
    """`work` is made under the lock: a folder without it may be about to be locked."""
    return (place / "work").is_dir()
