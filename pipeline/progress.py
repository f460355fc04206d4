"""One progress line per stage: units done, rate, remaining time, rows kept and dropped.

On a terminal the line is redrawn; in a log file a new line comes every few seconds, so that both a person
and a batch job's log can be read.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR = 20


def duration(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """Shows how far a piece of work is. `total` is a number of units; `unit` names them."""

    def __init__(
        self,
        label: str,
        total: int,
        *,
        done_before: int = 0,
        unit: str = "units",
        stream: TextIO | None = None,
        every: float | None = None,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done_before = done_before
        self.done = 0
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every = every if every is not None else (0.2 if self.live else 5.0)
        self.began = time.monotonic()
        self.shown = float("-inf")

    def update(self, done: int, detail: str = "", *, force: bool = False) -> None:
        """Sets how many units of this run are done, and redraws when it is time to."""
        self.done = done
        now = time.monotonic()
        if not force and now - self.shown < self.every:
            return
        self.shown = now
        self.stream.write(
            ("\r\x1b[2K" if self.live else "") + self.line(detail) + ("" if self.live else "\n")
        )
        self.stream.flush()

    def line(self, detail: str) -> str:
        seconds = time.monotonic() - self.began
        all_done = self.done + self.done_before
        share = all_done / self.total if self.total else 1.0
        filled = int(share * BAR)
        rate = self.done / seconds if seconds > 0 else 0.0
        left = duration((self.total - all_done) / rate) if rate else "-:--"
        clock = f"{duration(seconds)}<{left}" if all_done < self.total else f"in {duration(seconds)}"
        bar = "#" * filled + "." * (BAR - filled)
        text = f"{self.label:<10} [{bar}] {all_done}/{self.total} {self.unit}  {clock}  {rate:.2f}/s"
        return f"{text}  {detail}" if detail else text

    def close(self, detail: str = "") -> None:
        """Draws the line a last time and leaves it standing."""
        self.update(self.done, detail, force=True)
        if self.live:
            self.stream.write("\n")
            self.stream.flush()
