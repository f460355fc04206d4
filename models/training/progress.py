"""What a person and a program see of a run under way: a progress line, and metrics.jsonl."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

BAR = 20
#: seconds between lines where the output is no terminal
LOG_EVERY = 5.0


class Progress:
    """`train albef 120/800 [===>    ] loss 2.31 312 samples/s eta 1:12`, redrawn on a terminal and written
    as a new line every few seconds elsewhere."""

    def __init__(self, label: str, total: int, *, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total = label, total
        self.first = done
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.began = time.monotonic()
        self.shown = float("-inf")
        self.last: tuple[int, str] | None = None

    def update(self, done: int, detail: str = "", *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.shown < (0.2 if self.live else LOG_EVERY):
            return
        self.shown, self.last = now, (done, detail)
        line = self._line(done, detail, now - self.began)
        self.stream.write(f"\r\x1b[2K{line}" if self.live else f"{line}\n")
        self.stream.flush()

    def close(self, done: int, detail: str = "") -> None:
        """Leaves the last line standing."""
        if self.last != (done, detail):
            self.update(done, detail, force=True)
        if self.live:
            self.stream.write("\n")
            self.stream.flush()

    def _line(self, done: int, detail: str, seconds: float) -> str:
        filled = int(BAR * done / max(1, self.total))
        bar = ("=" * filled + ">")[:BAR].ljust(BAR)
        rate = (done - self.first) / seconds if seconds > 0 else 0.0
        left = clock((self.total - done) / rate) if rate else "-:--"
        when = f"eta {left}" if done < self.total else f"in {clock(seconds)}"
        return " ".join(filter(None, [self.label, f"{done}/{self.total}", f"[{bar}]", detail, when]))


def clock(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`."""
    hours, rest = divmod(int(seconds + 0.5), 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


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
