"""Writes the pages as a crawl archive would hold them: WARC files with the HTML, WAT files with its links.

Written with warcio, not with the code that will read them. Some pages are in the WARCs, some only in the
WATs, a few in both. Dates and record ids are fixed, so the same world gives the same bytes.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterable
from pathlib import Path

from jobs.demo.pages import Page

WARC_FILES = 6
WAT_FILES = 2
_DATE = "2024-05-01T12:00:00Z"
_IDS = uuid.UUID("6f1d3c52-64b5-4f0e-9a7c-0d9a3d0f5a11")


def split_pages(pages: list[Page]) -> tuple[list[Page], list[Page]]:
    """(pages for the WARCs, pages for the WATs): only plain pages go to a WAT, which knows `src` alone."""
    plain = [p for p in pages if all(tag.form == "src" for tag in p.tags)]
    wat = plain[::3]
    in_wat_only = {page.url for page in wat[: len(wat) * 9 // 10]}
    return [page for page in pages if page.url not in in_wat_only], wat


def write_archives(pages: list[Page], folder: Path) -> dict[str, str]:
    """Writes all archives; returns `warc`, `wat` or `both` per page."""
    folder.mkdir(parents=True, exist_ok=True)
    in_warc, in_wat = split_pages(pages)
    for number in range(WARC_FILES):
        path = folder / f"demo-{number:05d}.warc.gz"
        path.write_bytes(warc_bytes(in_warc[number::WARC_FILES], name=path.name))
    for number in range(WAT_FILES):
        path = folder / f"demo-{WARC_FILES + number:05d}.warc.wat.gz"
        path.write_bytes(wat_bytes(in_wat[number::WAT_FILES], name=path.name))
    warc_urls, wat_urls = {p.url for p in in_warc}, {p.url for p in in_wat}
    return {
        page.url: "both" if page.url in warc_urls & wat_urls else "wat" if page.url in wat_urls else "warc"
        for page in pages
    }


def warc_bytes(pages: Iterable[Page], *, name: str) -> bytes:
    """A gzipped WARC: warcinfo, then a request and a response per page, and one response that is no page."""
    from warcio.statusandheaders import StatusAndHeaders

    archive = _Archive(name)
    for page in pages:
        request = StatusAndHeaders(
            "GET / HTTP/1.1", [("Host", page.url.split("/")[2])], protocol="HTTP/1.1", is_http_request=True
        )
        archive.add("request", page.url, b"", request)
        headers = StatusAndHeaders(
            "200 OK", [("Content-Type", f"text/html; charset={page.encoding}")], protocol="HTTP/1.1"
        )
        archive.add("response", page.url, page.render(), headers)
    plain = StatusAndHeaders("200 OK", [("Content-Type", "text/plain")], protocol="HTTP/1.1")
    archive.add("response", f"http://example.org/{name}/robots.txt", b"User-agent: *\nDisallow:\n", plain)
    return archive.bytes()


def wat_bytes(pages: Iterable[Page], *, name: str) -> bytes:
    """A gzipped WAT: warcinfo, then one JSON metadata record per page, as Common Crawl writes them."""
    archive = _Archive(name)
    for page in pages:
        record = json.dumps(_wat_record(page), ensure_ascii=False).encode()
        archive.add("metadata", page.url, record, None, content_type="application/json")
    return archive.bytes()


def _wat_record(page: Page) -> dict[str, object]:
    head: dict[str, object] = {"Title": page.title, "Metas": [{"name": "generator", "content": "demo"}]}
    if page.base:
        head["Base"] = page.base
    links: list[dict[str, str]] = [{"path": "A@/href", "url": "/index.html", "text": "home"}]
    links += [{"path": "IMG@/src", "url": tag.written, "alt": tag.picture.alt} for tag in page.tags]
    links.append({"path": "IMG@/src", "url": "/static/no-alt-text.jpg"})
    response = {
        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
        "Headers": {"Content-Type": f"text/html; charset={page.encoding}"},
        "HTML-Metadata": {"Head": head, "Links": links},
    }
    return {
        "Container": {"Filename": "demo.warc.gz", "Compressed": True, "Offset": "0"},
        "Envelope": {
            "Format": "WARC",
            "WARC-Header-Metadata": {
                "WARC-Type": "response",
                "WARC-Target-URI": page.url,
                "WARC-Date": _DATE,
                "Content-Type": "application/http; msgtype=response",
            },
            "Payload-Metadata": {
                "Actual-Content-Type": "application/http; msgtype=response",
                "HTTP-Response-Metadata": response,
            },
        },
    }


class _Archive:
    """A gzipped archive in memory, one member per record; dates and ids depend on its name alone."""

    def __init__(self, name: str) -> None:
        from warcio.warcwriter import WARCWriter

        self._buffer = io.BytesIO()
        self._writer = WARCWriter(self._buffer, gzip=True)
        self._name, self._records = name, 0
        info = b"software: pairmill demo\r\nformat: WARC File Format 1.0\r\n"
        self.add("warcinfo", "", info, None, content_type="application/warc-fields")

    def add(
        self, kind: str, url: str, payload: bytes, http_headers: object, *, content_type: str = ""
    ) -> None:
        headers = {
            "WARC-Date": _DATE,
            "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(_IDS, f'{self._name}:{self._records}')}>",
        }
        record = self._writer.create_warc_record(
            url,
            kind,
            payload=io.BytesIO(payload),
            length=None if http_headers else len(payload),
            http_headers=http_headers,
            warc_headers_dict=headers,
            warc_content_type=content_type,
        )
        self._writer.write_record(record)
        self._records += 1

    def bytes(self) -> bytes:
        return self._buffer.getvalue()
