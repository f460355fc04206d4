"""The body of an archived HTTP response: transfer and content encoding undone, within a limit.

It is done apart from the archive's own stream: FastWARC can decode on the way, but after one body that is not
what its headers say it cannot find the next record.
"""

from __future__ import annotations

import io
import re
import zlib
from typing import NamedTuple

from fastwarc.stream_io import BrotliReader, GzipReader
from fastwarc.warc import WarcRecord

#: a page longer than this is cut here: decoded, it is a bomb or a data dump
MAX_PAGE_BYTES = 16 << 20
_HTML = ("text/html", "application/xhtml+xml")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


class Body(NamedTuple):
    """The bytes of a page, and the charset its HTTP header declares."""

    data: bytes
    charset: str | None


class MalformedError(ValueError):
    """The record is in its place but its content is not what it should be."""


def read_html(record: WarcRecord) -> Body | None:
    """The page in a `response` record; None where it holds none (an image, a redirect, an error).

    Raises:
        MalformedError: no HTTP message, or a body that is not encoded as its header says.
    """
    try:
        record.parse_http(auto_decode="none", quirks_mode=True)
    except (OSError, ValueError) as error:
        raise MalformedError(f"no HTTP response: {error}") from error
    headers = record.http_headers if record.is_http_parsed else None
    status = headers.status_code if headers is not None else None
    if headers is None or status is None:
        raise MalformedError("no HTTP response")
    kind = record.http_content_type
    if not 200 <= status < 300 or (kind is not None and kind.lower() not in _HTML):
        return None
    data = record.reader.read(MAX_PAGE_BYTES)
    if "chunked" in (headers.get("Transfer-Encoding") or "").lower():
        data = _unchunk(data)
    encoding = (headers.get("Content-Encoding") or "").strip().lower()
    if encoding not in ("", "identity"):
        data = _decode(data, encoding)
    if kind is None and b"<html" not in data[:2048].lower():
        return None
    return Body(data, record.http_charset)


def _unchunk(data: bytes) -> bytes:
    """Joins the chunks (RFC 9112, 7.1); a cut last chunk gives what there is of it.

    FastWARC's own reader stops at chunk extensions.
    """
    parts: list[bytes] = []
    at = 0
    while found := _CHUNK_SIZE.match(data, at):
        size = int(found.group(1), 16)
        if size == 0:
            return b"".join(parts)
        parts.append(data[found.end() : found.end() + size])
        at = found.end() + size
        at += 2 if data.startswith(b"\r\n", at) else 1
    if not parts:  # Common Crawl and others store the body joined, and keep the header
        return data
    if at < len(data):
        raise MalformedError(f"no chunk at byte {at} of a chunked body")
    return b"".join(parts)


def _decode(data: bytes, encoding: str) -> bytes:
    """Undoes a content encoding. A body that was stored decoded, with the header left, is taken as it is."""
    if data.lstrip()[:1] == b"<":
        return data
    if encoding in ("gzip", "x-gzip"):
        return _read(GzipReader(io.BytesIO(data)), encoding)
    if encoding == "br":
        return _read(BrotliReader(io.BytesIO(data)), encoding)
    if encoding == "deflate":
        return _inflate(data)
    raise MalformedError(f"unknown content encoding {encoding!r}")


def _read(reader: GzipReader | BrotliReader, encoding: str) -> bytes:
    parts, size = [], 0
    try:
        while size < MAX_PAGE_BYTES and (part := reader.read(min(1 << 18, MAX_PAGE_BYTES - size))):
            parts.append(part)
            size += len(part)
    except OSError as error:
        raise MalformedError(f"body is not {encoding}: {error}") from error
    return b"".join(parts)


def _inflate(data: bytes) -> bytes:
    # the standard says zlib, some servers send it raw
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return zlib.decompressobj(window).decompress(data, MAX_PAGE_BYTES)
        except zlib.error:
            continue
    raise MalformedError("body is not deflate")
