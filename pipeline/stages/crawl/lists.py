"""Rows of lists in foreign formats: parquet, CSV, TSV, JSONL (also .gz), JSON caption files, plain text.

A list is read in pieces by row number. Text cannot be entered in the middle (quoted fields hold line breaks,
gzip has no index), so a reader keeps its place: a worker that takes piece after piece reads a list once.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ConfigError, InputError
from pipeline.stages.crawl.captions import objects_table, read_json, token_line
from pipeline.stages.crawl.config import ColumnOptions

SUFFIXES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".token.txt": "token",
    ".token": "token",
    ".txt": "txt",
}
BATCH_ROWS = 5_000
#: one field of a CSV; an unclosed quotation mark must not swallow a whole list
MAX_FIELD = 4 << 20


def list_kind(url: str) -> str | None:
    """The format of a list by its name, `.gz` and a query string put aside; None where it is unknown."""
    name = storage.basename(url.partition("?")[0]).lower().removesuffix(".gz")
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


class ListReader:
    """Reads one list by row numbers; going forward costs nothing twice.

    Raises (all methods):
        InputError: the list is damaged. ConfigError: it is not what the options say.
    """

    def __init__(self, url: str, columns: ColumnOptions) -> None:
        self.url, self.columns = url, columns
        self._kind = list_kind(url)
        self._tables: Iterator[pa.Table] = iter(())
        self._rest: pa.Table | None = None  # rows that were read and not asked for yet
        self._position: int | None = None  # number of the first of them

    def count(self) -> int:
        """How many rows the list has."""
        with _readable(self.url):
            if self._kind == "parquet":
                with storage.open_read(self.url) as stream:
                    return pq.ParquetFile(stream).metadata.num_rows
            return sum(t.num_rows for t in self._open(0)[1])

    def names(self) -> list[str]:
        """The names of the columns, from the first rows; none where the list is empty."""
        with _readable(self.url):
            if self._kind == "parquet":
                with storage.open_read(self.url) as stream:
                    return pq.ParquetFile(stream).schema_arrow.names
            first = next(self._open(0)[1], None)
            return self._finish(first).column_names if first is not None else []

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows start..stop-1."""
        with _readable(self.url):
            found = list(self._forward(start, stop))
        # one chunk a column: the bytes of a parquet file must not tell where the reader had stood before
        return self._finish(pa.concat_tables(found).combine_chunks())

    def _forward(self, start: int, stop: int) -> Iterator[pa.Table]:
        if self._position is None or start < self._position:
            self._position, self._tables = self._open(start)
            self._rest = None
        while self._position < stop:
            if self._rest is None or not self._rest.num_rows:
                self._rest = next(self._tables, None)
                if self._rest is None:
                    raise InputError(f"{self.url}: ends at row {self._position}, {stop} were planned")
            skipped = min(max(start - self._position, 0), self._rest.num_rows)
            found = self._rest.slice(skipped, max(stop - self._position - skipped, 0))
            self._rest = self._rest.slice(skipped + found.num_rows)
            self._position += skipped + found.num_rows
            if found.num_rows:
                yield found

    def _open(self, start: int) -> tuple[int, Iterator[pa.Table]]:
        """(row number, tables from there on); the number is at most `start`."""
        if self._kind == "parquet":
            return _parquet(self.url, start)
        if self._kind == "json":
            return 0, iter([read_json(_load_json(self.url), self.url)])
        if self._kind == "jsonl":
            return 0, _batches(([line] for line in _lines(self.url) if line.strip()), ["line"])
        if self._kind == "token":
            return 0, _batches(map(token_line, _lines(self.url)), ["file_name", "caption"])
        if self._kind == "txt" and not self.columns.delimiter:
            return 0, _plain(self.url, self.columns.captions)
        return 0, _delimited(self.url, self.columns)

    def _finish(self, table: pa.Table) -> pa.Table:
        if self._kind != "jsonl":
            return table
        table = objects_table(_parse_line(line) for line in table["line"].to_pylist())
        for name in (self.columns.url, self.columns.caption):
            if name is not None and name not in table.column_names:  # absent from these rows alone
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
        return table


@contextlib.contextmanager
def _readable(url: str) -> Iterator[None]:
    """Turns what a damaged file makes the libraries say into one message."""
    try:
        yield
    except (
        pa.ArrowException,
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        csv.Error,
        json.JSONDecodeError,
    ) as error:
        raise InputError(f"{url}: not a readable list ({error})") from error


def _parquet(url: str, start: int) -> tuple[int, Iterator[pa.Table]]:
    """From the row group that holds `start`; batches, since groups of millions of rows are common."""
    with storage.open_read(url) as stream:
        meta = pq.ParquetFile(stream).metadata
    group, first = 0, 0
    while group < meta.num_row_groups - 1 and first + meta.row_group(group).num_rows <= start:
        first += meta.row_group(group).num_rows
        group += 1

    def tables() -> Iterator[pa.Table]:
        with storage.open_read(url) as stream:
            file = pq.ParquetFile(stream)
            for batch in file.iter_batches(BATCH_ROWS, row_groups=list(range(group, meta.num_row_groups))):
                yield pa.Table.from_batches([batch])

    return first, tables()


def _load_json(url: str) -> Any:
    return json.loads("".join(_text(url)))


def _plain(url: str, captions: str | None) -> Iterator[pa.Table]:
    """One URL a line, and one caption a line in another file (SBU)."""
    if captions is None:
        return _batches(([line] for line in _lines(url)), ["url"])

    def rows() -> Iterator[list[str]]:
        for number, (line, caption) in enumerate(itertools.zip_longest(_lines(url), _lines(captions))):
            if line is None or caption is None:
                short = url if line is None else captions
                raise ConfigError(f"{short} ends at line {number}, the other of the two files goes on")
            yield [line, caption]

    return _batches(rows(), ["url", "caption"])


def _delimited(url: str, columns: ColumnOptions) -> Iterator[pa.Table]:
    """CSV and TSV: all columns as text, short rows filled up with nulls."""
    tabs = list_kind(url) == "tsv" and not columns.delimiter
    delimiter = columns.delimiter or ("\t" if tabs else ",")
    quotes = not tabs if columns.quotes is None else columns.quotes
    csv.field_size_limit(MAX_FIELD)
    rows: Iterator[list[str]]
    if quotes:
        text = (line.replace("\0", "") for line in _text(url))
        rows = (row for row in csv.reader(text, delimiter=delimiter, skipinitialspace=True) if row)
    else:
        rows = (line.split(delimiter) for line in _lines(url) if line)
    names = columns.names
    if names is None:
        names = [name.strip() for name in next(rows, [])]
    if len(set(names)) != len(names):
        raise ConfigError(f"{url}: columns {names} have a name twice; give others by --columns.names")
    return _batches(rows, names)


def _batches(rows: Iterable[Sequence[str | None]], names: Sequence[str]) -> Iterator[pa.Table]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        columns = [
            pa.array([r[i] if i < len(r) else None for r in batch], pa.string()) for i in range(len(names))
        ]
        yield pa.table(columns, names=list(names))


def _text(url: str) -> Iterator[str]:
    """Lines with their ends as they are; bytes that are no UTF-8 become replacement characters."""
    with storage.open_read(url) as raw:
        stream = gzip.GzipFile(fileobj=raw) if url.partition("?")[0].lower().endswith(".gz") else raw
        yield from io.TextIOWrapper(cast(IO[bytes], stream), "utf-8-sig", errors="replace", newline="\n")


def _lines(url: str) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in _text(url))


def _parse_line(line: str) -> dict[str, Any]:
    """A line of a JSONL; a broken one is a row without a URL, so that it is counted and the others go on."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
