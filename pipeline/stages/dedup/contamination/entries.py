"""The table of benchmark pictures, and how it is made of pictures and of lists of hashes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from pipeline import columns, storage
from pipeline.errors import ConfigError, InputError
from pipeline.phash import WORDS, CorruptPictureError, decode_grey, outlines, phash64
from pipeline.stages.dedup.hashes import HASHES, INNER, LONG, SHA256, SHORT, read_outlines

#: `short` is the 64-bit hash, `long` what `pipeline.phash.outlines` gives, `digest` the sha256 of a file; a
#: list may have only one of them
BENCHMARK = pa.schema(
    [
        ("set", pa.string()),
        ("name", pa.string()),
        ("short", pa.binary(8)),
        ("long", pa.binary(8 * WORDS * HASHES)),
        ("digest", pa.binary(32)),
    ]
)
#: what a list of hashes in parquet may have
LISTED = (SHORT, LONG, SHA256, "sha256")
_LINE = re.compile(r"([0-9a-fA-F]{16})(?:[\s,;]+(.*))?")


def of_pictures(name: str, pictures: Iterable[tuple[str, bytes]]) -> tuple[pa.Table, int]:
    """(the entries of (name, file) of a set's pictures, how many could not be decoded)."""
    rows, undecodable = [], 0
    for label, data in pictures:
        try:
            grey = decode_grey(data)
        except CorruptPictureError:
            undecodable += 1
            continue
        long = outlines(grey).astype(">u8").tobytes()
        rows.append({"set": name, "name": label, "short": bytes.fromhex(phash64(grey)), "long": long})
    return pa.Table.from_pylist(rows, schema=BENCHMARK), undecodable


def of_text(name: str, url: str) -> pa.Table:
    """The entries of a text list: a hash of 16 hex digits a line, with a name behind it or not. Empty lines
    and those that begin with # are skipped.

    Raises:
        ConfigError: a line is none of these, or there is no hash at all.
    """
    rows = []
    text = storage.read_bytes(url).decode("utf-8", "replace").removeprefix("\ufeff")
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(
                f"{url}, line {number}: {line[:40]!r} is no hash; a line has 16 hex digits (a 64-bit pHash), "
                "then a name if it likes"
            )
        rows.append({"set": name, "name": match[2] or match[1].lower(), "short": bytes.fromhex(match[1])})
    if not rows:
        raise ConfigError(f"{url} has no hash; a line has 16 hex digits (a 64-bit pHash)")
    return pa.Table.from_pylist(rows, schema=BENCHMARK)


def check_parquet(url: str) -> None:
    """Raises ConfigError where a parquet has no column of hashes."""
    names = columns.read_schema(url).names
    if not set(LISTED) & set(names):
        raise ConfigError(
            f"{url}: no column of hashes; a list has one of {', '.join(LISTED)}, found {', '.join(names)}"
        )


def of_parquet(name: str, url: str) -> pa.Table:
    """The entries of a list in parquet, or of a column of `score --kind hash`: what it has of `phash`,
    `phash_long` (with `phash_inner` or alone), `picture_sha256` or `sha256`; names from `name` or `key`, or
    the number of the row.

    Raises:
        InputError: it cannot be read, or a value is no hash.
    """
    table = columns.read_parquet(url, {*LISTED, INNER, "name", "key"})
    length = len(table)
    found = {
        "set": pa.array([name] * length, pa.string()),
        "name": _names(table),
        "short": _digits(table, (SHORT,), 8, url),
        "long": _hashes(table, url),
        "digest": _digits(table, (SHA256, "sha256"), 32, url),
    }
    entries = pa.table(found, schema=BENCHMARK)
    some = [column.is_valid() for column in (entries["short"], entries["long"], entries["digest"])]
    return entries.filter(pa.compute.or_(pa.compute.or_(some[0], some[1]), some[2]))


def _names(table: pa.Table) -> pa.Array:
    for column in ("name", "key"):
        if column in table.column_names:
            values = table[column].to_pylist()
            return pa.array([str(at) if v is None else str(v) for at, v in enumerate(values)], pa.string())
    return pa.array([str(at) for at in range(len(table))], pa.string())


def _digits(table: pa.Table, names: Sequence[str], size: int, url: str) -> pa.Array:
    name = next((n for n in names if n in table.column_names), None)
    values = table[name].to_pylist() if name is not None else [None] * len(table)
    found = []
    for value in values:
        try:
            data = None if value is None or value == "" else bytes.fromhex(value)
        except (ValueError, TypeError):
            data = b""
        if data is not None and len(data) != size:
            raise InputError(f"{url}: {name} {value!r} must have {2 * size} hex digits")
        found.append(data)
    return pa.array(found, pa.binary(size))


def _hashes(table: pa.Table, url: str) -> pa.Array:
    if LONG not in table.column_names:
        return pa.nulls(len(table), pa.binary(8 * WORDS * HASHES))
    if INNER not in table.column_names:
        # without inner crops the whole stands for them, so nothing else is found by them
        values = [None if v is None else v * (HASHES - 1) for v in table[LONG].to_pylist()]
        table = table.append_column(INNER, pa.array(values, pa.string()))
    words, has = read_outlines(table, url)
    rows = iter(words.astype(">u8").reshape(len(words), HASHES * WORDS))
    return pa.array([next(rows).tobytes() if h else None for h in has], BENCHMARK.field("long").type)


def words_of(column: pa.ChunkedArray, words: int) -> np.ndarray:
    """uint64 [n, words] of a column of bytes without nulls."""
    data = b"".join(column.to_pylist())
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, words)
