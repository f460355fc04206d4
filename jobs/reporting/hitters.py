"""The most frequent of very many names in bounded memory.

Counts are exact as long as there are few names. Beyond twice the capacity the rarest are forgotten, and what
any name may have lost by that is known: a true count is at least the told one and at most `error` more (lossy
counting, Manku and Motwani, VLDB 2002).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Hitters:
    """Counters of the most frequent names.

    Attributes:
        width: counters of each name; names are ranked by the first.
        capacity: names that are kept when some have to be forgotten.
        counts: name -> its counters.
        error: what the first counter of a name may lack; 0 where all counts are exact.
    """

    width: int = 1
    capacity: int = 20_000
    counts: dict[str, list[int]] = field(default_factory=dict)
    error: int = 0

    def add(self, found: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Adds counters of names, each name at most once in a call."""
        for name, numbers in found:
            mine = self.counts.setdefault(name, [0] * self.width)
            for i, number in enumerate(numbers):
                mine[i] += number
        if len(self.counts) > 2 * self.capacity:
            kept = self.top(self.capacity)
            left = {name for name, _ in kept}
            self.error += max(numbers[0] for name, numbers in self.counts.items() if name not in left)
            self.counts = dict(kept)

    def top(self, most: int) -> list[tuple[str, list[int]]]:
        """The most frequent, ties by name."""
        return heapq.nsmallest(most, self.counts.items(), key=lambda item: (-item[1][0], item[0]))
