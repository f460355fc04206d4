"""Manifests of finished units by the thousand: one parquet object instead of a thousand small files.

    _pairmill/manifests/00000003-<12 hex>.parquet     units 3000 to 3999: number, digest, content, manifest

Beside each lies a copy (`.copy`): a changed byte in one of them must not cost a thousand units.

Named by the hash of its content, so two compactions at once never overwrite each other. A loose manifest of a
unit, or a mark that the unit is void, always wins over its row here (`pipeline.manifest`); so units are
redone, replaced and appended as before, and `pipeline.compact` merges again what has come loose.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError
from pipeline.shards.format import shard_name

log = logging.getLogger(__name__)

#: units in one object
THOUSAND = 1000
SUFFIX = ".parquet"
COPY = ".copy"
#: requests at a time where many objects are read
THREADS = 16

SCHEMA = pa.schema(
    [
        ("number", pa.int32()),
        ("digest", pa.string()),
        ("content", pa.string()),
        ("finished", pa.string()),
        ("manifest", pa.string()),
    ]
)
NAMES = ["number", "digest", "content", "finished"]


@dataclass(frozen=True)
class Row:
    """What planning needs of one unit: number, both marks, when it was made, and the object that holds it."""

    number: int
    digest: str
    content: str
    finished: str
    url: str


def thousand_of(name: str) -> int | None:
    """Which thousand an object of this name holds; None for other files."""
    stem, dot, _ = name.partition(SUFFIX)
    number, dash, mark = stem.partition("-")
    return int(number) if dot and dash and number.isdigit() and len(mark) == 12 else None


def encode(manifests: Iterable[tuple[str, str, Mapping[str, Any]]]) -> tuple[str, bytes]:
    """(name, bytes) of the object of some units, all of one thousand. Gets (digest, content, manifest)."""
    rows = [
        {
            "number": record["unit"],
            "digest": digest,
            "content": content,
            "finished": record.get("finished", ""),
            "manifest": json.dumps(record, sort_keys=True),
        }
        for digest, content, record in manifests
    ]
    rows.sort(key=lambda r: (r["number"], r["digest"], r["content"]))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
    data = sink.getvalue()
    mark = hashlib.sha256(data).hexdigest()[:12]
    return f"{shard_name(rows[0]['number'] // THOUSAND)}-{mark}{SUFFIX}", data


def read_rows(urls: Sequence[str]) -> list[Row]:
    """The units of some objects. Where two objects hold one unit (two compactions ran at once), the unit that
    was made last counts.

    Raises:
        InputError: an object is not what its name says.
    """
    newest: dict[int, list[Row]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for rows in pool.map(_rows_of, urls):
            here: dict[int, list[Row]] = {}
            for row in rows:
                here.setdefault(row.number, []).append(row)
            for number, found in here.items():
                standing = newest.get(number)
                if standing is None or _last(found) > _last(standing):
                    newest[number] = found
    return [row for number in sorted(newest) for row in newest[number]]


def _last(rows: list[Row]) -> str:
    return max(row.finished for row in rows)


def _rows_of(url: str) -> list[Row]:
    table = pq.read_table(io.BytesIO(_bytes_of(url)), columns=NAMES)
    columns = (table[name].to_pylist() for name in NAMES)
    rows = zip(*columns, strict=True)
    return [Row(n, digest, content, finished, url) for n, digest, content, finished in rows]


def read_manifests(url: str) -> dict[tuple[int, str, str], dict[str, Any]]:
    """(number, digest, content) -> manifest, of all units of one object.

    Raises:
        InputError: the object is not what its name says.
    """
    table = pq.read_table(io.BytesIO(_bytes_of(url)))
    columns = (table[name].to_pylist() for name in ("number", "digest", "content", "manifest"))
    return {(n, d, c): json.loads(m) for n, d, c, m in zip(*columns, strict=True)}


@functools.lru_cache(maxsize=4)
def read_manifests_cached(url: str) -> dict[tuple[int, str, str], dict[str, Any]]:
    """As `read_manifests`; an object of one name always has one content, so it may be kept."""
    return read_manifests(url)


def write(folder: str, name: str, data: bytes) -> str:
    """Writes an object and its copy; returns the object's location."""
    url = storage.join(folder, name)
    storage.write_bytes(copy_url(url), data)
    storage.write_bytes(url, data)
    return url


def remove(url: str) -> None:
    """Removes an object and its copy."""
    for location in (url, copy_url(url)):
        storage.remove(location, missing_ok=True)


def copy_url(url: str) -> str:
    return url.removesuffix(SUFFIX) + COPY


def damaged(url: str) -> list[str]:
    """Which of an object and its copy are missing, or are not what their name stands for."""
    return [location for location in (url, copy_url(url)) if _read_checked(location, url) is None]


def mend(url: str) -> None:
    """Writes whichever of an object and its copy is damaged anew from the other.

    Raises:
        InputError: both are damaged.
    """
    data = _bytes_of(url)
    for location in damaged(url):
        storage.write_bytes(location, data)


def restore(copy: str) -> None:
    """Writes the object anew of which only the copy is there; a copy that is damaged goes. Harmless where a
    crash has left the copy: what it says is said elsewhere as well."""
    url = copy.removesuffix(COPY) + SUFFIX
    data = _read_checked(copy, url)
    if data is None:
        storage.remove(copy, missing_ok=True)
    else:
        storage.write_bytes(url, data)


def _bytes_of(url: str) -> bytes:
    data = _read_checked(url, url)
    if data is not None:
        return data
    if not storage.exists(url):
        raise FileNotFoundError(url)
    data = _read_checked(copy_url(url), url)
    if data is None:
        raise InputError(
            f"{url} is damaged, and so is the copy beside it: the bytes are not those that the name stands "
            "for; delete both, and the units that it lists count as not done"
        )
    log.warning("%s is damaged, its copy is used; run `pairmill verify --fix`", url)
    return data


def _read_checked(location: str, url: str) -> bytes | None:
    """The bytes at a location; None when they are not those that the name `url` stands for."""
    try:
        data = storage.read_bytes(location)
    except FileNotFoundError:
        return None
    mark = storage.basename(url).removesuffix(SUFFIX).rpartition("-")[2]
    return data if hashlib.sha256(data).hexdigest()[:12] == mark else None
