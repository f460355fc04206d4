"""Batches for training: the global batch of a step is a pure function of (seed, step).

Each epoch is one seeded permutation of all samples; its uneven tail is dropped. Rank r takes the r-th
contiguous slice of each micro batch of the global batch. So a run that resumes at step t, or goes
on with another number of processes, sees the global batches of an undisturbed run. Augmentation is keyed
by (seed, step, row of the global batch), never by a process's own random state.

Shapes: B batch, C channels, H/W pixels, T text tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from models.batch import Batch
from models.images import CorruptImageError, ImageTransform, decode
from models.training.table import SampleTable

#: how many samples after a corrupt one are tried in its place
MAX_REPLACEMENTS = 16


@dataclass(frozen=True)
class BatchPlan:
    """Which samples make up each global batch.

    samples: how many there are. batch_size: of the global batch.
    """

    samples: int
    batch_size: int
    seed: int

    @property
    def epoch_steps(self) -> int:
        return self.samples // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """int64 sample numbers of the global batch of a step."""
        epoch, position = divmod(step, self.epoch_steps)
        start = position * self.batch_size
        return self._permutation(epoch)[start : start + self.batch_size]

    def micro_batches(self, step: int, *, rank: int, world_size: int, accumulation: int) -> list[np.ndarray]:
        """The slices of one rank, in the order in which it computes them.

        First into micro batches, then over ranks: the samples that are contrasted with each other in a micro
        batch are the same for every number of ranks.
        """
        return [self.indices(step)[rows] for rows in self.micro_rows(rank, world_size, accumulation)]

    def micro_rows(self, rank: int, world_size: int, accumulation: int) -> list[np.ndarray]:
        """The places in the global batch that one rank takes, for each of its micro batches."""
        rows = np.arange(self.batch_size)
        return [np.split(part, world_size)[rank] for part in np.split(rows, accumulation)]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._cache.get("epoch") != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
            self._cache.update(epoch=epoch, order=order)
        return self._cache["order"]

    @cached_property
    def _cache(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class LoadedBatch:
    """A micro batch, and the samples that could not be read, as (shard, key, reason)."""

    batch: Batch
    corrupt: list[tuple[str, str, str]]

    def pin_memory(self) -> LoadedBatch:
        pinned = {
            name: None if value is None else value.pin_memory() for name, value in vars(self.batch).items()
        }
        return LoadedBatch(Batch(**pinned), self.corrupt)


class PairDataset(Dataset[tuple[torch.Tensor, str, int, int, list]]):
    """Pictures and captions by (step, row of the global batch, sample number). `step` -1: no augmentation."""

    def __init__(self, table: SampleTable, transform: ImageTransform, *, seed: int = 0) -> None:
        self.table = table
        self.transform = transform
        self.seed = seed

    def __getitem__(self, place: tuple[int, int, int]) -> tuple[torch.Tensor, str, int, int, list]:
        """(pixels [3, H, W], caption, image id, row, corrupt samples met on the way).

        A batch has a fixed size, so a sample that cannot be read is replaced by the next one that can.
        """
        step, row, index = place
        rng = np.random.default_rng([self.seed, step, row]) if step >= 0 else None
        corrupt: list[tuple[str, str, str]] = []
        for offset in range(MAX_REPLACEMENTS):
            number = (index + offset) % len(self.table)
            try:
                sample = self.table.read(number)
                image = decode(sample.image, least_side=self.transform.least_side)
                return self.transform(image, rng), sample.caption, sample.image_id, row, corrupt
            except (CorruptImageError, UnicodeDecodeError, ValueError) as error:
                shard = self.table.shards[self.table.shard_S[number]]
                corrupt.append((shard, self.table.keys[number], str(error)))
        listed = "; ".join(f"{s} {k}: {why}" for s, k, why in corrupt[:3])
        raise ValueError(
            f"{MAX_REPLACEMENTS} samples in a row cannot be read ({listed}); verify these shards"
        )


@dataclass(frozen=True)
class Collator:
    """Turns samples into a `LoadedBatch`: tokenises captions, stacks pictures."""

    tokenizer: Any
    max_text_tokens: int

    def __call__(self, samples: list[tuple[torch.Tensor, str, int, int, list]]) -> LoadedBatch:
        pixels, captions, image_ids, rows, corrupt = zip(*samples, strict=True)
        ids_BT, mask_BT = self.tokenizer.encode(list(captions), self.max_text_tokens)
        batch = Batch(
            image_BCHW=torch.stack(pixels),
            text_ids_BT=torch.as_tensor(ids_BT),
            text_mask_BT=torch.as_tensor(mask_BT),
            image_id_B=torch.tensor(image_ids, dtype=torch.int64),
            row_B=torch.tensor(rows, dtype=torch.int64),
        )
        return LoadedBatch(batch, [c for found in corrupt for c in found])


@dataclass(frozen=True)
class RankSampler:
    """Micro batches of one rank from a step on: lists of (step, row of the global batch, sample number)."""

    plan: BatchPlan
    first_step: int
    steps: int
    rank: int
    world_size: int
    accumulation: int

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in range(self.first_step, self.steps):
            numbers = self.plan.indices(step)
            for rows in self.plan.micro_rows(self.rank, self.world_size, self.accumulation):
                yield [(step, int(row), int(numbers[row])) for row in rows]


def training_loader(
    dataset: PairDataset, sampler: RankSampler, collate: Collator, *, workers: int, pin: bool
) -> DataLoader[LoadedBatch]:
    """Micro batches in order; with workers, decoded ahead in other processes."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
