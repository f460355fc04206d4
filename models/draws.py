"""Random numbers that are functions of a key: no generator state to save, the same on every machine.

All come from splitmix64 (Steele et al. 2014), so that a new numpy changes no run. `models.batch` has the
same for tensors.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key(*words: int) -> int:
    """64 bits of a few integers; their order counts."""
    state = 0
    for word in words:
        state = _mix((state + _GOLDEN + word) & _MASK)
    return state


def permutation(state: int, size: int) -> np.ndarray:
    """The numbers 0..size-1 in the order of their hashes under a key, int64."""
    with np.errstate(over="ignore"):
        x = (np.arange(size, dtype=np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(state)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable")


class Draws:
    """The numbers of one key, one after another: `Draws(seed, step, row).random()`."""

    def __init__(self, *words: int) -> None:
        self._state = key(*words)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        self._state = (self._state + _GOLDEN) & _MASK
        return (_mix(self._state) >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def below(self, limit: int) -> int:
        """One of 0..limit-1."""
        return int(self.random() * limit)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)
