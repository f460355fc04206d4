"""Writing tar shards whose bytes depend on nothing but the samples: no clock, no user, one order of members.

The counterpart of `pipeline.shards.reader`. The bytes are those of webdataset's `TarWriter`, in a fraction of
its time: the headers of a shard differ in name, size and checksum alone, so they are cut from one template
instead of being made anew, which costs more than all else that is done with a picture once it is encoded.

The file is written in place, so a shard is built in a scratch folder and published by the commit when it is
whole.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from types import TracebackType
from typing import IO

from pipeline.shards.format import is_key
from pipeline.shards.reader import MAX_MEMBER_BYTES, Sample

#: written at once: a member is too small for a system call of its own
BUFFER_BYTES = 1 << 20

_SUFFIX = re.compile(r"[0-9a-z]{1,16}(?:\.[0-9a-z]{1,16})?")


def _template() -> bytes:
    """The header of an empty member without a name, in POSIX.1-1988 (ustar): 512 bytes."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime, info.uname, info.gname = 0o644, 0, "pairmill", "pairmill"
    return info.tobuf(tarfile.USTAR_FORMAT)


_HEADER = _template()
#: where a header holds the size (11 octal digits and a zero) and the checksum (6 octal digits, zero, space)
_SIZE, _SUM, _NAME_BYTES = 124, 148, 100
_BEFORE_SIZE = _HEADER[_NAME_BYTES:_SIZE]
_BEFORE_SUM = _HEADER[_SIZE + 12 : _SUM]
_AFTER_SUM = _HEADER[_SUM + 8 :]
#: the checksum is the sum of all bytes, its own eight counted as spaces
_SUM_OF_REST = sum(_BEFORE_SIZE) + sum(_BEFORE_SUM) + sum(_AFTER_SUM) + 8 * ord(" ")
_PADDING = [bytes(-size % tarfile.BLOCKSIZE) for size in range(tarfile.BLOCKSIZE)]


def tar_header(name: bytes, size: int) -> bytes:
    """The header of a regular file of a shard, 512 bytes; a name of up to 99 bytes, fewer than 8 GiB."""
    size_field = b"%011o\0" % size
    checksum = _SUM_OF_REST + sum(name) + sum(size_field)
    return b"".join(
        (
            name.ljust(_NAME_BYTES, b"\0"),
            _BEFORE_SIZE,
            size_field,
            _BEFORE_SUM,
            b"%06o\0 " % checksum,
            _AFTER_SUM,
        )
    )


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
        self._file: IO[bytes] = self.path.open("wb", buffering=BUFFER_BYTES)

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
        total = 0
        for suffix, data in sorted(sample.members.items()):
            size = len(data)
            self._file.write(tar_header(f"{sample.key}.{suffix}".encode("ascii"), size))
            self._file.write(data)
            self._file.write(_PADDING[size % tarfile.BLOCKSIZE])
            total += size
        return total

    def close(self) -> None:
        """Ends the tar: two blocks of zeros, filled up to a record. A second call does nothing."""
        if not self._file.closed:
            end = self._file.tell() + 2 * tarfile.BLOCKSIZE
            self._file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
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
