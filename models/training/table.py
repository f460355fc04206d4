"""All samples of some shards at once, for evaluation, whose pools are small; and how shards are named.

Training does not hold such a table: it plans from counts (`models.training.order`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from models.training.index import IndexFolder, index_shard
from models.training.mixture import PAIRS, TEXTS
from models.training.shards import RawSample, ShardReader, ShardSet
from models.training.stopping import TrainingError
from pipeline import storage
from pipeline.shards import view


@dataclass(frozen=True)
class SampleTable:
    """All usable samples of some shards, in the order of the shards.

    shards: URLs. shard_S, place_S: int32, where each sample lies. skipped: reason -> samples left out.
    """

    shards: list[str]
    shard_S: np.ndarray
    place_S: np.ndarray
    keys: list[str]
    skipped: dict[str, int]
    reader: ShardReader

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> RawSample:
        """The bytes of one sample.

        Raises:
            ValueError: the caption or the json is damaged.
        """
        return self.reader.read(0, int(self.shard_S[index]), int(self.place_S[index]))


def find_shards(shards: str | Sequence[str], *, kind: str = PAIRS) -> list[str]:
    """The tar files that folders, globs and URLs name, sorted by name within each entry; of texts also
    `.txt` files; of views (`pipeline.shards.view`) the parquets.

    Raises:
        ValueError: an entry names no shard.
    """
    suffixes = (".tar", ".txt") if kind == TEXTS else (".tar",)
    found: list[str] = []
    for entry in [shards] if isinstance(shards, str) else shards:
        fs, path = url_to_fs(entry)
        if fs.isdir(path) and view.is_view(entry):
            found += view.open_view(storage.absolute(entry)).urls
            continue
        if fs.isdir(path):
            names = [p for p in fs.ls(path, detail=False) if p.endswith(suffixes)]
        elif any(c in path for c in "*?["):
            names = [p for p in fs.glob(path) if p.endswith(suffixes)]
        else:
            names = [path] if fs.exists(path) else []
        if not names:
            raise ValueError(
                f"shards {entry!r}: no {' or '.join(suffixes)} files there; "
                "give a folder of shards, or a glob of them"
            )
        names = sorted(n for n in names if not n.rsplit("/", 1)[-1].startswith("."))
        found += names if isinstance(fs, LocalFileSystem) else [fs.unstrip_protocol(n) for n in names]
    return found


def build_table(shards: Sequence[str], *, on_shard: Callable[[int, int], None] | None = None) -> SampleTable:
    """Indexes shards. Samples without a picture or without a caption are counted and left out.

    Args:
        on_shard: called with (shards done, samples so far).

    Raises:
        TrainingError: a tar is damaged, or no sample is left.
    """
    counts, keys = [], []
    skipped: dict[str, int] = {}
    indexes = {}
    for number, url in enumerate(shards):
        index = indexes[url] = index_shard(url, kind=PAIRS)
        counts.append(len(index))
        keys += [index.key(place) for place in range(len(index))]
        for reason, found in index.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + found
        if on_shard:
            on_shard(number + 1, len(keys))
    if not keys:
        raise TrainingError(
            f"{len(shards)} shards hold no pair of picture and caption ({skipped or 'all empty'})"
        )
    reader = ShardReader(
        [ShardSet(list(shards), np.array(counts, np.int64))], IndexFolder(known=indexes), kept=len(shards)
    )
    return SampleTable(
        list(shards),
        np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        np.concatenate([np.arange(n, dtype=np.int32) for n in counts]),
        keys,
        skipped,
        reader,
    )
