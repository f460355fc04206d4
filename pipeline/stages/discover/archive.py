"""Reads the records of one WARC or WAT archive as a stream, and tells a whole archive from a cut one.

FastWARC does the reading; inflating in it is what makes discover fast. But it ends quietly where the file
ends, be it in the middle of a record. So `Source` stands between the file and FastWARC, keeps the bytes since
the record under way, and `_check_end` looks whether the last record is whole.

Three framings are told apart by the head of the file:

* plain: records one after the other;
* record-wise gzip, a member for each record (Common Crawl, wget, warcio): inflated by FastWARC; offsets are
  those of the member, good for a ranged request;
* other gzip (a WARC packed by `gzip` as a whole): inflated here; offsets are those in the inflated file.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any, Protocol

from fastwarc.warc import ArchiveIterator, WarcRecord

from pipeline.errors import InputError

#: enough to hold the first record, a short `warcinfo` in all archives met so far
HEAD_BYTES = 1 << 20
#: records longer than this are no pages: they are passed by, in little memory
MAX_RECORD_BYTES = 32 << 20
#: bytes, more than FastWARC reads ahead: the start of a record is kept when its position becomes known
WINDOW = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
_CONTENT_LENGTH = re.compile(rb"\r?\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_HEADER_END = re.compile(rb"\r?\n\r?\n")


class Stream(Protocol):
    """What reading asks of a file."""

    def read(self, size: int = -1, /) -> bytes: ...


class Source:
    """A stream that can be begun again at its head, and that keeps the bytes from `keep_from` on.

    Attributes:
        keep_from: position (bytes) before which nothing is needed any more; None keeps nothing.
        window: keep no more than about so many of the last bytes; None keeps all from `keep_from` on.
        position: bytes handed out so far.
        failed: whether the storage below raised; then it is no fault of the archive.
    """

    def __init__(self, stream: Stream, head: bytes = b"", *, keep_from: int | None = None) -> None:
        self.keep_from = keep_from
        self.window: int | None = None
        self.position = 0
        self.failed = False
        self._stream, self._head = stream, head
        self._kept: list[bytes] = []
        self._kept_at = 0

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            size = len(self._head) if size < 0 else size
            data, self._head = self._head[:size], self._head[size:]
        else:
            try:
                data = self._stream.read(size)
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise
            except Exception:
                self.failed = True
                raise
        self.position += len(data)
        if self.keep_from is not None:
            first = self.keep_from if self.window is None else self.position - self.window
            self._forget(max(first, self.keep_from))
            self._kept.append(data)
        return data

    def tell(self) -> int:
        return self.position

    def kept(self) -> bytes:
        """The bytes from `keep_from` to the end of what was read."""
        return b"".join(self._kept)[(self.keep_from or 0) - self._kept_at :]

    def _forget(self, before: int) -> None:
        while self._kept and self._kept_at + len(self._kept[0]) <= before:
            self._kept_at += len(self._kept.pop(0))


def read_records(stream: IO[bytes] | Any, name: str) -> Iterator[WarcRecord]:
    """Every record of an archive, HTTP not yet parsed. Read a record before asking for the next one.

    Records over `MAX_RECORD_BYTES`, films and the like, are left out.

    Args:
        stream: the raw bytes of the file, plain or gzip.
        name: what to call the archive in messages.

    Raises:
        InputError: the file is empty, is no archive, is cut off or is damaged.
    """
    head = _read_head(stream)
    if not head:
        raise InputError(f"archive {name}: the file is empty (0 bytes); fetch it again or leave it out")
    framing = _framing(head, name)
    if framing == "whole gzip":
        inflated = gzip.GzipFile(fileobj=Source(stream, head))  # type: ignore[call-overload]
        source = Source(inflated, keep_from=0)
    else:
        source = Source(stream, head, keep_from=0)
    try:
        for record in ArchiveIterator(source, parse_http=False):  # type: ignore[arg-type]
            source.keep_from, source.window = record.stream_pos, None
            if record.content_length <= MAX_RECORD_BYTES:
                yield record
                continue
            source.window = WINDOW
            if record.reader.consume() < record.content_length:
                raise _cut(name, record.stream_pos)
    except EOFError:
        raise _cut(name, source.position) from None
    except (OSError, zlib.error) as error:
        if source.failed:
            raise
        raise InputError(
            f"archive {name}: damaged after byte {source.keep_from} (the last good record starts there): "
            f"{error}; fetch it again or leave it out"
        ) from error
    if source.window is not None:
        return  # the last record was a long one, and was measured
    (_check_members if framing == "gzip members" else _check_plain)(source, name)


def _read_head(stream: Stream) -> bytes:
    """The first bytes of the stream: as many as there are, up to `HEAD_BYTES`."""
    parts, missing = [], HEAD_BYTES
    while missing > 0 and (data := stream.read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _framing(head: bytes, name: str) -> str:
    text, members = head, False
    if head.startswith(GZIP_MAGIC):
        inflater = zlib.decompressobj(31)
        try:
            text = inflater.decompress(head, HEAD_BYTES)
        except zlib.error as error:
            raise InputError(f"archive {name}: not a readable gzip file: {error}") from error
        members = inflater.eof and bool(inflater.unused_data) and _is_one_record(text)
        if not text:
            raise _cut(name, 0)
    if not text.startswith(b"WARC/"):
        raise InputError(
            f"archive {name}: not a WARC or WAT file (it begins with {text[:16]!r}, not with 'WARC/'); "
            "mend --input"
        )
    if not head.startswith(GZIP_MAGIC):
        return "plain"
    return "gzip members" if members else "whole gzip"


def _record_length(data: bytes) -> int | None:
    """Bytes of the record that `data` begins with, the blank lines behind it left out; None: head cut off."""
    end = _HEADER_END.search(data)
    if end is None:
        return None
    length = _CONTENT_LENGTH.search(data, 0, end.start())
    return end.end() + (int(length.group(1)) if length else 0)


def _is_one_record(text: bytes) -> bool:
    length = _record_length(text)
    return length is not None and not text[length:].strip()


def _cut(name: str, position: int) -> InputError:
    return InputError(
        f"archive {name}: cut off in the record at byte {position}; the file is not whole, fetch it again"
    )


def _check_members(source: Source, name: str) -> None:
    """All gzip members from the last record on must be whole, and the records as long as they say."""
    data = source.kept()
    while data.startswith(GZIP_MAGIC):
        inflater = zlib.decompressobj(31)
        try:
            left, text, size = data, b"", 0
            while left and not inflater.eof:  # piece by piece: a record may be a bomb
                piece = inflater.decompress(left, WINDOW)
                text, size = text or piece, size + len(piece)
                left = inflater.unconsumed_tail
        except zlib.error as error:
            raise InputError(f"archive {name}: damaged after byte {source.keep_from}: {error}") from error
        if not inflater.eof or size < (_record_length(text) or 0):
            raise _cut(name, source.position - len(data))
        data = inflater.unused_data
    if data and GZIP_MAGIC.startswith(data):  # the first byte of a further member
        raise _cut(name, source.position - len(data))
    if data:
        raise InputError(
            f"archive {name}: {len(data)} bytes behind the last record are no gzip; fetch it again"
        )


def _check_plain(source: Source, name: str) -> None:
    """The last record must be as long as it says, and nothing but blank lines may follow it."""
    data = source.kept()
    length = _record_length(data)
    if length is None or len(data) < length or data[length:].strip(b"\r\n"):
        raise _cut(name, source.keep_from or 0)
