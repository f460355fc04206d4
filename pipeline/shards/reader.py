"""Reading tar shards safely: no extraction, no pickles, bounded sizes.

Works on any shard folder in WebDataset layout (ours, img2dataset's, DataComp's): the key ends at the
first dot of the base name, and the members of a sample are adjacent.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pipeline import storage
from pipeline.errors import InputError

MAX_MEMBER_BYTES = 256 << 20


@dataclass(frozen=True)
class SampleIndex:
    """Where the members of one sample lie in its tar: suffix -> (offset of the data, size), in bytes."""

    key: str
    members: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Sample:
    """One sample in memory: suffix (`jpg`, `txt`, `json`, `0.jpg`) -> bytes."""

    key: str
    members: dict[str, bytes]


def index_tar(url: str) -> list[SampleIndex]:
    """Offsets of every sample of a shard, in the order of the tar.

    Raises:
        InputError: the tar is damaged, a member is too large, or a sample's members are not adjacent.
    """
    samples: list[SampleIndex] = []
    for key, suffix, offset, size, _ in _members(url, with_data=False):
        if not samples or samples[-1].key != key:
            samples.append(SampleIndex(key, {}))
        _add(samples[-1].members, suffix, (offset, size), url, key)
    _check_unique([s.key for s in samples], url)
    return samples


def iter_samples(url: str) -> Iterator[Sample]:
    """Streams the samples of a shard.

    Raises:
        InputError: as `index_tar`.
    """
    current: Sample | None = None
    seen: list[str] = []
    for key, suffix, _, _, data in _members(url, with_data=True):
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = Sample(key, {})
            seen.append(key)
        _add(current.members, suffix, data, url, key)
    _check_unique(seen, url)
    if current is not None:
        yield current


def read_member(url: str, offset: int, size: int) -> bytes:
    """The bytes of one member found by `index_tar`."""
    return storage.read_range(url, offset, size)


def _members(url: str, *, with_data: bool) -> Iterator[tuple[str, str, int, int, bytes]]:
    try:
        with storage.open_read(url) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            last = -1
            for member in tar:
                if member.offset <= last:
                    raise InputError(
                        f"{url}: the tar's headers do not advance at byte {last}; the file is damaged"
                    )
                last = member.offset
                if not member.isfile():
                    continue
                if not 0 <= member.size <= MAX_MEMBER_BYTES:
                    raise InputError(
                        f"{url}: member {member.name!r} has {member.size} bytes, more than {MAX_MEMBER_BYTES}"
                    )
                key, _, suffix = storage.basename(member.name).partition(".")
                source = tar.extractfile(member) if with_data else None
                data = source.read() if source else b""
                yield key, suffix.lower(), member.offset_data, member.size, data
            _check_end(stream, tar.offset, url)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{url}: not a readable tar ({error}); verify it, or delete it and rerun") from error


def _check_end(stream: IO[bytes], offset: int, url: str) -> None:
    """A tar ends with a block of zeros. tarfile takes any other end for one as well: a cut between two
    members, or a damaged header, would pass for a whole shard with fewer samples."""
    stream.seek(offset)
    mark = stream.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise InputError(f"{url}: no end mark at byte {offset}; the shard was cut off or is damaged there")


def _add(members: dict, suffix: str, value: object, url: str, key: str) -> None:
    if suffix in members:
        # two members of one name would silently pair a caption with another sample's picture
        raise InputError(f"{url}: sample {key!r} has two members {suffix!r}; keys must be unique in a shard")
    members[suffix] = value


def _check_unique(keys: list[str], url: str) -> None:
    if len(set(keys)) != len(keys):
        twice = next(k for i, k in enumerate(keys) if k in keys[:i])
        raise InputError(f"{url}: the members of sample {twice!r} are not adjacent")
