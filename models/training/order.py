"""The order in which the samples of one dataset are seen: endless, from the counts of its shards alone.

An epoch is a permutation of the shards, cut into windows of a few; the samples of a window are permuted, and
one window follows the other. So reading touches few shards at a time, nothing of the size of the dataset is
held, and any position of the order is found at once. Epochs follow each other without a gap: the uneven tail
of one and the beginning of the next may share a batch, and nothing is dropped.

Shapes: N positions, S shards, K windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models import draws

#: permutations of windows that are kept; a batch seldom lies in more than two
_KEPT = 4


@dataclass(frozen=True)
class ShardOrder:
    """counts_S: int64, samples of each shard. window: shards that are mixed with each other. stream: keeps
    datasets of one run apart."""

    counts_S: np.ndarray
    seed: int
    window: int
    stream: int = 0

    @cached_property
    def total(self) -> int:
        """Samples of one epoch."""
        return int(self.counts_S.sum())

    def locate(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(shard_N, place_N), int64: where the samples at positions first .. first+count-1 lie."""
        shards, places = [], []
        while count:
            epoch, at = divmod(first, self.total)
            starts_K = self._epoch(epoch)[1]
            window = int(np.searchsorted(starts_K, at, side="right")) - 1
            shard_N, place_N = self._window(epoch, window)
            part = slice(at - int(starts_K[window]), min(at - int(starts_K[window]) + count, len(shard_N)))
            shards.append(shard_N[part])
            places.append(place_N[part])
            taken = part.stop - part.start
            first, count = first + taken, count - taken
        return np.concatenate(shards or [_EMPTY]), np.concatenate(places or [_EMPTY])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in their order, and the position at which each window starts."""
        found = self._epochs.get(epoch)
        if found is None:
            order_S = draws.permutation(draws.key(self.seed, self.stream, epoch), len(self.counts_S))
            sizes_K = np.add.reduceat(
                self.counts_S[order_S], np.arange(0, len(order_S), self.window), dtype=np.int64
            )
            found = order_S, np.cumsum(sizes_K) - sizes_K
            _remember(self._epochs, epoch, found)
        return found

    def _window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard and place of each sample of a window, in their order."""
        found = self._windows.get((epoch, window))
        if found is None:
            shard_W = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
            sizes_W = self.counts_S[shard_W]
            order_N = draws.permutation(draws.key(self.seed, self.stream, epoch, window), int(sizes_W.sum()))
            ends_W = np.cumsum(sizes_W)
            inside_N = np.searchsorted(ends_W, order_N, side="right")
            found = shard_W[inside_N], order_N - (ends_W - sizes_W)[inside_N]
            _remember(self._windows, (epoch, window), found)
        return found

    @cached_property
    def _epochs(self) -> dict:
        return {}

    @cached_property
    def _windows(self) -> dict:
        return {}


_EMPTY = np.empty(0, np.int64)


def _remember(cache: dict, name: object, value: object) -> None:
    if len(cache) >= _KEPT:
        del cache[next(iter(cache))]
    cache[name] = value
