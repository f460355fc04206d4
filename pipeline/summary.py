"""What a run of a stage came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.stage import Counts

EXIT_DONE, EXIT_FAILED, EXIT_CONFIG, EXIT_STOPPED = 0, 1, 2, 75


@dataclass(kw_only=True)
class Summary:
    """What a run of a stage came to. `units` and `done_before` speak of the chosen units."""

    stage: str
    units: int
    done_before: int
    done: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    stopped: bool = False
    counts: Counts = field(default_factory=Counts)
    exit_code: int = EXIT_DONE

    def detail(self) -> str:
        """The end of the progress line."""
        if self.units == self.done_before:
            return "nothing to do"
        text = f"in {self.counts.taken:,} out {self.counts.kept:,}"
        if self.failed:
            text += f"  FAILED {len(self.failed)}"
        return text + ("  stopped" if self.stopped else "")
