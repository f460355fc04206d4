"""The figures of a run: metrics.jsonl, and where the time between two rows went."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


class Metrics:
    """Appends rows to metrics.jsonl. On a resume, rows after the checkpoint are dropped, so each step
    stands there once."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        kept = []
        if path.is_file() and first_step > 0:
            kept = [
                line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= first_step
            ]
        self.path = path
        self._replace(kept)

    def write(self, row: Mapping[str, float | int | str]) -> None:
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()

    def last(self) -> dict[str, float]:
        """The row written last; empty where there is none."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]) if lines else {}

    def amend(self, more: Mapping[str, float]) -> None:
        """Adds to the row written last."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        self.stream.close()
        self._replace([*lines[:-1], json.dumps(self.last() | dict(more))])

    def _replace(self, lines: Sequence[str]) -> None:
        temp = self.path.with_name(f".{self.path.name}.tmp")
        temp.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        temp.replace(self.path)
        self.stream = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self.stream.close()


class Clock:
    """Times what happens between two rows: how much of it was waiting for data, or no training at all."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.began = self.last = time.monotonic()
        self.waited = self.paused = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the loader's next batch."""
        before = time.monotonic()
        try:
            yield
        finally:
            self.waited += time.monotonic() - before

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Saving and validating: no part of the throughput."""
        before = time.monotonic()
        try:
            yield
        finally:
            self.paused += time.monotonic() - before

    def row(self, samples: int) -> dict[str, float]:
        """Figures since the last call, in which so many samples were trained on.

        `data_wait` is the share of the time that this process waited for data: near 0, the model is what
        takes the time; towards 1, the loader is (more `workers`).
        """
        now = time.monotonic()
        seconds = max(now - self.last - self.paused, 1e-9)
        row = {
            "samples_per_s": round(samples / seconds, 2),
            "data_wait": round(min(1.0, self.waited / seconds), 4),
            "memory_gb": round(peak_memory() / 2**30, 3),
            "seconds": round(now - self.began, 3),
        }
        self.last, self.waited, self.paused = now, 0.0, 0.0
        return row


def peak_memory() -> int:
    """Most bytes that this process has held so far: on its GPU, or where there is none, in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class FirstBad:
    """Remembers which value was first no number, and at which step, without waiting for the device."""

    def __init__(self) -> None:
        self.at: dict[str, Tensor] = {}

    def look(self, step: int, values: Mapping[str, Tensor]) -> None:
        """`step` counts from 1."""
        for name, value in values.items():
            at = self.at.setdefault(name, torch.zeros((), dtype=torch.int64, device=value.device))
            self.at[name] = torch.where((at == 0) & ~torch.isfinite(value), step, at)

    def found(self) -> tuple[int, str] | None:
        """The step and the name, a part before the whole; waits for the device."""
        bad = [(int(at), name == "loss", name) for name, at in self.at.items() if int(at)]
        return (min(bad)[0], min(bad)[2]) if bad else None


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a row cut by a kill: it is written again
