"""Reads a remote archive as a stream, and goes on where a connection was cut, with patience.

A WAT file is 200 MB and more, and the servers that hold them answer 403 and 503 under load. So nothing is
fetched twice: when a connection breaks, the next one asks for the bytes from there on (`Range`), and what
stands above this stream sees no seam, in the middle of a record or not. A server that knows no ranges sends
the file anew; what was read already is passed by.

Waiting doubles from attempt to attempt (Common Crawl asks for that), or is as long as `Retry-After` says.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import IO, Any, Protocol

from pipeline import storage
from pipeline.errors import InputError

logger = logging.getLogger(__name__)

#: answers that pass: too much load (Common Crawl's CDN says 403 as well as 503), timeouts, gateways
PASSING = frozenset({403, 408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
#: seconds, the longest wait between two attempts
MAX_WAIT = 120.0
#: bytes that must arrive before attempts are counted anew; else a drip of bytes would be read for ever
PROGRESS = 1 << 20
#: bytes read at a time where nobody says how many
PIECE = 1 << 20
#: bytes that object stores are asked for at a time
BLOCK = 8 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How patiently remote archives are read.

    Attributes:
        attempts: how often in a row reading may fail before the archive is given up for this run.
        wait: seconds before the second attempt; doubled from then on, up to two minutes.
        timeout: seconds without a byte after which a connection counts as dead.
    """

    attempts: int = 8
    wait: float = 1.0
    timeout: float = 60.0


class Connection(Protocol):
    """One open answer: reading it ends with b"" where the file does, or raises."""

    mark: str  # names this version of the file; empty where the server says nothing

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class _PassingError(Exception):
    """An answer that may be another one later; `wait`: seconds that the server asks for."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def open_stream(url: str, config: ReadConfig) -> IO[bytes] | ResumedStream:
    """A binary stream of an archive; the caller closes it. Local files are opened as they are.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if url.startswith(("http://", "https://")):
        return ResumedStream(url, _open_http, config)
    if "://" in url and not storage.is_local(url):
        return ResumedStream(url, _open_storage, config)
    return storage.open_read(url)


class ResumedStream:
    """The bytes of a file from its first to its last, over as many connections as that takes."""

    def __init__(self, url: str, connect: Any, config: ReadConfig) -> None:
        self.position = 0
        self._url, self._connect, self._config = url, connect, config
        self._connection: Connection | None = None
        self._mark = ""
        self._failures = 0
        self._failed_at = 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; b"" at the end.

        Raises:
            ConnectionError: all attempts failed.
            FileNotFoundError: the file is not there.
            InputError: the file was exchanged for another while it was read.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(PIECE), b""))
        while True:
            try:
                if self._connection is None:
                    self._connection = self._reconnect()
                data = self._connection.read(size)
            except (FileNotFoundError, PermissionError):  # time will not mend these
                raise
            except _passing_errors() as error:
                self.close()
                self._wait(error)
                continue
            self.position += len(data)
            return data

    def _reconnect(self) -> Connection:
        connection: Connection = self._connect(self._url, self.position, self._config.timeout)
        self._mark = self._mark or connection.mark
        if connection.mark and connection.mark != self._mark:
            connection.close()
            raise InputError(
                f"{self._url} was exchanged while it was read (mark {self._mark!r} -> {connection.mark!r}); "
                "run again"
            )
        return connection

    def _wait(self, error: Exception) -> None:
        if self.position - self._failed_at >= PROGRESS:
            self._failures = 0
        self._failures, self._failed_at = self._failures + 1, self.position
        if self._failures >= self._config.attempts:
            raise ConnectionError(
                f"{self._url}: {self._failures} attempts failed at byte {self.position}, the last one with "
                f"{type(error).__name__}: {error}; run again later, or raise --reading.attempts"
            ) from error
        wait = min(max(self._config.wait * 2 ** (self._failures - 1), getattr(error, "wait", 0.0)), MAX_WAIT)
        logger.info("%s: %s at byte %d; again in %.1f s", self._url, error, self.position, wait)
        time.sleep(wait)

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(*_passing_errors()):  # of a connection that is dead already
                self._connection.close()
            self._connection = None

    def __enter__(self) -> ResumedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _passing_errors() -> tuple[type[Exception], ...]:
    """What reading from a network may raise; of the libraries below fsspec only those that are loaded."""
    found: list[type[Exception]] = [_PassingError, OSError, http.client.HTTPException]
    for module, name in (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("asyncio.exceptions", "TimeoutError"),  # no OSError before Python 3.11
        ("fsspec.exceptions", "FSTimeoutError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


class _Answer:
    """An HTTP answer that is measured: fewer bytes than it announced is a cut, not an end."""

    def __init__(self, response: http.client.HTTPResponse, url: str, position: int) -> None:
        self._response = response
        self.mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        length = response.headers.get("Content-Length")
        self._left = int(length) if length is not None and length.isdigit() else None
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.match(response.headers.get("Content-Range") or "")
            if found is None or int(found.group(1)) != position:
                raise _PassingError(f"asked for bytes from {position}, got {found and found.group()!r}")
        else:
            self._skip(position)

    def read(self, size: int, /) -> bytes:
        data = self._response.read(size)
        if self._left is not None:
            self._left -= len(data)
            if not data and size and self._left > 0:
                raise _PassingError(f"cut off {self._left} bytes before the end")
        return data

    def _skip(self, size: int) -> None:
        while size > 0:
            data = self.read(min(size, PIECE))
            if not data:
                raise _PassingError(f"ended {size} bytes before the place where reading had been before")
            size -= len(data)

    def close(self) -> None:
        self._response.close()


class _End:
    """What is behind the last byte."""

    mark = ""

    def read(self, size: int, /) -> bytes:
        return b""

    def close(self) -> None:
        pass


def _open_http(url: str, position: int, timeout: float) -> Connection:
    headers = {"User-Agent": "pairmill", "Accept-Encoding": "identity"}
    if position:
        headers["Range"] = f"bytes={position}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        return _Answer(_opener().open(request, timeout=timeout), url, position)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (404, 410):
                raise FileNotFoundError(f"{url}: HTTP {error.code}") from error
            if error.code == 416 and position:
                return _End()  # it was the last connection that did not say where the file ends
            if error.code not in PASSING:
                raise InputError(f"{url}: HTTP {error.code} {error.reason}; mend --input") from error
            after = error.headers.get("Retry-After") or ""
            raise _PassingError(
                f"HTTP {error.code}", float(after) if after.strip().isdigit() else 0.0
            ) from error


def _opener() -> urllib.request.OpenerDirector:
    """As urllib's own, but for http and https alone: a redirect must not lead to a file or to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Stored:
    """A file of an object store, read block by block from some position on."""

    def __init__(self, url: str, position: int) -> None:
        fs, path = storage.resolve(url)
        fs.invalidate_cache(path)
        self._file = fs.open(path, "rb", block_size=BLOCK)
        details = getattr(self._file, "details", None) or {}
        self.mark = str(details.get("ETag") or details.get("etag") or details.get("size") or "")
        if position:
            self._file.seek(position)

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


def _open_storage(url: str, position: int, timeout: float) -> Connection:
    return _Stored(url, position)
