"""Collects the candidates of one archive: which picture links of a page are kept, and why the others are not.

A link passes these in turn, and the first that fails gives the reason: `no_url`, `no_alt`, the preset's rules for
captions, `not_http` and `bad_url`, `blocked_domain`, the preset's rules for addresses, `duplicate_in_page`.
"""

from __future__ import annotations

import re
from collections import Counter

import pyarrow as pa
from fastwarc.warc import WarcRecord, WarcRecordType

from pipeline import rules
from pipeline.stage import Counts
from pipeline.stages.discover import html, wat
from pipeline.stages.discover.addresses import Base
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
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Candidates:
    """Collects the candidates of one archive.

    Attributes:
        counts: picture links seen, kept, dropped by reason.
        notes: records, pages, pages with pictures, bytes of the pages, malformed records (skipped).
    """

    def __init__(self, archive: str, preset: rules.Preset) -> None:
        self.archive = archive
        self.counts = Counts()
        self.notes: Counter[str] = Counter(records=0, pages=0, pages_with_images=0, bytes=0, malformed=0)
        found = preset.rules_for("discover")
        self._url_rules = [(r.reason, r.keeps) for r in found if r.columns == ("url",) and r.keeps]
        self._caption_rules = [(r.reason, r.keeps) for r in found if r.columns == ("caption",) and r.keeps]
        assert len(self._url_rules) + len(self._caption_rules) == len(found)
        self._rows: list[tuple[str, str, str, int, int]] = []

    def table(self) -> pa.Table:
        """The candidates in the order of the archive; `SCHEMA`."""
        url, caption, page_url, offset, position = zip(*self._rows, strict=True) if self._rows else [()] * 5
        archive = pa.repeat(pa.scalar(self.archive, pa.string()), len(self._rows))
        return pa.Table.from_arrays(
            [
                pa.array(url, pa.string()),
                pa.array(caption, pa.string()),
                pa.array(page_url, pa.string()),
                archive,
                pa.array(offset, pa.int64()),
                pa.array(position, pa.int32()),
            ],
            schema=SCHEMA,
        )

    def add_record(self, record: WarcRecord) -> None:
        """Takes the pictures of one record; a record that is not what it should be is counted and skipped."""
        self.notes["records"] += 1
        try:
            page = self._read_page(record)
        except ValueError:  # MalformedError, broken JSON, undecodable HTML
            self.notes["malformed"] += 1
            return
        if page is None:
            return
        self.notes["pages_with_images"] += 1
        page_url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
        self._add_page(page, _LONE_SURROGATE.sub("", page_url), record.stream_pos)

    def _read_page(self, record: WarcRecord) -> Page | None:
        """The page of a record; None where it is none, or has no pictures."""
        kind = record.record_type
        if kind == WarcRecordType.metadata:
            return self._read_wat(record)
        return self._read_warc(record) if kind == WarcRecordType.response else None

    def _read_wat(self, record: WarcRecord) -> Page | None:
        if not (record.headers.get("Content-Type") or "").startswith("application/json"):
            return None
        payload = record.reader.read()
        self.notes["bytes"] += len(payload)
        self.notes["pages"] += wat.is_page(payload)
        return wat.read_page(payload)

    def _read_warc(self, record: WarcRecord) -> Page | None:
        if not (record.headers.get("WARC-Target-URI") or "").strip("< ").lower().startswith("http"):
            return None  # dns: lookups and the like
        body = read_html(record)
        if body is None:
            return None
        self.notes["pages"] += 1
        self.notes["bytes"] += len(body.data)
        if not html.may_have_images(body.data):
            return None
        return html.read_page(body.data, html.find_charset(body.data, body.charset))

    def _add_page(self, page: Page, page_url: str, offset: int) -> None:
        base, kept, dropped = Base(page_url, page.base_href), self._rows, self.counts.dropped
        seen: set[tuple[str, str]] = set()
        for position, (written, alt) in enumerate(page.links):
            if not written:
                dropped["no_url"] += 1
            elif not alt or not (caption := clean_text(alt)):
                dropped["no_alt"] += 1
            else:
                url, reason = self._judge(written, caption, base)
                if reason is None and (url, caption) in seen:
                    reason = "duplicate_in_page"
                if reason is not None:
                    dropped[reason] += 1
                    continue
                seen.add((url, caption))
                kept.append((url, caption, page_url, offset, position))
        self.counts.taken += len(page.links)
        self.counts.kept = len(kept)

    def _judge(self, written: str, caption: str, base: Base) -> tuple[str, str | None]:
        """The address, and the reason against the pair if there is one."""
        for reason, keeps in self._caption_rules:
            if not keeps(caption):
                return written, reason
        url, fault = base.address(written)
        if fault:
            return url, fault
        for reason, keeps in self._url_rules:
            if not keeps(url):
                return url, reason
        return url, None
