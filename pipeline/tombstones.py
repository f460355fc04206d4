"""Tombstones: what was taken down, and must not come back.

`FOLDER/_pairmill/tombstones.jsonl` holds one entry a line: `{"kind": "domain", "value": "example.org",
"note": ..., "time": ...}`. `pairmill takedown` writes it, crawl and pack read it, together with the files and
folders that their option `tombstones` names. Entries are no part of a unit's digest: a new one makes no
finished unit differ, since takedown itself takes the pictures out of those.

Kinds, and what a row must have to be meant:

    url          this URL, letter by letter or in its normal form (`normal_url`)
    domain       a URL whose host is this domain or a subdomain of it
    page_domain  the same of the page that the picture was found on
    uid          md5 of caption + URL, 32 hex digits
    sha256       of the downloaded body, 64 hex digits
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import manifest, storage
from pipeline.errors import ConfigError
from pipeline.urls import HOST_PATTERN, clean_host, host_of, is_below, normal_url

KINDS = ("url", "domain", "page_domain", "uid", "sha256")
#: the reason of a row that was taken down, or that a tombstone kept out
TAKEN_DOWN = "taken_down"
MESSAGE = "taken down"
#: columns of an emptied row that keep a value: none of them tells what the picture was
KEPT = ("key", "uid")
BOOK = f"{manifest.BOOKS}/tombstones.jsonl"

_HEX_DIGITS = {"uid": 32, "sha256": 64}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that was taken down: a value of one of KINDS, what somebody noted, and when (UTC)."""

    kind: str
    value: str
    note: str = ""
    time: str = ""


def make_entry(kind: str, value: str, *, note: str = "") -> Entry:
    """An entry of today, its value in the form in which it is compared.

    Raises:
        ConfigError: the kind is unknown, or the value is none of its kind.
    """
    value = value.strip()
    if kind not in KINDS:
        raise ConfigError(f"take-down kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    if kind in ("domain", "page_domain"):
        value = _domain(value)
    if kind in _HEX_DIGITS:
        value = value.lower()
        if not re.fullmatch(rf"[0-9a-f]{{{_HEX_DIGITS[kind]}}}", value):
            raise ConfigError(f"{kind} {value!r} must be {_HEX_DIGITS[kind]} hex digits")
    if not value:
        raise ConfigError(f"take-down of an empty {kind}; give a value")
    return Entry(kind=kind, value=value, note=note, time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _domain(value: str) -> str:
    host = clean_host(value.removeprefix("*").removeprefix("."))
    if not re.fullmatch(r"[^\s/\\:@?#*]+|\[[0-9a-f:.]+\]", host):
        raise ConfigError(f"domain {value!r} must be a host name alone, such as example.org")
    if "." not in host and ":" not in host and host != "localhost":
        raise ConfigError(
            f"domain {value!r} has no dot: a whole top-level domain would go; give one like example.org"
        )
    return host


class Tombstones:
    """Entries, ready to be asked of thousands of rows; false when there are none."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries = tuple(entries)
        values: dict[str, set[str]] = defaultdict(set)
        for entry in self.entries:
            values[entry.kind].add(entry.value)
        self._urls = values["url"] | {normal_url(u) for u in values["url"]}
        self._url_hosts = {host_of(u) for u in self._urls}
        self._domains, self._page_domains = values["domain"], values["page_domain"]
        self._uids, self._hashes = values["uid"], values["sha256"]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `mask` looks at."""
        asked = {
            "url": self._urls or self._domains,
            "page_url": self._page_domains,
            "uid": self._uids,
            "sha256": self._hashes,
        }
        return tuple(name for name, values in asked.items() if values)

    def matches(
        self,
        *,
        url: str | None = None,
        uid: str | None = None,
        sha256: str | None = None,
        page_url: str | None = None,
    ) -> bool:
        """Whether what is known of one row was taken down."""
        return (
            (uid is not None and uid in self._uids)
            or (sha256 is not None and sha256 in self._hashes)
            or (url is not None and self._matches_url(url))
            or (bool(self._page_domains) and is_below(host_of(page_url or ""), self._page_domains))
        )

    def _matches_url(self, url: str) -> bool:
        if self._urls and (url in self._urls or normal_url(url) in self._urls):
            return True
        return bool(self._domains) and is_below(host_of(url), self._domains)

    def mask(self, table: pa.Table) -> pa.BooleanArray:
        """`matches` for every row of a table with any of the columns url, page_url, uid, sha256."""
        found = pa.repeat(pa.scalar(False), len(table))
        for name, values in (("uid", self._uids), ("sha256", self._hashes), ("url", self._urls)):
            if values and name in table.column_names:
                found = pc.or_(found, _is_in(_strings(table[name]), values))
        for name, domains in (("url", self._domains), ("page_url", self._page_domains)):
            if domains and name in table.column_names:
                hosts = _hosts(_strings(table[name]))
                below = {h for h in pc.unique(hosts).to_pylist() if h and is_below(clean_host(h), domains)}
                found = pc.or_(found, _is_in(hosts, below))
        if self._urls and "url" in table.column_names:
            found = pc.or_(found, self._spelt_otherwise(_strings(table["url"])))
        return found

    def _spelt_otherwise(self, urls: pa.StringArray) -> pa.BooleanArray:
        """Rows whose URL has the normal form of an entry; only those with an entry's host are looked at."""
        hosts = _hosts(urls)
        same = {h for h in pc.unique(hosts).to_pylist() if h and clean_host(h) in self._url_hosts}
        rows = pc.indices_nonzero(_is_in(hosts, same))
        flags = [False] * len(urls)
        for row, url in zip(rows.to_pylist(), urls.take(rows).to_pylist(), strict=True):
            flags[row] = normal_url(url) in self._urls
        return pa.array(flags, pa.bool_())


def _strings(column: pa.ChunkedArray) -> pa.StringArray:
    return column.cast(pa.string()).combine_chunks()


def _is_in(column: pa.StringArray, values: set[str]) -> pa.BooleanArray:
    """False for nulls."""
    return pc.is_in(column, value_set=pa.array(sorted(values), pa.string()))


def _hosts(urls: pa.StringArray) -> pa.StringArray:
    """The hosts as they are written in the URLs; null where there is none."""
    return pc.struct_field(pc.extract_regex(urls, HOST_PATTERN), "host")


NONE = Tombstones()


def book_url(folder: str) -> str:
    """Where the tombstones of an output folder are kept."""
    return storage.join(folder, BOOK)


def load(places: str | Sequence[str]) -> Tombstones:
    """The entries of files and folders together.

    Args:
        places: folders with a book (or without one yet), books, or lists as `read_list` takes them.

    Raises:
        ConfigError: a place does not exist, or an entry cannot be read.
    """
    found: dict[tuple[str, str], Entry] = {}
    for place in _places(places):
        for entry in _read_place(place):
            found.setdefault((entry.kind, entry.value), entry)
    return Tombstones(found.values()) if found else NONE


def _read_place(place: str) -> list[Entry]:
    url = place if place.endswith(BOOK) or not storage.isdir(place) else book_url(place)
    fs, path = storage.resolve(url)
    try:
        # one request, past what the filesystem remembers of older listings: the book may be new, or longer
        text = fs.cat_file(path).decode("utf-8", "replace")
    except FileNotFoundError as error:
        if url.endswith(BOOK):
            return []  # nothing was taken down from this folder yet
        raise ConfigError(
            f"tombstones {place!r} do not exist; give a folder, or a file of entries"
        ) from error
    return _read_book(text, url) if url.endswith(".jsonl") else read_list(text, url)


def _read_book(text: str, url: str) -> list[Entry]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            entry = make_entry(fields["kind"], fields["value"], note=fields.get("note", ""))
            found.append(Entry(**{**asdict(entry), "time": fields.get("time", "")}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # an entry that is passed over would bring back what somebody asked to be left alone
            raise ConfigError(f"{url}: line {number} is no tombstone ({error}); mend it") from error
    return found


def read_list(text: str, name: str, *, note: str = "") -> list[Entry]:
    """The entries of a list: lines `KIND:VALUE`, or CSV with a header that names `kind` and `value` (and
    perhaps `note`). Empty lines and lines that begin with `#` are passed over. `name` is for messages.

    Raises:
        ConfigError: a line is neither.
    """
    lines = [(n, line.strip()) for n, line in enumerate(text.lstrip("\ufeff").splitlines(), 1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("#")]
    if not lines:
        return []
    head = [field.strip().lower() for field in lines[0][1].split(",")]
    rows: list[tuple[int, str, str, str]] = []
    if {"kind", "value"} <= set(head):
        for (number, _), fields in zip(lines[1:], csv.reader(line for _, line in lines[1:]), strict=True):
            row = dict(zip(head, fields, strict=False))
            rows.append((number, row.get("kind", "").strip(), row.get("value", ""), row.get("note", "")))
    else:
        for number, line in lines:
            kind, _, value = line.partition(":")
            rows.append((number, kind.strip(), value, ""))
    found = []
    for number, kind, value, own_note in rows:
        try:
            found.append(make_entry(kind, value, note=own_note or note))
        except ConfigError as error:
            raise ConfigError(
                f"{name}: line {number}: {error}; lines are KIND:VALUE, or CSV with kind,value"
            ) from error
    return found


def with_book(config: Any, output: str) -> Any:
    """The config of a stage (a dataclass with a field `tombstones`) made to respect what was taken down from
    the stage's output folder too; a stage does not know where its output lies. Places are made absolute, as
    workers may have another current folder, where a book that is not found would pass for an empty one."""
    places = [*_places(config.tombstones), book_url(output)]
    return replace(config, tombstones=[storage.absolute(place) for place in places])


def _places(places: str | Sequence[str]) -> Sequence[str]:
    return [p for p in ([places] if isinstance(places, str) else places) if p]


def append(folder: str, entries: Iterable[Entry]) -> int:
    """Adds entries to a folder's book, atomically; returns how many it did not hold yet."""
    entries = list(entries)
    added = 0
    for _ in range(3):  # a second takedown at the same time may have written the book anew in between
        book = _read_place(book_url(folder))
        known = {(e.kind, e.value) for e in book}
        fresh = {(e.kind, e.value): e for e in entries if (e.kind, e.value) not in known}
        if not fresh:
            break
        added = max(added, len(fresh))
        lines = [json.dumps(asdict(e), ensure_ascii=False) for e in (*book, *fresh.values())]
        storage.write_bytes(book_url(folder), "".join(f"{line}\n" for line in lines).encode())
    return added


def taken_rows(table: pa.Table) -> pa.BooleanArray:
    """Which rows of an images' parquet were taken down before."""
    return pc.fill_null(pc.equal(_strings(table["reason"]), TAKEN_DOWN), False)


def empty_rows(table: pa.Table, taken: pa.BooleanArray) -> pa.Table:
    """The table with rows of which nothing is left but the columns KEPT and, where the table has them, a
    status (as img2dataset names it) and the reason. The rows stay: keys are given by position."""
    if not pc.any(taken).as_py():
        return table
    places = pc.if_else(taken, pa.scalar(None, pa.int64()), pa.array(range(len(table)), pa.int64()))
    words = {"status": "failed_to_download", "reason": TAKEN_DOWN, "error_message": MESSAGE}
    for at, field in enumerate(table.schema):
        column = table[field.name]
        if field.name in KEPT:
            continue
        if field.name in words and "reason" in table.column_names:
            column = pc.if_else(taken, words[field.name], column.cast(pa.string()))
        else:
            column = column.take(places)
        table = table.set_column(at, field.with_nullable(True).with_type(column.type), column)
    return table
