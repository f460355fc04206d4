"""Where the samples of one shard lie, read from its headers when it is first needed, and kept.

A shard of a view (`pipeline.shards.view`) has its pictures in image tars and its texts in a file of its own.

The headers of a tar are spread over all of it, so they are read once for all processes: whoever comes first
writes the index into a folder of the run, others wait for that and read it. The folder holds a bounded number
of files; one that went is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.training.mixture import TEXTS
from models.training.stopping import TrainingError
from pipeline import storage
from pipeline.shards import view
from pipeline.shards.reader import SampleIndex, index_tar

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "0.jpg", "0.jpeg", "0.png", "0.webp")
#: files of the folder: some 0.6 MB for each ten thousand samples
KEPT_FILES = 2048
#: columns of a sample's spans: (offset, size) of the picture, the text, the json; size -1: there is none
IMAGE, TEXT, JSON = 0, 2, 4


@dataclass(frozen=True)
class ShardIndex:
    """The usable samples of a shard, in the order of the tar.

    keys_S: ASCII bytes. spans_S6: int64. samples: how many there are, usable or not. skipped: reason -> those
    left out. Of a view also pictures: where they are.
    """

    keys_S: np.ndarray
    spans_S6: np.ndarray
    samples: int
    skipped: dict[str, int] = field(default_factory=dict)
    pictures: Pictures | None = None

    def __len__(self) -> int:
        return len(self.keys_S)

    def key(self, place: int) -> str:
        return self.keys_S[place].decode("utf-8", "replace")


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of a view's shard are: image tars with their sizes in bytes, the tar of each sample,
    and the suffix that its picture has there. texts: the file of the captions and json."""

    tars: list[str]
    sizes_T: np.ndarray
    tar_S: np.ndarray
    suffix_S: np.ndarray
    texts: str


def index_shard(url: str, *, kind: str, needs: str = "txt") -> ShardIndex:
    """Reads the headers of a tar, or the lines of a `.txt`.

    Args:
        kind: `pairs` needs a picture; `texts` takes no notice of pictures.
        needs: the member that holds the caption: txt or json.

    Raises:
        TrainingError: the shard is damaged.
    """
    if url.endswith(".txt"):
        return _index_lines(url)
    try:
        if url.endswith(".parquet"):
            return _index_view(url, kind, needs)
        samples = index_tar(url)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    keys, spans = [], []
    skipped: dict[str, int] = {}
    for sample in samples:
        found, reason = _spans(sample, kind, needs)
        if found is None:
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            keys.append(sample.key.encode())
            spans.append(found)
    table_S6 = np.array(spans, np.int64).reshape(-1, 6)
    return ShardIndex(np.array(keys, dtype=np.bytes_), table_S6, len(samples), skipped)


def _spans(sample: SampleIndex, kind: str, needs: str) -> tuple[tuple[int, ...] | None, str]:
    image = next((sample.members[s] for s in IMAGE_SUFFIXES if s in sample.members), None)
    if kind == TEXTS:
        image = (0, -1)
    if image is None:
        return None, "no_image"
    if sample.members.get(needs, (0, 0))[1] == 0:
        return None, "no_caption"
    absent = (0, -1)
    return (*image, *sample.members.get("txt", absent), *sample.members.get("json", absent)), ""


def _index_view(url: str, kind: str, needs: str) -> ShardIndex:
    with view.open_view(url.rpartition("/")[0] or ".").open(url) as shard:
        rows, spans, suffixes = [], [], []
        skipped: dict[str, int] = {}
        for place in range(len(shard)):
            sample = SampleIndex(shard.keys_S[place], shard.members(place))
            found, reason = _spans(sample, kind, needs)
            if found is None:
                skipped[reason] = skipped.get(reason, 0) + 1
                continue
            rows.append(place)
            spans.append(found)
            suffixes.append(next((s for s in IMAGE_SUFFIXES if s in sample.members), ""))
        pictures = Pictures(
            [shard.tar_url(tar) for tar in shard.tars],
            np.array([shard.facts[tar].size for tar in shard.tars], np.int64),
            shard.tar_S[rows].astype(np.int64),
            np.array(suffixes, dtype=np.str_),
            shard.texts,
        )
        keys_S = np.array([shard.keys_S[place].encode() for place in rows], dtype=np.bytes_)
        return ShardIndex(keys_S, np.array(spans, np.int64).reshape(-1, 6), len(shard), skipped, pictures)


def _index_lines(url: str) -> ShardIndex:
    """Every line that is not blank is a text; its key is its number."""
    keys, spans, at, lines = [], [], 0, 0
    with storage.open_read(url) as stream:
        for line in stream:
            if line.strip():
                keys.append(str(lines).encode())
                spans.append((0, -1, at, len(line.rstrip(b"\r\n")), 0, -1))
            at, lines = at + len(line), lines + 1
    return ShardIndex(np.array(keys, dtype=np.bytes_), np.array(spans, np.int64).reshape(-1, 6), len(keys))


@dataclass(frozen=True)
class IndexFolder:
    """Indexes of shards on a disk that the processes share; without a path each reads the headers itself.

    known: indexes that are in memory already, by URL.
    """

    path: Path | None = None
    known: Mapping[str, ShardIndex] = field(default_factory=dict)

    def get(self, url: str, *, kind: str, needs: str) -> ShardIndex:
        """Raises TrainingError as `index_shard`."""
        if url in self.known:
            return self.known[url]
        if self.path is None:
            return index_shard(url, kind=kind, needs=needs)
        name = hashlib.sha1(f"{url} {kind} {needs} {_mark(url)}".encode()).hexdigest()[:24]
        place = self.path / f"{name}.npz"
        found = _read(place)
        if found is None:
            self.path.mkdir(parents=True, exist_ok=True)
            with _claimed(self.path / f".{name[:2]}.lock"):
                found = _read(place)  # somebody else may have made it meanwhile
                if found is None:
                    found = index_shard(url, kind=kind, needs=needs)
                    _write(place, found)
                    self._prune()
        return found

    def _prune(self) -> None:
        assert self.path is not None
        entries = []
        with contextlib.suppress(OSError), os.scandir(self.path) as found:
            entries = [e for e in found if e.name.endswith(".npz") and not e.name.startswith(".")]
        if len(entries) > KEPT_FILES:
            with contextlib.suppress(OSError):  # another process removes the same ones
                for entry in sorted(entries, key=lambda e: e.stat().st_mtime)[: len(entries) // 4]:
                    Path(entry.path).unlink(missing_ok=True)


def _mark(url: str) -> str:
    """Changes when a local file is written anew."""
    if not storage.is_local(url):
        return ""
    with contextlib.suppress(OSError):
        info = storage.local_path(url).stat()
        return f"{info.st_size} {info.st_mtime_ns}"
    return ""


def _read(place: Path) -> ShardIndex | None:
    try:
        with np.load(place, allow_pickle=False) as parts:
            reasons = [str(name) for name in parts["reasons"]]
            skipped = dict(zip(reasons, (int(n) for n in parts["numbers"]), strict=True))
            pictures = None
            if "tars" in parts:
                names = [str(name) for name in parts["tars"]]
                pictures = Pictures(names, parts["sizes"], parts["tar"], parts["suffix"], str(parts["texts"]))
            return ShardIndex(parts["keys"], parts["spans"], int(parts["samples"]), skipped, pictures)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(place: Path, index: ShardIndex) -> None:
    temp = place.with_name(f".{place.name}.{os.getpid()}")
    more: dict[str, Any] = {}
    if (pictures := index.pictures) is not None:
        more = {"sizes": pictures.sizes_T, "tar": pictures.tar_S, "suffix": pictures.suffix_S}
        more |= {"tars": np.array(pictures.tars, np.str_), "texts": np.array(pictures.texts, np.str_)}
    with temp.open("wb") as stream:
        np.savez(
            stream,
            keys=index.keys_S,
            spans=index.spans_S6,
            samples=np.int64(index.samples),
            reasons=np.array(list(index.skipped), dtype=np.str_),
            numbers=np.array(list(index.skipped.values()), dtype=np.int64),
            **more,
        )
    temp.replace(place)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """One process at a time, where the disk knows locks; the lock goes with its process."""
    with path.open("a") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
