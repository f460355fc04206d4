"""What the crawl workers of one node share: locks, a table of times, small cached documents.

Each worker is a process of its own, and a host must not feel how many there are. They meet in one folder:

* locks: byte ranges of a few empty files, one byte for each (name, place). The kernel frees them when a
  process dies, however it dies, and one descriptor a file serves any number of hosts.
* times: a sparse file with one moment for each name, such as when a host may be asked again.
* documents: small files in a fixed number of places, written aside and renamed, so that a reader sees a whole
  one or none, and the folder never grows beyond its places.

Nothing here is worth keeping: the folder may be removed at any time while no crawl runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

#: the kernel walks the locks of a file one by one: they are spread over so many files
LOCK_FILES = 16
#: names that the table of times tells apart; two names in one place only wait for each other
MOMENTS = 1 << 20
#: raised whenever the shape of a document changes
VERSION = 2
#: documents that are kept on disk at a time
DOCUMENTS = 1 << 17
DOCUMENT_BYTES = 64 << 10
#: a temporary file of this age (seconds) was left by a killed process
STALE_S = 3600.0

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_MOMENT = struct.Struct("<d")
# Locks that belong to the open file, not to the process: two clients in one process exclude each other too.
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)


class NodeFolder:
    """The shared folder; one object a client, closed with it.

    Args:
        path: the folder, made if it is missing; empty for one of the user's own below the temporary folder.

    Raises:
        ConfigError: the folder belongs to somebody else, or others may write to it.
    """

    def __init__(self, path: str = "") -> None:
        self.path = Path(path or Path(tempfile.gettempdir()) / f"pairmill-node-{os.geteuid()}")
        _own_folder(self.path)
        for name in ("locks", "documents", "writing"):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        self._sweep()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._locks = [os.open(self.path / "locks" / f"{i:02d}", flags, 0o600) for i in range(LOCK_FILES)]
        self._moments = os.open(self.path / f"moments-{_boot()}", flags, 0o600)
        self._writing = 0
        self._complained = False

    def close(self) -> None:
        """Frees every lock that this object holds."""
        for descriptor in (*self._locks, self._moments):
            os.close(descriptor)
        self._locks = []

    def try_lock(self, number: int, place: int = 0) -> bool:
        """Takes the lock of a name (see `number_of`) if nobody else on this node has it; True if taken."""
        return self._set_lock(fcntl.F_WRLCK, number, place)

    def unlock(self, number: int, place: int = 0) -> None:
        if self._locks:
            self._set_lock(fcntl.F_UNLCK, number, place)

    def _set_lock(self, kind: int, number: int, place: int) -> bool:
        if _SET_LOCK is None:  # not Linux: limits hold within one worker only
            return True
        descriptor = self._locks[number % LOCK_FILES]
        try:
            fcntl.fcntl(descriptor, _SET_LOCK, _FLOCK.pack(kind, 0, (number << 12) + place, 1, 0))
        except BlockingIOError:
            return False
        return True

    def moment(self, number: int) -> float:
        """The moment stored for a name on the clock of `time.monotonic`; 0 where there is none."""
        data = os.pread(self._moments, 8, number % MOMENTS * 8)
        return _MOMENT.unpack(data)[0] if len(data) == 8 else 0.0

    def set_moment(self, number: int, moment: float) -> None:
        os.pwrite(self._moments, _MOMENT.pack(moment), number % MOMENTS * 8)

    def read(self, name: str) -> dict[str, Any] | None:
        """A document, or None where there is none; what cannot be read counts as none."""
        try:
            found = json.loads(self._place(name).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or (found.get("version"), found.get("name")) != (VERSION, name):
            return None
        return found["document"]

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Keeps a document for the others; a very large one, or one that the disk does not take, is kept by
        nobody but the caller."""
        data = json.dumps({"version": VERSION, "name": name, "document": document}).encode()
        if len(data) > DOCUMENT_BYTES:
            return
        self._writing += 1
        aside = self.path / "writing" / f"{os.getpid()}-{id(self):x}-{self._writing}"
        place = self._place(name)
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            aside.write_bytes(data)
            aside.replace(place)
        except OSError as error:
            if not self._complained:
                log.warning("%s keeps no rules of sites for other workers: %s", self.path, error)
            self._complained = True

    def _place(self, name: str) -> Path:
        place = number_of(name) % DOCUMENTS
        return self.path / "documents" / f"{place % 256:02x}" / f"{place // 256:03x}"

    def _sweep(self) -> None:
        for path in (self.path / "writing").iterdir():
            with contextlib.suppress(FileNotFoundError):  # another worker sweeps too
                if path.stat().st_mtime < time.time() - STALE_S:
                    path.unlink()
        for path in self.path.glob("moments-*"):
            if path.name != f"moments-{_boot()}":
                path.unlink(missing_ok=True)


def number_of(name: str) -> int:
    """A number for a name, the same in every process; below 2**50, so that it fits a file's offset."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 14


def _boot() -> str:
    """Names this run of the kernel: its clock, which the moments are told on, starts anew with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _own_folder(path: Path) -> None:
    """Makes the folder. Where everybody may write, another user may have been there first."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"fetch.node_folder {str(path)!r} cannot be made ({error}); name a local folder of your own"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"fetch.node_folder {str(path)!r} must be a folder of your own that others cannot enter (mode "
            f"0700); remove it, or name another one"
        )
