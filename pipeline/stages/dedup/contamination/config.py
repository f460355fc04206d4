"""The options of method contamination. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.phash import BITS


@dataclass(frozen=True, kw_only=True)
class ContaminationOptions:
    """What looks like a benchmark's picture.

    Attributes:
        distance: bits of 256 in which hashes may differ, where the benchmark's pictures are at hand or its
            list has `phash_long`.
        short_distance: bits of 64, where a list has nothing but the well-known `phash`.
    """

    distance: int = 16
    short_distance: int = 4

    def check(self) -> None:
        """Raises ConfigError for values that cannot be."""
        if not 0 <= self.distance <= BITS // 4:
            raise ConfigError(
                f"contamination.distance {self.distance} must be in 0..{BITS // 4}: beyond, all are alike"
            )
        if not 0 <= self.short_distance <= 7:
            raise ConfigError(f"contamination.short_distance {self.short_distance} must be in 0..7")
