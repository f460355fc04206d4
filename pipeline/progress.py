"""One progress line per piece of work: how much is done, rate, remaining time, and a few words.

On a terminal the line is redrawn; in a log file a new line comes every few seconds, so that both a person
and a batch job's log can be read. A leaf that stages and training share.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR = 20
#: seconds between two drawings, on a terminal and elsewhere
LIVE_EVERY, LOG_EVERY = 0.2, 5.0


def duration(seconds: float) -> str:
    """`m:ss` or `h:mm:ss`."""
    hours, rest = divmod(int(seconds + 0.5), 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """Shows how far a piece of work is.

    Args:
        label: what is being done.
        total: how much there is, in `unit`.
        first: how much was done before this run; has no part in the rate.
        every: seconds between two drawings; by default few on a terminal, more elsewhere.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        first: int = 0,
        unit: str = "units",
        stream: TextIO | None = None,
        every: float | None = None,
    ) -> None:
        self.label, self.total, self.first, self.unit = label, total, first, unit
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every = every if every is not None else (LIVE_EVERY if self.live else LOG_EVERY)
        self.began = time.monotonic()
        self.shown = float("-inf")
        self.last: tuple[int, str] | None = None

    def update(self, done: int, detail: str = "", *, force: bool = False) -> None:
        """Redraws with so much done in all, when it is time to."""
        now = time.monotonic()
        if not force and now - self.shown < self.every:
            return
        self.shown, self.last = now, (done, detail)
        before, after = ("\r\x1b[2K", "") if self.live else ("", "\n")
        self.stream.write(before + self.line(done, detail, now - self.began) + after)
        self.stream.flush()

    def line(self, done: int, detail: str, seconds: float) -> str:
        share = done / self.total if self.total else 1.0
        bar = ("#" * int(share * BAR)).ljust(BAR, ".")
        rate = (done - self.first) / seconds if seconds > 0 else 0.0
        left = duration((self.total - done) / rate) if rate else "-:--"
        clock = f"{duration(seconds)}<{left}" if done < self.total else f"in {duration(seconds)}"
        text = f"{self.label:<13} [{bar}] {done:,}/{self.total:,} {self.unit}  {clock}"
        return f"{text}  {detail}" if detail else text

    def close(self, done: int, detail: str = "") -> None:
        """Leaves the last line standing."""
        if self.last != (done, detail):
            self.update(done, detail, force=True)
        if self.live:
            self.stream.write("\n")
            self.stream.flush()
