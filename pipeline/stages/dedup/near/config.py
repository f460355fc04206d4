"""The options of method near. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.phash import BITS

#: bits of a band: with fewer nearly all pictures share one, with more copies no longer do
LEAST_BITS, MOST_BITS = 8, 48


@dataclass(frozen=True, kw_only=True)
class NearOptions:
    """What looks alike, and how it is searched.

    Attributes:
        distance: bits of 256 in which the hashes of two pictures may differ.
        bands: how many parts of the hashes are looked up; pictures are compared when one part is equal. All
            that differ in fewer bits than this are found for sure.
        band_bits: bits of a part. More make the search faster and find a little less.
        most: pictures with an equal part are all compared with each other up to this number, and beyond it
            with so many of them, those with the smallest keys.
    """

    distance: int = 16
    bands: int = 4
    band_bits: int = 24
    most: int = 4096

    def check(self) -> None:
        """Raises ConfigError for values that cannot be."""
        if not 0 <= self.distance <= BITS // 4:
            raise ConfigError(
                f"near.distance {self.distance} must be in 0..{BITS // 4}: further apart, all are alike"
            )
        if not LEAST_BITS <= self.band_bits <= MOST_BITS:
            raise ConfigError(f"near.band_bits {self.band_bits} must be in {LEAST_BITS}..{MOST_BITS}")
        if self.bands < 1 or self.bands * self.band_bits > BITS:
            raise ConfigError(
                f"near.bands {self.bands} of {self.band_bits} bits must be at least 1, and together at most "
                f"{BITS} bits"
            )
        if self.most < 256:
            raise ConfigError(f"near.most {self.most} must be at least 256")
