"""Reads a tar from end to end as `verify` does: strictly, in one pass, in flat memory, hashing what it reads.

`tarfile` is made to get something out of any tar: it skips what it does not know, and takes a cut between two
members for the end. Here everything that a shard may not have is a fault with its place: POSIX.1-1988 (ustar)
headers with valid checksums, pax headers (POSIX.1-2001) as img2dataset's writer gives them, regular files
only, members of a sample adjacent, no member twice, two blocks of zeros at the end and nothing but zeros
behind them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import IO

from pipeline.shards.reader import MAX_MEMBER_BYTES

BLOCK = 512
_ZEROS = bytes(BLOCK)
_PIECE = 1 << 20
#: pax and GNU headers hold a name or two, never more
_MAX_HEADER_BYTES = 1 << 20


class Fault(Exception):  # noqa: N818 - what is wrong with a tar, not with us
    """What is wrong with a tar, and where."""


class HashingReader:
    """Reads a stream once, in order, and knows the checksums of what went by.

    Attributes:
        size: bytes read so far.
    """

    def __init__(self, stream: IO[bytes], *, md5: bool = False) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self.size = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer only at the end of the stream."""
        data = self._stream.read(size)
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        self.size += len(data)
        return data

    def skip(self, size: int) -> None:
        """Reads on; raises Fault at the end of the stream."""
        while size:
            got = len(self.read(min(size, _PIECE)))
            if not got:
                raise Fault(f"cut off at byte {self.size:,}, within a member")
            size -= got

    def drain(self) -> bool:
        """Reads to the end; whether there was nothing but zeros."""
        clean = True
        while data := self.read(_PIECE):
            clean = clean and not any(data)
        return clean

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def md5(self) -> str:
        assert self._md5 is not None, "ask for it at the start"
        return self._md5.hexdigest()


@dataclass(kw_only=True)
class TarFacts:
    """keys: of the samples, in the order of the tar. fault: the first thing that is wrong, or empty."""

    keys: list[str] = field(default_factory=list)
    fault: str = ""


def scan_tar(reader: HashingReader) -> TarFacts:
    """Reads a tar to its end, past a fault too, so that the checksum is of the whole file."""
    facts = TarFacts()
    try:
        _scan(reader, facts.keys)
    except Fault as fault:
        facts.fault = str(fault)
        reader.drain()
    return facts


def _scan(reader: HashingReader, keys: list[str]) -> None:
    seen: set[str] = set()
    suffixes: set[str] = set()
    while (member := _next_member(reader)) is not None:
        name, size = member
        key, _, suffix = name.rpartition("/")[2].partition(".")
        if not keys or keys[-1] != key:
            if key in seen:
                raise Fault(f"the members of sample {key!r} are not adjacent, or its key is there twice")
            seen.add(key)
            keys.append(key)
            suffixes = set()
        if suffix.lower() in suffixes:
            raise Fault(f"sample {key!r} has two members {suffix!r}")
        suffixes.add(suffix.lower())
        reader.skip(-(-size // BLOCK) * BLOCK)


def _next_member(reader: HashingReader) -> tuple[str, int] | None:
    """(name, size) of the next regular file, whose data follow; None behind the end mark."""
    said: dict[str, str] = {}
    while True:
        at = reader.size
        block = reader.read(BLOCK)
        if len(block) < BLOCK:
            raise Fault(f"no end mark: cut off at byte {reader.size:,}")
        if block == _ZEROS:
            if reader.read(BLOCK) != _ZEROS:
                raise Fault(f"half an end mark at byte {at:,}")
            if not reader.drain():
                raise Fault(f"data behind the end mark at byte {at:,}")
            return None
        kind, name, size = _parse(block, at)
        if kind in (b"x", b"g", b"L"):
            if size > _MAX_HEADER_BYTES:
                raise Fault(f"a header of {size:,} bytes at byte {at:,}")
            data = reader.read(size)
            reader.skip(-size % BLOCK)
            if kind == b"x":
                said.update(_parse_pax(data, at))
            elif kind == b"L":
                said["path"] = data.rstrip(b"\0").decode("utf-8", "replace")
            continue
        name = said.get("path", name)
        size = _pax_size(said["size"], at) if "size" in said else size
        if kind not in (b"0", b"\0"):
            raise Fault(f"member {name!r} is no regular file (type {kind.decode('latin-1')!r})")
        if size > MAX_MEMBER_BYTES:
            raise Fault(f"member {name!r} has {size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
        return name, size


def _parse(block: bytes, at: int) -> tuple[bytes, str, int]:
    """(type, name, size) of a header block."""
    try:
        told = int(block[148:156].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        told = -1
    if told != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise Fault(f"damaged header at byte {at:,}")
    name = block[:100].split(b"\0")[0].decode("utf-8", "replace")
    prefix = block[345:500].split(b"\0")[0].decode("utf-8", "replace") if block[257:262] == b"ustar" else ""
    size = block[124:136]
    try:
        if size[0] & 0x80:  # base 256, for what octal digits cannot say
            number = int.from_bytes(size[1:], "big") if size[0] == 0x80 else -1
        else:
            number = int(size.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise Fault(f"a size that is none in the header at byte {at:,}")
    return block[156:157], f"{prefix}/{name}" if prefix else name, number


def _parse_pax(data: bytes, at: int) -> dict[str, str]:
    """The records `LENGTH NAME=VALUE\\n` of a pax header."""
    found = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(data):
            raise Fault(f"damaged pax header at byte {at:,}")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        name, _, value = record.rstrip(b"\n").partition(b"=")
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return found


def _pax_size(text: str, at: int) -> int:
    if not text.isdigit():
        raise Fault(f"a size that is none in the pax header at byte {at:,}")
    return int(text)
