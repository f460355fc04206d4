"""The pulse of a run: what its driver says of itself while it works, for whoever asks how far a stage is.

    OUTPUT/_pairmill/running/HOST-PID-<random>.json    every few seconds anew; gone when the run has ended

Manifests tell what is done; a pulse tells that somebody is at work, how fast, and on what. Nothing depends on
it: one that cannot be written is missing from a table, and the run goes on. A thread of its own writes it, so
that a storage which does not answer holds up nothing, least of all a stop within a batch job's last seconds.

A killed run leaves its pulse. It counts for nothing as soon as somebody on the same machine sees that the
process is gone, and after `STALE` seconds without a sign of life anywhere. The next run sweeps it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import locks, manifest, storage

log = logging.getLogger(__name__)

#: seconds between two signs of life, on a disk and on an object store, where each costs a request
EVERY, EVERY_REMOTE = 5.0, 30.0
#: seconds without a sign of life after which a pulse counts for nothing
STALE = 300.0
#: seconds that the end of a run waits for its pulse to be taken away
PATIENCE = 5.0


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What a run under way says of itself.

    Attributes:
        stage: the stage's name, or `train`.
        began: seconds since 1970.
        alive: when it last gave a sign of life, likewise.
        working: when its first unit was begun, likewise; 0 before.
        units: of this run, those of its task alone.
        first: how many of them were done before.
        done: how many it has done since.
        running: how many are under way now.
        failed: attempts that have failed.
        quarantined: units it has given up.
        task: `i/n` of a job array; empty for none.
        job: SLURM's id, `17` or `17_3`; empty outside of SLURM.
        restart: which attempt of the job this is, 0 for the first.
        host: where the driver runs.
    """

    stage: str
    began: float
    alive: float
    working: float = 0.0
    units: int = 0
    first: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    quarantined: int = 0
    task: str = ""
    job: str = ""
    restart: int = 0
    host: str = ""

    @property
    def rate(self) -> float:
        """Units a second since the first one was begun; 0 before one is done."""
        seconds = self.alive - self.working
        return self.done / seconds if self.working and self.done and seconds > 0 else 0.0

    @property
    def left(self) -> int:
        """Units of this run that are neither done nor given up."""
        return max(0, self.units - self.first - self.done - self.quarantined)


class Beat:
    """What the driver holds: it tells how far it is, and the thread writes that down now and then."""

    def __init__(self, output: str, url: str, facts: dict[str, Any]) -> None:
        self.output, self.url, self.facts = output, url, facts
        self.failures = 0

    def tell(self, *, done: int, running: int, failed: int, quarantined: int) -> None:
        """Costs nothing: it is written with the next beat."""
        working = self.facts["working"] or (time.time() if running or done else 0.0)
        now = {"done": done, "running": running, "failed": failed, "quarantined": quarantined}
        self.facts = {**self.facts, **now, "working": working}

    def write(self) -> None:
        try:
            storage.write_bytes(self.url, json.dumps({**self.facts, "alive": time.time()}).encode())
        except Exception as error:  # whatever it is: the run matters, and this does not
            self.failures += 1
            if self.failures == 2:  # a first one may be passing
                log.warning("%s cannot be written (%s): `status` does not see this run", self.url, error)

    def remove(self) -> None:
        """Takes it away, and those of runs that were killed meanwhile."""
        try:
            storage.remove(self.url, missing_ok=True)
            sweep(self.output)
        except Exception as error:
            log.info("%s cannot be removed: %s", self.url, error)


@contextlib.contextmanager
def beating(output: str, stage: str, *, units: int = 0, first: int = 0, task: str = "") -> Iterator[Beat]:
    """Shows that a run is under way, for the time of the block.

    Args:
        output: the folder that the run writes to.
        stage: the stage's name.
        units: how many the run is about; `first` of them are done already.
        task: `i/n` of a job array.
    """
    facts: dict[str, Any] = {
        **locks.identity(), **_slurm(), "stage": stage, "began": time.time(), "working": 0.0, "units": units,
        "first": first, "done": 0, "running": 0, "failed": 0, "quarantined": 0, "task": task,
    }  # fmt: skip
    host = re.sub(r"[^A-Za-z0-9.]+", "-", facts["host"]) or "host"
    name = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    beat = Beat(output, storage.join(folder(output), name), facts)
    ended = threading.Event()
    every = EVERY if storage.is_local(output) else EVERY_REMOTE
    thread = threading.Thread(target=_beat_on, args=(beat, ended, every), name="pulse", daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        ended.set()
        thread.join(PATIENCE)


def _beat_on(beat: Beat, ended: threading.Event, every: float) -> None:
    beat.write()
    while not ended.wait(every):
        beat.write()
    beat.remove()


def _slurm() -> dict[str, Any]:
    """Which job of SLURM this process belongs to, as squeue writes it, and which attempt at it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    restart = os.environ.get("SLURM_RESTART_COUNT", "")
    return {"job": job, "restart": int(restart) if job and restart.isdigit() else 0}


def folder(output: str) -> str:
    return storage.join(output, manifest.BOOKS, "running")


def living(output: str) -> list[Pulse]:
    """The runs that are under way over an output folder now, by when they began; changes nothing."""
    found = [_pulse(facts) for _, facts in _read(output) if not _is_over(facts)]
    return sorted(found, key=lambda pulse: pulse.began)


def sweep(output: str) -> None:
    """Removes the pulses that killed runs have left; looking at them (`living`) does not."""
    place = folder(output)
    if storage.is_local(output):  # elsewhere a pulse is one request, and leaves nothing half sent
        storage.sweep_temporary(place)
    for name, facts in _read(output):
        if _is_over(facts):
            for left in storage.list_temporary(place):
                if left.startswith(f".{name}"):
                    storage.remove(storage.join(place, left), missing_ok=True)
            storage.remove(storage.join(place, name), missing_ok=True)


def _is_over(facts: Mapping[str, Any]) -> bool:
    return locks.is_gone(facts, after=STALE) or time.time() - facts["alive"] > STALE


def _read(output: str) -> Iterator[tuple[str, dict[str, Any]]]:
    place = folder(output)
    for name in storage.list_names(place):
        try:
            facts = json.loads(storage.read_bytes(storage.join(place, name)))
            _pulse(facts)
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # taken away meanwhile, or none of ours
            continue
        yield name, facts


def _pulse(facts: Mapping[str, Any]) -> Pulse:
    names = Pulse.__dataclass_fields__
    return Pulse(**{name: facts[name] for name in names})
