"""metrics.jsonl: one row per logged step, for programs to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class Metrics:
    """Appends rows to metrics.jsonl. On a resume, rows after the checkpoint are dropped, so each step
    stands there once."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        kept = []
        if path.is_file() and first_step > 0:
            kept = [
                line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= first_step
            ]
        temp = path.with_name(f".{path.name}.tmp")
        temp.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temp.replace(path)
        self.stream = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, float | int | str]) -> None:
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a row cut by a kill: it is written again
