"""A shard written in the order of its keys although its pictures arrive in any order, in flat memory.

What arrives in turn goes straight into the tar. What arrives early waits: in memory up to a bound, for most
are early by a few places only, and beyond it in a spool file, so that one slow host neither fills the memory
nor stops the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter

#: bytes of samples that wait in memory
HELD_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Spooled:
    """A sample in the spool file: suffix, offset and size of each member."""

    key: str
    places: list[tuple[str, int, int]]


class OrderedShard:
    """Takes sample or None for each of the positions 0..rows-1, once each, in any order.

    Args:
        held: bytes of samples that may wait in memory.
    """

    def __init__(self, folder: Path, name: str, *, held: int = HELD_BYTES) -> None:
        self.path = folder / f"{name}.tar"
        self._tar = ShardWriter(self.path)
        self._spool_path = folder / f"{name}.spool"
        self._spool: IO[bytes] | None = None
        self._end = 0
        self._next = 0
        self._room = held
        self._early: dict[int, Sample | _Spooled | None] = {}  # None for dropped rows

    def put(self, position: int, sample: Sample | None) -> None:
        if position < self._next or position in self._early:
            raise AssertionError(f"position {position} was put before")
        if position > self._next:
            self._early[position] = self._keep(sample)
            return
        self._write(sample)
        while self._next in self._early:
            self._write(self._fetch(self._early.pop(self._next)))

    def close(self, rows: int) -> None:
        """Ends the tar; `rows` is how many positions there were."""
        if self._next != rows or self._early:
            raise AssertionError(f"{self._next} of {rows} positions were put in an unbroken row")
        self._tar.close()
        if self._spool is not None:
            self._spool.close()
            self._spool_path.unlink()

    def _write(self, sample: Sample | None) -> None:
        if sample is not None:
            self._tar.write(sample)
        self._next += 1

    def _keep(self, sample: Sample | None) -> Sample | _Spooled | None:
        if sample is None:
            return None
        size = _size(sample)
        if size <= self._room:
            self._room -= size
            return sample
        if self._spool is None:
            self._spool = self._spool_path.open("w+b")
        places = []
        self._spool.seek(self._end)
        for suffix, data in sample.members.items():
            self._spool.write(data)
            places.append((suffix, self._end, len(data)))
            self._end += len(data)
        return _Spooled(sample.key, places)

    def _fetch(self, kept: Sample | _Spooled | None) -> Sample | None:
        if isinstance(kept, Sample):
            self._room += _size(kept)
            return kept
        if kept is None:
            return None
        assert self._spool is not None
        members = {}
        for suffix, offset, size in kept.places:
            self._spool.seek(offset)
            members[suffix] = self._spool.read(size)
        return Sample(kept.key, members)


def _size(sample: Sample) -> int:
    return sum(map(len, sample.members.values()))
