"""Which samples make up the global batch of a step: a pure function of (seed, step).

Several datasets are mixed by weights. A weight is a share of the rows of all steps. Steps are wholly pairs or
wholly texts: step t is one of texts where floor(t * w + 1/2) moves on to the next integer, w the share of the
text datasets. Within the steps of a kind, a batch takes from each dataset its share, rounded up or down by
systematic sampling: one offset a step, from the golden ratio's sequence, so that a dataset stays within a few
rows of its share over any number of steps. Every dataset goes through its own epochs (`order.ShardOrder`).

A rank takes its part of each micro batch: the batch is cut into micro batches first, then over ranks.

Shapes: G rows of the global batch, D datasets of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models import draws
from models.training.order import ShardOrder

PAIRS, TEXTS = "pairs", "texts"
_GOLDEN_RATIO = (5**0.5 - 1) / 2
#: steps whose rows are counted at once
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """One dataset of a mixture. weight: above 0, relative to the others."""

    order: ShardOrder
    weight: float = 1.0
    kind: str = PAIRS


@dataclass(frozen=True)
class Rows:
    """The samples of one step, row by row: which dataset, which of its shards, which sample of that."""

    kind: str
    dataset_G: np.ndarray
    shard_G: np.ndarray
    place_G: np.ndarray


@dataclass(frozen=True)
class BatchPlan:
    """What each step consists of. batch_size: of the global batch."""

    sources: Sequence[Source]
    batch_size: int
    seed: int

    def check(self) -> None:
        """Raises ValueError when a batch would show one sample of a dataset twice."""
        for kind in (PAIRS, TEXTS):
            for number, share in zip(*self._shares(kind), strict=True):
                rows = int(np.ceil(self.batch_size * share))
                total = self.sources[number].order.total
                if rows > total:
                    which = f"dataset {number + 1} of the mix" if len(self.sources) > 1 else "the shards"
                    raise ValueError(
                        f"batch_size {self.batch_size} takes {rows} samples of {which} at once, more than "
                        f"the {total} that there are; use a smaller batch_size or weight"
                    )

    @property
    def samples(self) -> int:
        """Of all datasets, each once."""
        return sum(source.order.total for source in self.sources)

    @property
    def epoch_steps(self) -> int:
        """Whole steps in which as many samples are seen as there are in all datasets."""
        return max(1, self.samples // self.batch_size)

    def steps(self, epochs: float) -> int:
        """Steps that come nearest to so many epochs, at least one."""
        return max(1, round(epochs * self.samples / self.batch_size))

    def rows(self, step: int) -> Rows:
        """The global batch of a step."""
        texts, later = self._text_steps(step), self._text_steps(step + 1)
        kind, at = (TEXTS, texts) if later > texts else (PAIRS, step - texts)
        numbers, _ = self._shares(kind)
        first_D = self._taken(kind, at)
        count_D = self._counts(kind, at, at + 1)[0]
        parts = [
            self.sources[d].order.locate(int(f), int(n))
            for d, f, n in zip(numbers, first_D, count_D, strict=True)
        ]
        dataset_G = np.repeat(numbers, count_D)
        shard_G, place_G = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(numbers) > 1:  # every rank and micro batch gets some of each
            order_G = draws.permutation(draws.key(self.seed, step), self.batch_size)
            dataset_G, shard_G, place_G = dataset_G[order_G], shard_G[order_G], place_G[order_G]
        return Rows(kind, dataset_G, shard_G, place_G)

    def micro_rows(self, rank: int, world_size: int, accumulation: int) -> list[np.ndarray]:
        """The places in the global batch that one rank takes, for each of its micro batches.

        First into micro batches, then over ranks: the samples that are contrasted with each other in a micro
        batch are the same for every number of ranks.
        """
        rows = np.arange(self.batch_size)
        return [np.split(part, world_size)[rank] for part in np.split(rows, accumulation)]

    def _shares(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """The datasets of a kind, and their shares of its batches."""
        numbers = np.array([n for n, s in enumerate(self.sources) if s.kind == kind], np.int64)
        weights = np.array([self.sources[n].weight for n in numbers])
        return numbers, weights / weights.sum() if len(weights) else weights

    def _text_steps(self, steps: int) -> int:
        """How many of the first steps are of texts."""
        return int(np.floor(steps * self._text_share + 0.5)) if self._text_share < 1 else steps

    @cached_property
    def _text_share(self) -> float:
        texts = sum(s.weight for s in self.sources if s.kind == TEXTS)
        return texts / sum(s.weight for s in self.sources)

    def _counts(self, kind: str, first: int, last: int) -> np.ndarray:
        """int64 [steps, D]: rows of each dataset in the first..last-1-th step of a kind."""
        _, share_D = self._shares(kind)
        edges_D = self.batch_size * np.cumsum(share_D)
        edges_D[-1] = self.batch_size
        start = draws.Draws(self.seed, 1).random()
        offset = np.modf(start + np.arange(first, last) * _GOLDEN_RATIO)[0]
        upto = np.clip(np.ceil(edges_D[None] - offset[:, None]), 0, self.batch_size).astype(np.int64)
        upto[:, -1] = self.batch_size
        return np.diff(upto, axis=1, prepend=0)

    def _taken(self, kind: str, at: int) -> np.ndarray:
        """Rows that each dataset gave in the steps of a kind before the at-th."""
        done, taken_D = self._cache.get(kind, (0, None))
        if taken_D is None or done > at:
            done, taken_D = 0, np.zeros(len(self._shares(kind)[0]), np.int64)
        while done < at:
            last = min(at, done + _CHUNK)
            taken_D = taken_D + self._counts(kind, done, last).sum(axis=0)
            done = last
        self._cache[kind] = done, taken_D
        return taken_D

    @cached_property
    def _cache(self) -> dict[str, tuple[int, np.ndarray | None]]:
        return {}
