"""What a run trains on: its datasets, the samples of each shard, and the plan made of them.

Samples are counted once, by the main process, into `counts.json` of the run folder; the others read that.
URLs with keys in them do not go into the file: then every process lists the shards itself.
Folders with a `sizes.json` (`pairmill pack` writes it; of a view, `view.json`) are taken at its word, which
every shard is checked against when it is first read; of others the headers are read, which also finds damaged
shards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from models.training.captions import CaptionRule
from models.training.config import MixEntry, TrainConfig, datasets
from models.training.index import IndexFolder
from models.training.mixture import PAIRS, TEXTS, BatchPlan, Source
from models.training.order import ShardOrder
from models.training.shards import ShardReader, ShardSet
from models.training.stopping import TrainingError
from models.training.table import find_shards
from pipeline import storage
from pipeline.progress import Progress
from pipeline.shards.view import open_view
from pipeline.urls import without_secrets

log = logging.getLogger(__name__)

_NOUNS = {PAIRS: "pair of picture and caption", TEXTS: "text"}
COUNTS, INDEXES = "counts.json", "indexes"


@dataclass(frozen=True)
class TrainingData:
    """plan: which samples a step consists of. reader: the samples."""

    plan: BatchPlan
    reader: ShardReader

    def __len__(self) -> int:
        return self.plan.samples

    def captions(self, limit: int) -> Iterator[str]:
        """Captions of all datasets, each giving by its size."""
        for number, found in enumerate(self.reader.sets):
            share = max(1, round(limit * len(found) / max(1, len(self))))
            yield from islice(self.reader.captions(number, share), share)


def open_data(
    config: TrainConfig, folder: Path, *, is_main: bool = True, barrier: Callable[[], None] = lambda: None
) -> TrainingData:
    """Finds and counts the shards.

    Args:
        is_main: whether this process counts. barrier: waits for the others.

    Raises:
        ValueError: no shards, or fewer samples than a batch takes.
        TrainingError: a shard is damaged, or there are no samples.
    """
    entries, indexes = datasets(config), IndexFolder(folder / INDEXES)
    if is_main:
        _count(entries, folder, indexes)
    barrier()
    counted = json.loads((folder / COUNTS).read_text(encoding="utf-8"))["datasets"]
    sets = [
        ShardSet(
            found["shards"] or find_shards(entry.shards, kind=entry.kind),
            np.array(found["samples"], np.int64),
            entry.kind,
            _rule(entry),
        )
        for entry, found in zip(entries, counted, strict=True)
    ]
    plan = BatchPlan(
        [
            Source(ShardOrder(s.counts_S, config.seed, config.window, stream), entry.weight, entry.kind)
            for stream, (entry, s) in enumerate(zip(entries, sets, strict=True))
        ],
        config.batch_size,
        config.seed,
    )
    plan.check()
    return TrainingData(plan, ShardReader(sets, indexes, kept=2 * config.window * len(sets)))


def _rule(entry: MixEntry) -> CaptionRule:
    return CaptionRule(tuple(entry.captions), tuple(entry.caption_weights))


def _count(entries: list[MixEntry], folder: Path, indexes: IndexFolder) -> None:
    """Writes counts.json; counts that are there already are kept for shards of the same names."""
    before = _read_counts(folder / COUNTS)
    counted = []
    for number, entry in enumerate(entries):
        urls = find_shards(entry.shards, kind=entry.kind)
        names = [storage.basename(without_secrets(url)) for url in urls]
        found = before[number] if number < len(before) else {}
        if found.get("names") == names:
            samples, skipped = found["samples"], found["skipped"]
        else:
            samples, skipped = count_samples(urls, indexes, kind=entry.kind, needs=_rule(entry).member)
        if not sum(samples):
            raise TrainingError(f"{len(urls)} shards hold no {_NOUNS[entry.kind]} ({skipped or 'all empty'})")
        if skipped:
            log.info("%s: samples left out: %s", entry.shards, skipped)
        told = urls if all(without_secrets(url) == url for url in urls) else None
        counted.append({"shards": told, "names": names, "samples": samples, "skipped": skipped})
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(str(folder / COUNTS), (json.dumps({"datasets": counted}) + "\n").encode())


def _read_counts(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["datasets"] if path.is_file() else []


def count_samples(
    urls: list[str], indexes: IndexFolder, *, kind: str, needs: str
) -> tuple[list[int], dict[str, int]]:
    """Samples of each shard, and how many were left out for which reason (where headers were read).

    Raises:
        TrainingError: a shard is damaged.
    """
    sizes: dict[str, dict[str, int]] = {}
    samples: list[int] = []
    skipped: dict[str, int] = {}
    progress = Progress("count samples", len(urls), unit="shards")
    for number, url in enumerate(urls):
        folder = url.rpartition("/")[0] or "."
        if folder not in sizes:
            in_view = url.endswith(".parquet")
            sizes[folder] = _sizes_of_view(folder) if in_view else _read_sizes(f"{folder}/sizes.json")
        known = sizes[folder].get(storage.basename(url))
        if known is not None:
            samples.append(known)
            continue
        index = indexes.get(url, kind=kind, needs=needs)
        samples.append(len(index))
        for reason, found in index.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + found
        progress.update(number + 1)
    progress.close(len(urls))
    return samples, skipped


def _sizes_of_view(folder: str) -> dict[str, int]:
    """Raises TrainingError: it is no view, or its images are gone."""
    try:
        return dict(open_view(folder).shards)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def _read_sizes(url: str) -> dict[str, int]:
    """Raises TrainingError: the file is there, and is not what it should be."""
    if not storage.exists(url):
        return {}
    try:
        found = json.loads(storage.read_bytes(url))
        return {str(name): int(samples) for name, samples in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TrainingError(f"{url} is no list of samples a shard ({error}); make it anew") from error
