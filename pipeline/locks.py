"""Who works on what: two runs on one output folder must not mix their files.

A lock is a small file in `_pairmill/locks/` that names its owner. It is taken by writing one's own file and
then listing: whoever sees another that matters takes its own away, waits and tries again. That needs nothing
but a listing that shows what was written before, which local disks, network disks and object stores all give;
no exclusive creation, no conditional request, which many of them do not.

* `unit`: one commit at a time to a unit. Held for as long as its parts are being written.
* `run`: many runs at a time, all of one configuration.

A lock outlives an owner that is killed. It is void as soon as somebody on the same machine sees that the
process is gone; seen from other machines, after `STALE` seconds without a sign of life.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import manifest, storage
from pipeline.shards.format import shard_name

#: seconds without a sign of life after which a lock of another machine is void
STALE = 900.0
#: a lock that lives longer than this is renewed by its owner
RENEW = 300.0

#: what this process holds: after an error that no handler saw, its number alone would say that it lives
_held: set[str] = set()


class BusyError(RuntimeError):
    """Somebody else holds a lock; `facts` are what they said about themselves."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(describe(facts))
        self.facts = facts


@dataclass
class Lock:
    """A lock that is held. `renew` is to be called now and then by owners that keep it for long."""

    url: str
    facts: dict[str, Any]
    renewed: float = field(default_factory=time.monotonic)

    def renew(self) -> None:
        if time.monotonic() - self.renewed > RENEW:
            _write(self.url, self.facts)
            self.renewed = time.monotonic()


@contextlib.contextmanager
def unit(output: str, number: int) -> Iterator[Lock]:
    """The only writer of a unit, for the time of the block; waits for another to finish."""
    with _holding(output, shard_name(number), {}, matters=lambda _: True, patience=float("inf")) as lock:
        yield lock


@contextlib.contextmanager
def run(output: str, made_from: Mapping[str, Any], *, patience: float = 3.0) -> Iterator[Lock]:
    """One of the runs over an output folder, all of which make the same.

    Args:
        made_from: what a unit's digest covers, the inputs apart: stage, version, semantic config.

    Raises:
        BusyError: a living run makes something else there.
    """

    def differs(other: Mapping[str, Any]) -> bool:
        return other["made_from"] != json.loads(json.dumps(made_from))

    with _holding(output, "run", {"made_from": made_from}, matters=differs, patience=patience) as lock:
        yield lock


def runs(output: str) -> list[str]:
    """Who runs a stage over this output folder now, in words."""
    found = _others(folder(output), "run.", mine="", matters=lambda _: True)
    return [describe(facts) for facts in found]


def is_busy(output: str, number: int) -> bool:
    """Whether somebody writes this unit now."""
    return bool(_others(folder(output), f"{shard_name(number)}.", mine="", matters=lambda _: True))


def sweep(output: str) -> None:
    """Removes the locks of owners that are gone; nothing waits for that."""
    storage.sweep_temporary(folder(output))
    _others(folder(output), "", mine="", matters=lambda _: False)


def folder(output: str) -> str:
    return storage.join(output, manifest.BOOKS, "locks")


@contextlib.contextmanager
def _holding(
    output: str,
    name: str,
    facts: Mapping[str, Any],
    *,
    matters: Callable[[Mapping[str, Any]], bool],
    patience: float,
) -> Iterator[Lock]:
    url = storage.join(folder(output), f"{name}.{uuid.uuid4().hex}.json")
    lock = Lock(url, {**identity(), **facts})
    until = time.monotonic() + patience
    _held.add(url)
    try:
        while True:
            _write(url, lock.facts)
            others = _others(folder(output), f"{name}.", mine=url, matters=matters)
            if not others:
                break
            storage.remove(url, missing_ok=True)
            if time.monotonic() > until:
                raise BusyError(others[0])
            time.sleep(random.uniform(0.05, 0.5))
        yield lock
    finally:
        _held.discard(url)
        storage.remove(url, missing_ok=True)


def _write(url: str, facts: Mapping[str, Any]) -> None:
    storage.write_bytes(url, json.dumps({**facts, "alive": time.time()}).encode())


def _others(
    place: str, prefix: str, *, mine: str, matters: Callable[[Mapping[str, Any]], bool]
) -> list[dict[str, Any]]:
    """What living others say that hold a lock of this name; void locks are removed."""
    found = []
    for name in storage.list_prefixed(place, prefix):
        url = storage.join(place, name)
        if url == mine:
            continue
        try:
            facts = json.loads(storage.read_bytes(url))
        except FileNotFoundError:  # let go of meanwhile
            continue
        if _is_void(url, facts):
            storage.remove(url, missing_ok=True)
        elif matters(facts):
            found.append(facts)
    return found


def _is_void(url: str, facts: Mapping[str, Any]) -> bool:
    me = identity()
    if (facts["machine"], facts["process"]) == (me["machine"], me["process"]):
        return url not in _held
    return is_gone(facts, after=STALE)


def is_gone(facts: Mapping[str, Any], *, after: float) -> bool:
    """Whether the process that said this of itself is gone: certain on its machine; seen from another one,
    when it has given no sign of life (`alive`) for so many seconds."""
    if facts["machine"] != _machine():
        return time.time() - facts["alive"] > after
    return _started(facts["process"][0]) != facts["process"][1]


def identity() -> dict[str, Any]:
    """What a process says of itself, so that others can tell whether it lives."""
    return {
        "machine": _machine(),
        "process": [os.getpid(), _started(os.getpid())],
        "host": platform.node(),
    }


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where process numbers mean the same: one boot of one machine, and one container of it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    if not boot.exists() or not space.exists():
        return platform.node()
    return f"{boot.read_text().strip()} {space.readlink()}"


def _started(pid: int) -> str:
    """When a process started, in ticks since the boot; empty when there is none of this number, or where the
    system does not tell."""
    try:
        # the name, in parentheses, may hold anything: what follows it is of fixed order
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def describe(facts: Mapping[str, Any]) -> str:
    """Who holds a lock, for messages."""
    return f"process {facts['process'][0]} on {facts['host']}"
