"""The table of samples behind a training run: where every picture and caption lies in the shards.

Built by reading the headers of each tar once. Held as arrays, so that millions of samples stay small, and
handed to data workers without copying.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from models.training.stopping import TrainingError
from pipeline.shards.reader import SampleIndex, index_tar, read_member

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "0.jpg", "0.jpeg", "0.png", "0.webp")
#: one read takes a whole sample when its members lie together within this many bytes more than needed
SLACK_BYTES = 64 << 10

_IMAGE, _TEXT, _JSON = 0, 2, 4


@dataclass(frozen=True)
class RawSample:
    """One pair as it lies in its shard."""

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
class SampleTable:
    """All usable samples of some shards, in the order of the shards.

    shards: URLs. shard_S: int32, the shard of each sample. spans_S6: int64, (offset, size) of the picture,
    the text and the json (size -1 where there is none). skipped: reason -> samples left out.
    """

    shards: list[str]
    shard_S: np.ndarray
    spans_S6: np.ndarray
    keys: list[str]
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> RawSample:
        """The bytes of one sample, in one read where its members lie together.

        Raises:
            UnicodeDecodeError, json.JSONDecodeError: the caption or the json is damaged.
        """
        url = self.shards[self.shard_S[index]]
        spans = [(int(o), int(n)) for o, n in self.spans_S6[index].reshape(3, 2)]
        image, text, meta = _read_spans(url, spans)
        return RawSample(
            shard=url,
            key=self.keys[index],
            image=image,
            caption=text.decode("utf-8"),
            meta=json.loads(meta) if meta else {},
        )

    def captions(self, limit: int | None = None) -> Iterable[str]:
        """The captions alone, evenly chosen when there are more than `limit`."""
        step = 1 if limit is None else max(1, len(self) // limit)
        for index in range(0, len(self), step):
            offset, size = self.spans_S6[index, _TEXT : _TEXT + 2]
            yield read_member(self.shards[self.shard_S[index]], int(offset), int(size)).decode(
                "utf-8", "replace"
            )


def find_shards(shards: str | Sequence[str]) -> list[str]:
    """The tar files that folders, globs and URLs name, sorted by name within each entry.

    Raises:
        ValueError: an entry names no tar.
    """
    found: list[str] = []
    for entry in [shards] if isinstance(shards, str) else shards:
        fs, path = url_to_fs(entry)
        if fs.isdir(path):
            names = [p for p in fs.ls(path, detail=False) if p.endswith(".tar")]
        elif any(c in path for c in "*?["):
            names = [p for p in fs.glob(path) if p.endswith(".tar")]
        else:
            names = [path] if fs.exists(path) else []
        if not names:
            raise ValueError(
                f"shards {entry!r}: no .tar files there; give a folder of shards, or a glob of them"
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
    shard, spans, keys = [], [], []
    skipped: dict[str, int] = {}
    for number, url in enumerate(shards):
        try:
            samples = index_tar(url)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        for sample in samples:
            found, reason = _spans(sample)
            if found is None:
                skipped[reason] = skipped.get(reason, 0) + 1
                continue
            shard.append(number)
            spans.append(found)
            keys.append(sample.key)
        if on_shard:
            on_shard(number + 1, len(keys))
    if not keys:
        raise TrainingError(
            f"{len(shards)} shards hold no pair of picture and caption ({skipped or 'all empty'})"
        )
    return SampleTable(list(shards), np.array(shard, np.int32), np.array(spans, np.int64), keys, skipped)


def _spans(sample: SampleIndex) -> tuple[tuple[int, ...] | None, str]:
    image = next((sample.members[s] for s in IMAGE_SUFFIXES if s in sample.members), None)
    if image is None:
        return None, "no_image"
    if "txt" not in sample.members:
        return None, "no_caption"
    return (*image, *sample.members["txt"], *sample.members.get("json", (0, -1))), ""


def _read_spans(url: str, spans: list[tuple[int, int]]) -> list[bytes]:
    present = [(o, n) for o, n in spans if n >= 0]
    start, end = min(o for o, _ in present), max(o + n for o, n in present)
    if end - start > sum(n for _, n in present) + SLACK_BYTES:
        return [read_member(url, o, n) if n > 0 else b"" for o, n in spans]
    block = read_member(url, start, end - start)
    return [block[o - start : o - start + n] if n > 0 else b"" for o, n in spans]
