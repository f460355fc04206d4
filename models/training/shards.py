"""Reading single samples out of shards: files stay open, indexes are kept, both in bounded number.

One per process; made before the data workers are forked, it is filled in each of them.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import orjson

from models.training.captions import CaptionRule
from models.training.index import IMAGE, JSON, TEXT, IndexFolder, Pictures, ShardIndex
from models.training.mixture import PAIRS
from models.training.stopping import TrainingError
from pipeline import storage
from pipeline.shards.view import RangeFile, TarFacts, open_range, read_member

#: one read takes a whole sample when its members lie together within this many bytes more than needed
SLACK_BYTES = 64 << 10
OPEN_FILES = 256

V = TypeVar("V")


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in its shard; `image` is empty and `caption` may be where it has none."""

    shard: str
    key: str
    image: bytes
    caption: str
    meta: dict[str, Any]

    @property
    def image_id(self) -> int:
        """63 bits that are equal for the same picture wherever it occurs: from the json's `sha256` of the
        picture, or from the key where there is none."""
        name = str(self.meta.get("sha256") or self.key)
        return int.from_bytes(hashlib.sha1(name.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class ShardSet:
    """The shards of one dataset.

    urls, counts_S: each shard and the samples that the plan counts in it. kind: pairs or texts. rule: which
    caption. Counts differ from those of the indexes where they came from a `sizes.json`, which also counts
    samples that are of no use.
    """

    urls: Sequence[str]
    counts_S: np.ndarray
    kind: str = PAIRS
    rule: CaptionRule = field(default_factory=CaptionRule)

    def __len__(self) -> int:
        return int(self.counts_S.sum())


class Recent(Generic[V]):
    """The values used last, at most `limit`; `drop` is called on one that has to go."""

    def __init__(self, limit: int, drop: Callable[[V], Any] = lambda value: None) -> None:
        self.limit, self.drop = limit, drop
        self._values: OrderedDict[Any, V] = OrderedDict()

    def get(self, name: Any, make: Callable[[], V]) -> V:
        if name in self._values:
            self._values.move_to_end(name)
            return self._values[name]
        value = self._values[name] = make()
        if len(self._values) > self.limit:
            self.drop(self._values.popitem(last=False)[1])
        return value


class ShardReader:
    """Samples of some sets of shards, by (set, shard, place)."""

    def __init__(self, sets: Sequence[ShardSet], indexes: IndexFolder, *, kept: int = 64) -> None:
        """kept: indexes in memory, some 0.6 MB each; at least the shards that are mixed with each other."""
        self.sets, self.indexes = sets, indexes
        self._kept: Recent[ShardIndex] = Recent(kept)
        self._files: Recent[int | None] = Recent(OPEN_FILES, drop=_close)
        self._tars: Recent[RangeFile] = Recent(OPEN_FILES, drop=RangeFile.close)

    def index(self, number: int, shard: int) -> ShardIndex:
        """Raises TrainingError: the shard is damaged, or holds another number of samples than was counted."""
        return self._kept.get((number, shard), lambda: self._index(number, shard))

    def _index(self, number: int, shard: int) -> ShardIndex:
        found, counted = self.sets[number], int(self.sets[number].counts_S[shard])
        index = self.indexes.get(found.urls[shard], kind=found.kind, needs=found.rule.member)
        if counted not in (len(index), index.samples):
            raise TrainingError(
                f"{found.urls[shard]} holds {index.samples} samples ({len(index)} of them usable), but "
                f"{counted} were counted; its sizes.json is wrong, or it changed: verify it, or start anew "
                "with --overwrite"
            )
        return index

    def candidates(self, number: int, shard: int, place: int) -> Iterator[tuple[int, int]]:
        """The (shard, place) drawn, then those that may take its place: the next of its shard, round to the
        place itself, then those of the following shards. A place beyond the usable samples (`sizes.json`
        counts all) stands for one of them, going round."""
        shards = len(self.sets[number].urls)
        for step in range(shards):
            at = (shard + step) % shards
            usable = len(self.index(number, at))
            for offset in range(usable):
                yield at, ((place if step == 0 else 0) + offset) % usable

    def read(self, number: int, shard: int, place: int) -> RawSample:
        """The bytes of one sample, in one read where its members lie together.

        Raises:
            ValueError: the caption or the json is damaged.
            TrainingError: the images of a view have changed since it was made.
        """
        index = self.index(number, shard)
        url = self.sets[number].urls[shard]
        spans = [tuple(pair) for pair in index.spans_S6[place].reshape(3, 2).tolist()]
        if index.pictures is None:
            image, text, meta = self._spans(url, spans)
        else:
            image = self._picture(index, index.pictures, place)
            _, text, meta = self._spans(index.pictures.texts, [(0, -1), *spans[1:]])
        found = orjson.loads(meta) if meta else {}
        if not isinstance(found, dict):
            raise ValueError("the json is no object")
        return RawSample(url, index.key(place), image, text.decode("utf-8"), found)

    def _picture(self, index: ShardIndex, pictures: Pictures, place: int) -> bytes:
        """The picture of a view's sample, out of its image tar."""
        offset, size = (int(n) for n in index.spans_S6[place, IMAGE : IMAGE + 2])
        if size < 0:
            return b""
        tar = int(pictures.tar_S[place])
        url, facts = pictures.tars[tar], TarFacts(int(pictures.sizes_T[tar]), "")
        try:
            file = self._tars.get(url, lambda: open_range(url, facts))
            return read_member(file, index.key(place), str(pictures.suffix_S[place]), offset, size)
        except ValueError as error:
            raise TrainingError(str(error)) from error

    def _spans(self, url: str, spans: list[tuple[int, ...]]) -> list[bytes]:
        present = [(o, n) for o, n in spans if n >= 0]
        if not present:
            return [b"" for _ in spans]
        start, end = min(o for o, _ in present), max(o + n for o, n in present)
        if end - start > sum(n for _, n in present) + SLACK_BYTES:
            return [self._bytes(url, o, n) if n > 0 else b"" for o, n in spans]
        block = self._bytes(url, start, end - start)
        return [block[o - start : o - start + n] if n > 0 else b"" for o, n in spans]

    def _bytes(self, url: str, offset: int, size: int) -> bytes:
        handle = self._files.get(url, lambda: _open(url))
        if handle is None:
            return storage.read_range(url, offset, size)
        return os.pread(handle, size, offset)

    def captions(self, number: int, limit: int) -> Iterator[str]:
        """Captions for a tokenizer, every field of the rule; of few shards, spread evenly."""
        found = self.sets[number]
        wanted = min(1.0, limit / max(1, len(found)))
        shards = max(1, round(len(found.urls) * wanted)) if wanted < 1 else len(found.urls)
        shards = min(len(found.urls), max(shards, 16))
        chosen = np.unique(np.linspace(0, len(found.urls) - 1, shards).round().astype(int))
        held = int(found.counts_S[chosen].sum())
        step = max(1, held // max(1, limit))
        for shard in chosen.tolist():
            for place in range(0, len(self.index(number, shard)), step):
                yield from self._texts(number, shard, place)

    def _texts(self, number: int, shard: int, place: int) -> Iterator[str]:
        index, found = self.index(number, shard), self.sets[number]
        url = found.urls[shard] if index.pictures is None else index.pictures.texts
        spans = index.spans_S6[place]
        if spans[JSON + 1] > 0 and found.rule.fields:
            try:
                meta = orjson.loads(self._bytes(url, int(spans[JSON]), int(spans[JSON + 1])))
            except ValueError:
                return
            texts = [meta.get(name) for name in found.rule.fields]
            yield from (text for text in texts if isinstance(text, str))
        if spans[TEXT + 1] > 0 and found.rule.member == "txt":
            data = self._bytes(url, int(spans[TEXT]), int(spans[TEXT + 1]))
            yield data.decode("utf-8", "replace")


def _open(url: str) -> int | None:
    if not storage.is_local(url):
        return None
    return os.open(storage.local_path(url), os.O_RDONLY)


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
