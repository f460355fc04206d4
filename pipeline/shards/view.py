"""Views: packed shards whose pictures stay where they are (`pairmill pack --view true`).

    view = open_view("shards")
    for sample in view: ...                         # as `iter_samples` gives those of packed tars, in their
    order view.open(view.urls[0]).read(12).members["jpg"] # one sample, by offset

A view is a folder of `N.parquet` (the packed rows, and where the members of each sample lie), `N.texts`
(captions and json, one after the other) and `view.json` (the image folder, samples of each shard). FORMAT.md
has the details. Pictures are read out of the image tars by offset. A tar that has changed since would give
other bytes: its size is compared when it is first read, and the header before every picture with the name and
size that it should have. The content marks that the view was made from are compared where manifests are at
hand: `verify`, `train`.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError
from pipeline.shards.reader import Sample

INDEX, KIND = "view.json", "pairmill-view-v1"
TEXTS = ".texts"
#: columns of N.parquet: the image tar of a sample; its members, `txt` and `json` in N.texts, others in the
#: tar
TAR, MEMBERS = "view_tar", "view_members"
MEMBERS_TYPE = pa.list_(pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]))
#: metadata of N.parquet: size and content mark of each image tar that it was made from
METADATA = b"pairmill_view"
IN_TEXTS = ("txt", "json")
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class TarFacts:
    """An image tar as the view knows it: size in bytes, content mark of its shard."""

    size: int
    mark: str


@dataclass(frozen=True)
class View:
    """A view: url of its folder, the image folder, file names of its shards and the samples of each."""

    url: str
    images: str
    shards: Mapping[str, int]

    def __len__(self) -> int:
        return sum(self.shards.values())

    @property
    def urls(self) -> list[str]:
        return [storage.join(self.url, name) for name in self.shards]

    def open(self, url: str) -> ViewShard:
        """One shard, by the location of its parquet; raises InputError as `read_shard`."""
        return read_shard(url, self.images)

    def __iter__(self) -> Iterator[Sample]:
        for url in self.urls:
            with self.open(url) as shard:
                yield from (shard.read(place) for place in range(len(shard)))


def is_view(folder: str) -> bool:
    return storage.exists(storage.join(folder, INDEX))


def open_view(folder: str, *, images: str | None = None) -> View:
    """Opens a view; no shard is read yet.

    Args:
        images: the image folder, where it lies elsewhere by now. Else it is looked for where it lay seen from
            the view, then at its old place.

    Raises:
        InputError: it is no finished view, or its images are gone.
    """
    url = storage.join(folder, INDEX)
    try:
        said = json.loads(storage.read_bytes(url))
        kind, places, shards = said["kind"], said["images"], said["shards"]
    except FileNotFoundError as error:
        raise InputError(
            f"{folder!r} is no view, or not a finished one: it has no {INDEX}; give the --output of "
            "`pairmill pack --view true`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{url}: it is damaged ({error}); run `pairmill pack` again, which mends it"
        ) from error
    if kind != KIND:
        raise InputError(f"{url}: kind {kind!r} is not {KIND!r}, which this version reads")
    given = [images] if images else _places_of_images(folder, places)
    found = next((place for place in given if storage.isdir(place)), None)
    if found is None:
        raise InputError(
            f"view {folder!r}: its pictures are not at {' or '.join(map(repr, given))}; bring them back, or "
            "run the same `pairmill pack` with the new --input"
        )
    return View(folder, found, {str(name): int(samples) for name, samples in shards.items()})


def _places_of_images(folder: str, places: Mapping[str, Any]) -> list[str]:
    relative = places.get("relative")
    near = [os.path.normpath(storage.join(storage.absolute(folder), relative))] if relative else []
    return list(dict.fromkeys([*near, places["absolute"]]))


def index_of(output: str, images: str, shards: Mapping[str, int]) -> dict[str, Any]:
    """The content of `view.json`."""
    here, there = storage.absolute(output), storage.absolute(images)
    local = storage.is_local(here) and storage.is_local(there)
    relative = os.path.relpath(there, here) if local else None
    return {"kind": KIND, "images": {"absolute": there, "relative": relative}, "shards": dict(shards)}


def tars_of(schema: pa.Schema) -> dict[str, TarFacts]:
    """The image tars that a shard's parquet was made from.

    Raises:
        KeyError: it is no shard of a view.
    """
    said = json.loads((schema.metadata or {})[METADATA])
    return {name: TarFacts(int(facts["size"]), str(facts["mark"])) for name, facts in said.items()}


def with_tars(table: pa.Table, tars: Mapping[str, TarFacts]) -> pa.Table:
    """A shard's table that says which image tars it was made from."""
    facts = {name: {"size": f.size, "mark": f.mark} for name, f in sorted(tars.items())}
    return table.replace_schema_metadata({METADATA: json.dumps(facts).encode()})


def read_schema(url: str) -> pa.Schema:
    """The schema of a shard's parquet with its metadata."""
    with storage.open_read(url) as stream:
        return pq.read_schema(stream)


@dataclass
class ViewShard:
    """One shard: S samples in the order of their packed tar, whose members M lie one after the other.

    url: of the parquet. keys_S; tar_S: which of `tars` (names); first_S1: where the members of each sample
    begin; suffix_M, offset_M, size_M. facts: of each tar.
    """

    url: str
    images: str
    tars: Sequence[str]
    facts: Mapping[str, TarFacts]
    keys_S: Sequence[str]
    tar_S: np.ndarray
    first_S1: np.ndarray
    suffix_M: np.ndarray
    offset_M: np.ndarray
    size_M: np.ndarray
    _files: dict[str, RangeFile] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys_S)

    def __enter__(self) -> ViewShard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    @cached_property
    def texts(self) -> str:
        """The location of N.texts."""
        return self.url.removesuffix(".parquet") + TEXTS

    def tar_url(self, tar: str) -> str:
        return storage.join(self.images, tar)

    def members(self, place: int) -> dict[str, tuple[int, int]]:
        """suffix -> (offset, size) of one sample."""
        at = range(int(self.first_S1[place]), int(self.first_S1[place + 1]))
        return {str(self.suffix_M[m]): (int(self.offset_M[m]), int(self.size_M[m])) for m in at}

    def read(self, place: int) -> Sample:
        """One sample, as the packed tar would have it.

        Raises:
            InputError: the image tar has changed since the view was made, or is gone.
        """
        key, members = self.keys_S[place], self.members(place)
        texts = {s: span for s, span in members.items() if s in IN_TEXTS}
        found = {}
        if texts:
            first, end = min(o for o, _ in texts.values()), max(o + n for o, n in texts.values())
            block = self._file(self.texts, None).read(first, end - first)
            found = {s: block[o - first : o - first + n] for s, (o, n) in texts.items()}
        tar = self.tars[self.tar_S[place]]
        for suffix, (offset, size) in members.items():
            if suffix not in found:
                file = self._file(self.tar_url(tar), self.facts[tar])
                found[suffix] = read_member(file, key, suffix, offset, size)
        return Sample(key, dict(sorted(found.items())))

    def _file(self, url: str, facts: TarFacts | None) -> RangeFile:
        if url not in self._files:
            self._files[url] = open_range(url, facts)
        return self._files[url]


def read_shard(url: str, images: str) -> ViewShard:
    """Reads where the samples of one shard lie.

    Raises:
        InputError: it is missing, damaged, or no shard of a view.
    """
    try:
        with storage.open_read(url) as stream:
            table = pq.read_table(stream, columns=["key", TAR, MEMBERS])
        facts = tars_of(table.schema)
    except FileNotFoundError as error:
        raise InputError(f"{url}: the file is missing; run `pairmill pack` again") from error
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{url}: not a shard of a view ({error}); run `pairmill pack` again") from error
    tars = pc.dictionary_encode(table[TAR].combine_chunks())
    lists = table[MEMBERS].combine_chunks()
    parts = lists.flatten()
    counts = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return ViewShard(
        url=url,
        images=images,
        tars=tars.dictionary.to_pylist(),
        facts=facts,
        keys_S=table["key"].to_pylist(),
        tar_S=tars.indices.to_numpy(zero_copy_only=False),
        first_S1=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        suffix_M=parts.field("suffix").to_numpy(zero_copy_only=False),
        offset_M=parts.field("offset").to_numpy(zero_copy_only=False),
        size_M=parts.field("size").to_numpy(zero_copy_only=False),
    )


class RangeFile:
    """Ranges of one file, which stays open where it is local."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._handle = os.open(storage.local_path(url), os.O_RDONLY) if storage.is_local(url) else None
        self.size = os.fstat(self._handle).st_size if self._handle is not None else storage.size(url)

    def read(self, offset: int, size: int) -> bytes:
        if self._handle is None:
            return storage.read_range(self.url, offset, size)
        return os.pread(self._handle, size, offset)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def open_range(url: str, facts: TarFacts | None) -> RangeFile:
    """Opens a file; where facts are given, it must still have their size.

    Raises:
        InputError: it is gone, or has changed.
    """
    try:
        file = RangeFile(url)
    except FileNotFoundError as error:
        raise InputError(
            f"{url}: the file is missing; a view needs the images that it was made from"
        ) from error
    if facts is not None and file.size != facts.size:
        file.close()
        raise InputError(
            f"{url}: {file.size:,} bytes, and the view was made when it had {facts.size:,}; {_AGAIN}"
        )
    return file


def read_member(file: RangeFile, key: str, suffix: str, offset: int, size: int) -> bytes:
    """The bytes of one member, once the header before it says that it is the one.

    Raises:
        InputError: the tar has changed since the view was made.
    """
    start = offset - BLOCK
    block = file.read(start, BLOCK + size) if start >= 0 else b""
    if len(block) != BLOCK + size or not _is_header_of(block[:BLOCK], key, suffix, size):
        raise InputError(f"{file.url}: {key}.{suffix} is not at byte {offset:,} any more; {_AGAIN}")
    return block[BLOCK:]


_AGAIN = (
    "the images changed since the view was made: run its `pairmill pack --view true` again, with --overwrite"
)


def _is_header_of(block: bytes, key: str, suffix: str, size: int) -> bool:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    found, _, ending = storage.basename(info.name).partition(".")
    return (found, ending.lower(), info.size) == (key, suffix, size)
