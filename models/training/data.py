"""Batches for training: from the plan of a step to tensors, in as many processes as one likes.

The global batch of a step is a pure function of (seed, step) (`models.training.mixture`); which rank, micro
batch or data worker loads a row changes nothing. Captions and augmentation are drawn by (seed, step, row).
Pictures travel as uint8, and are normalised on the device where they are used.

Shapes: B batch, C channels, H/W pixels, T text tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.batch import Batch
from models.draws import Draws
from models.images import CorruptImageError, ImageTransform, decode_array
from models.training.mixture import TEXTS, BatchPlan
from models.training.shards import ShardReader
from models.training.stopping import LocalError, TrainingError, die_with_parent
from pipeline import memory

#: how many samples after an unreadable one are tried in its place
MAX_REPLACEMENTS = 16
#: what a row's draws are for
_PICTURE, _CAPTION = 0, 1

Corrupt = tuple[str, str, str]


@dataclass(frozen=True)
class Places:
    """A micro batch to load. row_B: places in the global batch. dataset_B, shard_B, place_B: where each
    sample lies."""

    step: int
    kind: str
    row_B: np.ndarray
    dataset_B: np.ndarray
    shard_B: np.ndarray
    place_B: np.ndarray


@dataclass(frozen=True)
class LoadedBatch:
    """A micro batch whose pictures are still uint8, and the samples that could not be read, as (shard, key,
    reason)."""

    batch: Batch
    corrupt: list[Corrupt]
    transform: ImageTransform

    def pin_memory(self) -> LoadedBatch:
        pinned: dict[str, Any] = {
            name: None if value is None else value.pin_memory() for name, value in vars(self.batch).items()
        }
        return replace(self, batch=Batch(**pinned))

    def to(self, device: torch.device | str, *, image_dtype: torch.dtype | None = None) -> Batch:
        """The batch on a device, its pictures normalised there, in float32 or `image_dtype`."""
        batch = self.batch.to(device)
        if batch.image_BCHW is None:
            return batch
        pixels = self.transform.normalise(batch.image_BCHW)
        return replace(batch, image_BCHW=pixels if image_dtype is None else pixels.to(image_dtype))


class PairDataset(Dataset[LoadedBatch]):
    """Loads micro batches: reads, chooses captions, decodes, augments, tokenises."""

    def __init__(
        self,
        reader: ShardReader,
        transform: ImageTransform,
        tokenizer: Any,
        *,
        max_text_tokens: int,
        seed: int,
    ) -> None:
        self.reader, self.transform, self.tokenizer = reader, transform, tokenizer
        self.max_text_tokens = max_text_tokens
        self.seed = seed

    def __getitems__(self, places: Places) -> LoadedBatch:
        """The whole micro batch.

        Raises:
            LocalError: a shard is damaged, or too many samples in a row cannot be read.
        """
        size, count = self.transform.size, len(places.row_B)
        pixels_BCHW = None if places.kind == TEXTS else torch.empty((count, 3, size, size), dtype=torch.uint8)
        captions, image_ids, corrupt = [""] * count, [0] * count, []
        for at in np.lexsort((places.place_B, places.shard_B, places.dataset_B)).tolist():
            pixels, captions[at], image_ids[at], found = self._sample(places, at)
            corrupt += found
            if pixels_BCHW is not None and pixels is not None:
                pixels_BCHW[at] = pixels
        ids_BT, mask_BT = self.tokenizer.encode(captions, self.max_text_tokens)
        batch = Batch(
            image_BCHW=pixels_BCHW,
            text_ids_BT=torch.as_tensor(ids_BT),
            text_mask_BT=torch.as_tensor(mask_BT),
            image_id_B=torch.tensor(image_ids, dtype=torch.int64),
            row_B=torch.from_numpy(places.row_B.astype(np.int64)),
        )
        return LoadedBatch(batch, corrupt, self.transform)

    def _sample(self, places: Places, at: int) -> tuple[Tensor | None, str, int, list[Corrupt]]:
        """Pixels (uint8 [3, H, W]; None of a text), caption, image id, and unreadable samples met on the way.

        A batch has a fixed size, so a sample that cannot be read is replaced by the next one that can.
        """
        dataset, row = int(places.dataset_B[at]), int(places.row_B[at])
        corrupt: list[Corrupt] = []
        try:
            for shard, place in self.reader.candidates(
                dataset, int(places.shard_B[at]), int(places.place_B[at])
            ):
                try:
                    sample = self.reader.read(dataset, shard, place)
                    draws = Draws(self.seed, places.step, row, _CAPTION)
                    caption = self.reader.sets[dataset].rule.choose(sample.caption, sample.meta, draws)
                    pixels = None if places.kind == TEXTS else self._pixels(sample.image, places.step, row)
                    return pixels, caption, sample.image_id, corrupt
                except (CorruptImageError, ValueError) as error:
                    url = self.reader.sets[dataset].urls[shard]
                    corrupt.append((url, self.reader.index(dataset, shard).key(place), str(error)))
                    if len(corrupt) == MAX_REPLACEMENTS:
                        break
        except TrainingError as error:
            raise LocalError(str(error)) from error
        listed = "; ".join(f"{s} {k}: {why}" for s, k, why in corrupt[:3])
        raise LocalError(
            f"{len(corrupt)} samples in a row cannot be read ({listed}); verify these shards"
            if corrupt
            else f"{self.reader.sets[dataset].urls[0]} and the rest of its dataset hold no sample of use"
        )

    def _pixels(self, data: bytes, step: int, row: int) -> Tensor:
        image_HWC = decode_array(data, least_side=self.transform.least_side)
        return self.transform.pixels(image_HWC, Draws(self.seed, step, row, _PICTURE))


@dataclass(frozen=True)
class RankSampler:
    """The micro batches of one rank from a step on."""

    plan: BatchPlan
    first_step: int
    steps: int
    rank: int
    world_size: int
    accumulation: int

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[Places]:
        parts = self.plan.micro_rows(self.rank, self.world_size, self.accumulation)
        for step in range(self.first_step, self.steps):
            found = self.plan.rows(step)
            for row_B in parts:
                yield Places(
                    step,
                    found.kind,
                    row_B,
                    found.dataset_G[row_B],
                    found.shard_G[row_B],
                    found.place_G[row_B],
                )


def training_loader(
    dataset: PairDataset, sampler: RankSampler, *, workers: int, pin: bool
) -> DataLoader[LoadedBatch]:
    """Micro batches in order; with workers, decoded ahead in other processes, which live as long as the
    loader's iterator: the whole run."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=_whole,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_begin_worker if workers else None,
    )


def _whole(loaded: LoadedBatch) -> LoadedBatch:
    return loaded


def _begin_worker(number: int) -> None:
    # it holds all that was open when it was forked, such as the lock on the run folder
    die_with_parent(os.getppid())
    cv2.setNumThreads(0)  # a pool of threads does not survive a fork
    memory.keep_freed()
