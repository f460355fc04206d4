"""Writing tar shards whose bytes depend on nothing but the samples: no clock, no user, one order of members.

The counterpart of `pipeline.shards.reader`; the writing itself is webdataset's `TarWriter`. The file is
written in place, so a shard is built in a scratch folder and published by the commit when it is whole.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import IO

import webdataset

from pipeline.shards.format import is_key
from pipeline.shards.reader import MAX_MEMBER_BYTES, Sample

_SUFFIX = re.compile(r"[0-9a-z]{1,16}(?:\.[0-9a-z]{1,16})?")


class ShardWriter:
    """Writes samples to one tar in the order given; the members of a sample are sorted by suffix, so a
    sample lies as img2dataset writes it: `jpg`, `json`, `txt`.

        with ShardWriter(scratch / "shard.tar") as shard:
            shard.write(Sample(key, {"jpg": picture, "txt": caption.encode()}))

    Attributes:
        path: the local file.
        samples: how many samples were written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.samples = 0
        self._keys: set[str] = set()
        self._file: IO[bytes] = self.path.open("wb")
        # encoder=False: bytes in, bytes out; nothing is pickled or encoded by its suffix
        self._tar = webdataset.TarWriter(
            self._file, user="pairmill", group="pairmill", mode=0o644, mtime=0, encoder=False
        )

    def write(self, sample: Sample) -> int:
        """Appends a sample; returns the bytes of its members.

        Raises:
            ValueError: the key or a suffix is outside the shard format, the key came before, the sample is
                empty, or a member is larger than readers accept.
        """
        if not is_key(sample.key):
            raise ValueError(f"key {sample.key!r} must match [0-9a-z_]{{1,64}}: readers split names at dots")
        if sample.key in self._keys:
            raise ValueError(f"key {sample.key!r} was written before; keys must be unique in a shard")
        if not sample.members:
            raise ValueError(f"sample {sample.key!r} has no members")
        for suffix, data in sample.members.items():
            _check_member(sample.key, suffix, data)
        self._keys.add(sample.key)
        self.samples += 1
        self._tar.write({"__key__": sample.key, **sample.members})
        return sum(map(len, sample.members.values()))

    def close(self) -> None:
        """Ends the tar; a second call does nothing."""
        if not self._file.closed:
            self._tar.close()
            self._file.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_member(key: str, suffix: str, data: bytes) -> None:
    if not _SUFFIX.fullmatch(suffix):
        raise ValueError(f"sample {key!r}: suffix {suffix!r} must be like 'jpg', 'txt', 'json' or '0.jpg'")
    if not isinstance(data, bytes):
        raise ValueError(f"sample {key!r}: member {suffix!r} must be bytes, not {type(data).__name__}")
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"sample {key!r}: member {suffix!r} has {len(data)} bytes, over {MAX_MEMBER_BYTES}")
