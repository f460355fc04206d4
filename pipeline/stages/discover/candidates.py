"""Collects the candidates of one archive: which picture links of a page are kept, and why the others are not.

A link passes these in turn, and the first that fails gives the reason: `no_url`, `no_alt`, the preset's rules
for captions, `not_http` and `bad_url`, `blocked_domain`, its rules for addresses, `duplicate_in_page`.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from fastwarc.warc import WarcRecord, WarcRecordType

from pipeline import rules
from pipeline.stage import Counts
from pipeline.stages.discover import html, wat
from pipeline.stages.discover.addresses import Base
from pipeline.stages.discover.blocked import BlockedDomains
from pipeline.stages.discover.html import Page
from pipeline.stages.discover.response import read_html
from pipeline.stages.discover.text import clean_text

SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("page_url", pa.string()),
        ("archive", pa.string()),
        ("record_offset", pa.int64()),
        ("position", pa.int32()),
    ]
)
_METADATA, _RESPONSE = WarcRecordType.metadata, WarcRecordType.response
#: links that are judged in a row, a tenth faster than page by page: the processor keeps the code at hand
JUDGE_AFTER = 2000
#: rows
PACK_AFTER = 4096
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_json(record: WarcRecord) -> bool:
    return (record.headers.get("Content-Type") or "").startswith("application/json")


class Candidates:
    """Collects the candidates of one archive.

    Attributes:
        counts: picture links seen, kept, dropped by reason.
        records, pages, pages_with_images, bytes (of the pages), malformed (records, passed by): seen so far.
    """

    def __init__(
        self,
        archive: str,
        preset: rules.Preset,
        *,
        blocked: BlockedDomains | None = None,
        block_pages: bool = False,
    ) -> None:
        self.archive = archive
        self._blocked = blocked or None  # an empty list costs nothing
        self._blocks_pages = block_pages
        self.counts = Counts()
        self.records = self.pages = self.pages_with_images = self.bytes = self.malformed = 0
        found = preset.rules_for("discover")
        self._url_rules = [(r.reason, r.keeps) for r in found if r.columns == ("url",) and r.keeps]
        self._caption_rules = [(r.reason, r.keeps) for r in found if r.columns == ("caption",) and r.keeps]
        assert len(self._url_rules) + len(self._caption_rules) == len(found)
        self._pairs: list[tuple[str, str, int]] = []  # url, caption, position
        self._pages: list[tuple[str, int, int]] = []  # url, offset of the record, number of pairs
        self._packed: list[pa.Table] = []
        self._waiting: list[tuple[Page, str, int]] = []  # page, url, offset of the record
        self._links_waiting = 0

    def notes(self) -> dict[str, int]:
        """Facts about the archive for its manifest."""
        return {
            "records": self.records,
            "pages": self.pages,
            "pages_with_images": self.pages_with_images,
            "bytes": self.bytes,
            "malformed": self.malformed,
        }

    def table(self) -> pa.Table:
        """The candidates in the order of the archive; `SCHEMA`. The counts are complete from then on."""
        self._add_pages()
        self._pack()
        return pa.concat_tables([SCHEMA.empty_table(), *self._packed]).combine_chunks()

    def _pack(self) -> None:
        """Puts the rows so far into a table, where they take a fourth of the memory."""
        if not self._pairs:
            return
        url, caption, position = zip(*self._pairs, strict=True)
        page_url, offset, count = zip(*self._pages, strict=True)
        page = pa.array(np.repeat(np.arange(len(count)), count))
        columns = [
            pa.array(url, pa.string()),
            pa.array(caption, pa.string()),
            pa.array(page_url, pa.string()).take(page),
            pa.repeat(pa.scalar(self.archive, pa.string()), len(url)),
            pa.array(offset, pa.int64()).take(page),
            pa.array(position, pa.int32()),
        ]
        self._packed.append(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._pairs, self._pages = [], []

    def add_record(self, record: WarcRecord) -> None:
        """Takes the pictures of one record; a record that is not what it should be is counted and skipped."""
        self.records += 1
        try:
            page = self._read_page(record)
        except ValueError:  # MalformedError, broken JSON, undecodable HTML
            self.malformed += 1
            return
        if page is None:
            return
        self.pages_with_images += 1
        page_url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
        if not page_url.isascii():
            page_url = _LONE_SURROGATE.sub("", page_url)
        self._waiting.append((page, page_url, record.stream_pos))
        self._links_waiting += len(page.links)
        if self._links_waiting >= JUDGE_AFTER:
            self._add_pages()

    def _read_page(self, record: WarcRecord) -> Page | None:
        """The page of a record; None where it is none, or has no pictures."""
        kind = record.record_type
        if kind == _METADATA:
            return self._read_wat(record)
        return self._read_warc(record) if kind == _RESPONSE else None

    def _read_wat(self, record: WarcRecord) -> Page | None:
        payload = record.reader.read()
        # the header is asked only where the brace is missing: it takes as long as the rest of a short record
        if payload[:1] != b"{" and not _is_json(record):
            return None
        self.bytes += len(payload)
        page = wat.read_page(payload)
        self.pages += page is not None or wat.is_page(payload)
        return page

    def _read_warc(self, record: WarcRecord) -> Page | None:
        if not (record.headers.get("WARC-Target-URI") or "").strip("< ").lower().startswith("http"):
            return None  # dns: lookups and the like
        body = read_html(record)
        if body is None:
            return None
        self.pages += 1
        self.bytes += len(body.data)
        if not html.may_have_images(body.data):
            return None
        return html.read_page(body.data, html.find_charset(body.data, body.charset))

    def _add_pages(self) -> None:
        for page, page_url, offset in self._waiting:
            self._add_page(page, page_url, offset)
        self._waiting, self._links_waiting = [], 0
        if len(self._pairs) >= PACK_AFTER:
            self._pack()

    def _add_page(self, page: Page, page_url: str, offset: int) -> None:
        if self._blocked and self._blocks_pages and self._blocked.blocks(page_url):
            self.counts.drop("blocked_domain", page.total)
            return
        base, dropped, pairs = Base(page_url, page.base_href), self.counts.dropped, self._pairs
        seen: dict[str, str] = {}  # address: caption
        again: set[tuple[str, str]] = set()  # addresses that the page has with several captions
        before = len(pairs)
        for position, (written, alt) in enumerate(page.links):
            if not written:
                dropped["no_url"] += 1
                continue
            if not alt or not (caption := clean_text(alt)):
                dropped["no_alt"] += 1
                continue
            url, reason = self._judge(written, caption, base)
            if reason is None:
                if url not in seen:
                    seen[url] = caption
                elif seen[url] == caption or (url, caption) in again:
                    reason = "duplicate_in_page"
                else:
                    again.add((url, caption))
            if reason is None:
                pairs.append((url, caption, position))
            else:
                dropped[reason] += 1
        kept = len(pairs) - before
        self.counts.taken += len(page.links)
        self.counts.kept += kept
        if page.total > len(page.links):
            self.counts.drop("too_many_links", page.total - len(page.links))
        self._pages.append((page_url, offset, kept))

    def _judge(self, written: str, caption: str, base: Base) -> tuple[str, str | None]:
        """The address, and the reason against the pair if there is one."""
        for reason, keeps in self._caption_rules:
            if not keeps(caption):
                return written, reason
        url, fault = base.address(written)
        if fault is not None:
            return url, fault
        if self._blocked and self._blocked.blocks(url):
            return url, "blocked_domain"
        for reason, keeps in self._url_rules:
            if not keeps(url):
                return url, reason
        return url, None
