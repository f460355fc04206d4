"""A shard written in the order of its keys although its pictures arrive in any order, in flat memory.

What arrives in turn goes straight into the tar; what arrives early waits in a spool file, so that one slow
host neither fills the memory nor stops the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter


class OrderedShard:
    """Takes sample or None for each of the positions 0..rows-1, once each, in any order."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.tar"
        self._tar = ShardWriter(self.path)
        self._spool_path = folder / f"{name}.spool"
        self._spool: IO[bytes] = self._spool_path.open("w+b")
        self._end = 0
        self._next = 0
        # position -> key and members (suffix, offset, size) in the spool; None for dropped rows
        self._early: dict[int, tuple[str, list[tuple[str, int, int]]] | None] = {}

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
        self._spool.close()
        self._spool_path.unlink()

    def _write(self, sample: Sample | None) -> None:
        if sample is not None:
            self._tar.write(sample)
        self._next += 1

    def _keep(self, sample: Sample | None) -> tuple[str, list[tuple[str, int, int]]] | None:
        if sample is None:
            return None
        places = []
        self._spool.seek(self._end)
        for suffix, data in sample.members.items():
            self._spool.write(data)
            places.append((suffix, self._end, len(data)))
            self._end += len(data)
        return sample.key, places

    def _fetch(self, kept: tuple[str, list[tuple[str, int, int]]] | None) -> Sample | None:
        if kept is None:
            return None
        key, places = kept
        members = {}
        for suffix, offset, size in places:
            self._spool.seek(offset)
            members[suffix] = self._spool.read(size)
        return Sample(key, members)
