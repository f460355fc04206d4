"""What the selecting stages hand to each other: for each row that competes, who it is and what it is worth.

A state is a table of one image shard, sorted by the bucket of what is asked next, so that a bucket is read
from all shards without the rest. Hashes stand for texts and domains: 128 bits, equal where these are.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stages.pack.rule import PER_DOMAIN, PER_TEXT
from pipeline.urls import HOST_PATTERN, clean_host

#: limits, in the order in which they are asked, and the column of the state that each looks at
CAPS = {PER_TEXT: "text", PER_DOMAIN: "domain"}
#: key; why the row is out (null: it is still in); what `by` says of it (null also for NaN); hashes of its
#: text and its domain (null: it has none, and no limit holds for it); bucket of what is asked next, -1 for
#: rows that this does not concern
STATE = pa.schema(
    [
        ("bucket", pa.int32()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("by", pa.float64()),
        ("text", pa.binary(16)),
        ("domain", pa.binary(16)),
    ]
)
NOT_ASKED = -1

#: second levels that many countries sell below: the domain of such a host has three labels
_SECOND_LEVELS = frozenset(
    (
        "ac",
        "co",
        "com",
        "edu",
        "go",
        "gob",
        "gouv",
        "gov",
        "ltd",
        "mil",
        "ne",
        "net",
        "nom",
        "or",
        "org",
        "sch",
    )
)
_ADDRESS = re.compile(r"[\d.]+|\[.*\]|.*:.*")
_SPACE = re.compile(r"\s+")


def normal_text(text: str) -> str:
    """Texts are the same when they differ in case, white space or forms of one character alone: NFKC, case
    folded, runs of white space one space, none at the ends."""
    if text.isascii():
        return " ".join(text.lower().split())
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def domain_of(host: str) -> str:
    """What a clean host (`pipeline.urls`) is registered as, nearly: its last two labels, three where the last
    is a country (two letters) and the one before it is such as `co` or `com`; an address as a whole.

    Without the list of public suffixes: `a.blogspot.com` and `b.blogspot.com` are one domain.
    """
    if _ADDRESS.fullmatch(host):
        return host
    labels = host.split(".")
    wide = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVELS
    return ".".join(labels[-3 if wide else -2 :])


def text_hashes(texts: pa.Array) -> pa.Array:
    """128 bits of each text; null for null and for white space."""
    return _hashed(texts, normal_text)


def domain_hashes(urls: pa.Array) -> pa.Array:
    """128 bits of the domain of each URL; null where it has no host."""
    hosts = pc.struct_field(pc.extract_regex(urls, HOST_PATTERN), "host")
    return _hashed(hosts, lambda host: domain_of(clean_host(host)))


def _hashed(values: pa.Array, normal: Callable[[str], str]) -> pa.Array:
    """Each distinct value is looked at once."""
    coded = pc.dictionary_encode(values)
    found = []
    for value in coded.dictionary.to_pylist():
        name = normal(value)
        found.append(
            hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest() if name else None
        )
    return pa.array(found, pa.binary(16)).take(coded.indices)


def by_values(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Values as 64-bit floats, by which they are compared; NaN is none, and -0 is 0."""
    values = column.cast(pa.float64(), safe=False)
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), pc.add(values, 0.0))


def beyond(table: pa.Table, column: str, limit: int) -> np.ndarray:
    """Which rows of a table come after the `limit` best of those with the same hash in a column.

    Better is the greater `by` (null comes last), then the smaller key. Rows without a hash never do.
    """
    asked = table.append_column("at", pa.array(np.arange(len(table))))
    asked = asked.filter(pc.is_valid(asked[column])).select([column, "by", "key", "at"])
    if not len(asked):
        return np.zeros(len(table), bool)
    # nulls come last, whichever way a column is sorted
    ranked = asked.sort_by([(column, "ascending"), ("by", "descending"), ("key", "ascending")])
    hashes = ranked[column].combine_chunks()
    first = np.ones(len(ranked), bool)
    first[1:] = pc.not_equal(hashes[1:], hashes[:-1]).to_numpy(zero_copy_only=False)
    places = np.arange(len(ranked))
    rank = places - np.maximum.accumulate(np.where(first, places, 0))
    out = np.zeros(len(table), bool)
    out[ranked["at"].to_numpy()[rank >= limit]] = True
    return out


def mark(
    table: pa.Table, rows: pa.Array | pa.ChunkedArray, reason: str | pa.Array | pa.ChunkedArray
) -> pa.Table:
    """The state with a reason for those of the rows that are in until now."""
    still = pc.and_(pc.is_null(table["reason"]), rows)
    at = table.column_names.index("reason")
    return table.set_column(at, "reason", pc.if_else(still, reason, table["reason"]).cast(pa.string()))


def asked_next(table: pa.Table, limits: Sequence[tuple[str, int]], buckets: int) -> pa.Table:
    """The state made ready for the first of the limits, if there is one: (reason, rows of a hash at most).

    What cannot be among the best of all shards, as it is not among those of its own, is out already: so a
    bucket has at most `limit` rows of a hash from each shard, however many pictures a domain has.
    """
    bucket = np.full(len(table), NOT_ASKED, np.int32)
    for cap, limit in limits[:1]:
        mine = table.filter(pc.is_null(table["reason"]))
        lost = mine["key"].filter(pa.array(beyond(mine, CAPS[cap], limit)))
        table = mark(table, pc.is_in(table["key"], lost.combine_chunks()), cap)
        concerned = pc.and_(pc.is_null(table["reason"]), pc.is_valid(table[CAPS[cap]]))
        at = pc.indices_nonzero(concerned).to_numpy()
        hashes = table[CAPS[cap]].combine_chunks().take(pa.array(at)).to_pylist()
        bucket[at] = [int.from_bytes(one[:8], "big") % buckets for one in hashes]
    table = table.set_column(0, "bucket", pa.array(bucket, pa.int32()))
    return table.sort_by([("bucket", "ascending"), ("key", "ascending")]).combine_chunks()
