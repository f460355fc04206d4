"""Web archives to candidates: one archive becomes one table of picture URLs and alt texts.

    pairmill discover --input 'crawl/*.warc.gz' --output candidates --rules laion5b

Reads WARC (the HTML of `response` records) and WAT (the JSON of `metadata` records). Each picture link that a
page holds is a candidate or is dropped for a reason:

* `no_url`: the tag says no address at all.
* `no_alt`: no alt text, or nothing left of it.
* `not_http` (data:, javascript:, ftp:), `bad_url`: no address that could be fetched. Relative ones are joined
  to the page's base before they are judged.
* the reasons of the preset's rules that need no picture (`pipeline.rules`).
* `duplicate_in_page`: the page has the same URL with the same text already.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from fastwarc.warc import WarcRecord, WarcRecordType

from pipeline import inputs, rules, storage
from pipeline.errors import ConfigError, InputError
from pipeline.settings import location
from pipeline.stage import Counts, Input, Output, Stage, Unit, append_units
from pipeline.stages.discover import html, wat
from pipeline.stages.discover.archive import read_records
from pipeline.stages.discover.html import Link, Page
from pipeline.stages.discover.response import read_html
from pipeline.stages.discover.text import Base, clean_text, url_fault

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


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig:
    """What discover reads and which rules it applies.

    Attributes:
        input: WARC or WAT archives, plain or gzip: paths, globs or URLs of any fsspec kind.
        rules: the preset whose rules are applied that need no picture: none, laion400m, laion5b, coyo,
            datacomp-basic.
    """

    input: list[str] | str = location(factory=list)
    rules: str = "laion5b"


class DiscoverStage(Stage):
    """One unit is one archive; new archives are appended, and the old ones keep their numbers."""

    name = "discover"
    prefix = "part-"

    def __init__(self, config: DiscoverConfig) -> None:
        """Raises ConfigError when no input is named or the preset is unknown."""
        if not config.input:
            raise ConfigError(
                "discover has no input; give --input 'path/to/*.warc.gz' (paths, globs or URLs)"
            )
        self.config = config
        rules.get_preset(config.rules)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        pieces = []
        for name, info in inputs.files(self.config.input):
            mark = Input(url=info.url, fingerprint=inputs.file_fingerprint(info))
            pieces.append(({"archive": name}, (mark,)))
        return append_units(planned, pieces)

    def run(self, unit: Unit, scratch: Path) -> Output:
        """Raises InputError when the archive is missing, empty, no archive, damaged or cut off."""
        url, name = unit.inputs[0].url, unit.source["archive"]
        found = Candidates(name, rules.get_preset(self.config.rules))
        try:
            with storage.open_read(url) as stream:
                for record in read_records(stream, name):
                    found.add_record(record)
        except FileNotFoundError as error:
            raise InputError(f"archive {name}: {url} is not there any more; mend --input") from error
        return Output(parts={".parquet": found.table()}, counts=found.counts, notes=dict(found.notes))


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
        if page is not None and page.links:
            page_url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
            self._add_page(page, _LONE_SURROGATE.sub("", page_url), record.stream_pos)

    def _read_page(self, record: WarcRecord) -> Page | None:
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
        if not wat.may_have_images(payload):
            return None
        self.notes["pages_with_images"] += 1
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
        self.notes["pages_with_images"] += 1
        return html.read_page(body.data, html.find_charset(body.data, body.charset))

    def _add_page(self, page: Page, page_url: str, offset: int) -> None:
        base = Base(page_url, page.base_href)
        seen: set[tuple[str, str]] = set()
        for position, link in enumerate(page.links):
            pair = self._judge(link, base, seen)
            if isinstance(pair, str):
                self.counts.drop(pair)
                continue
            seen.add(pair)
            self.counts.keep()
            self._rows.append((*pair, page_url, offset, position))

    def _judge(self, link: Link, base: Base, seen: set[tuple[str, str]]) -> tuple[str, str] | str:
        """(url, caption) of a candidate, or the reason against it."""
        if not link.url:
            return "no_url"
        caption = clean_text(link.alt) if link.alt else ""
        if not caption:
            return "no_alt"
        for reason, keeps in self._caption_rules:
            if not keeps(caption):
                return reason
        try:
            url = base.join(link.url)
        except ValueError:
            return "bad_url"
        fault = url_fault(url)
        if fault:
            return fault
        for reason, keeps in self._url_rules:
            if not keeps(url):
                return reason
        return "duplicate_in_page" if (url, caption) in seen else (url, caption)
