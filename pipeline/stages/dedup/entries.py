"""What sketch, resolve and mark share: entries, buckets, and tables of which a part can be read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError
from pipeline.inputs import Shard
from pipeline.stage import Input

#: what may be compared, in the order in which a reason is given when several hold; files hold the place in
#: this order, so new ones follow behind
URL_CAPTION, IMAGE, URL = "url_caption", "image", "url"
KINDS = (URL_CAPTION, IMAGE, URL)

#: one hash of one sample; the kind is its place in KINDS
ENTRIES = pa.schema(
    [("bucket", pa.int32()), ("kind", pa.int8()), ("hash", pa.binary(16)), ("key", pa.string())]
)
#: `key` is a duplicate of `of`
LOSERS = pa.schema([("key", pa.string()), ("kind", pa.int8()), ("of", pa.string())])

#: rows of a row group: what is read at least when a part of a table is asked for
ROW_GROUP = 8192


def default_kinds(*, of_candidates: bool) -> tuple[str, ...]:
    """What is compared where nobody says: all there is to see, but one URL may have several captions."""
    return (URL_CAPTION,) if of_candidates else (URL_CAPTION, IMAGE)


def pair_hash(url: str, caption: str | None) -> bytes:
    """128 bits of sha256 over URL and caption; the length keeps one from running into the other."""
    return text_hash(f"{len(url)}:{url}{caption or ''}")


def text_hash(text: str) -> bytes:
    """128 bits of sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def make_entries(kinds: Sequence[tuple[int, Sequence[bytes], pa.Array]], buckets: int) -> pa.Table:
    """Entries sorted by (bucket, kind, hash, key).

    Args:
        kinds: (place in KINDS, hashes of 16 bytes, their keys).
        buckets: an entry's bucket is the first half of its hash modulo this.
    """
    hashes = b"".join(digest for _, digests, _ in kinds for digest in digests)
    halves = np.frombuffer(hashes, ">u8").reshape(-1, 2)
    kind = np.concatenate([np.empty(0, np.int8), *(np.full(len(d), k, np.int8) for k, d, _ in kinds)])
    keys = pa.chunked_array([keys for _, _, keys in kinds], pa.string()).combine_chunks()
    bucket = (halves[:, 0] % np.uint64(buckets)).astype(np.int32)
    rank = pc.rank(keys).to_numpy()
    order = np.lexsort((rank, halves[:, 1], halves[:, 0], kind, bucket))
    sorted_hashes = pa.py_buffer(halves[order].tobytes())
    return pa.table(
        [
            pa.array(bucket[order]),
            pa.array(kind[order]),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(order), [None, sorted_hashes]),
            keys.take(pa.array(order)),
        ],
        schema=ENTRIES,
    )


def folder_input(folder: str, shards: Sequence[Shard]) -> Input:
    """A whole folder as one input, marked by the content of all its shards: units that see all shards would
    otherwise each carry a list of them."""
    marks = "\n".join(f"{s.number}:{s.input.fingerprint}" for s in shards)
    return Input(url=folder, fingerprint=hashlib.sha256(marks.encode()).hexdigest()[:12])


def write_part(table: pa.Table, path: Path) -> Path:
    """Writes a sorted table in small row groups, so that `read_where` skips what does not match."""
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
    return path


def read_where(url: str, column: str, low: Any, high: Any, *, names: Sequence[str] | None = None) -> pa.Table:
    """The rows with `low <= column <= high`; only the columns in `names` where given.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with storage.open_read(url) as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)
            at = file.schema_arrow.get_field_index(column)
            # by hand: for a few rows of each of thousands of files, Arrow's datasets take half as long again
            groups = [
                group
                for group in range(file.metadata.num_row_groups)
                if _overlaps(file.metadata.row_group(group).column(at).statistics, low, high)
            ]
            wanted = None if names is None else list(dict.fromkeys([*names, column]))
            table = file.read_row_groups(groups, wanted)
        inside = pc.and_(pc.greater_equal(table[column], low), pc.less_equal(table[column], high))
        return table.filter(inside).select(names or table.column_names)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise InputError(f"{url}: not a readable parquet ({error}); run dedup again") from error


def _overlaps(statistics: Any, low: Any, high: Any) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    return statistics.min <= high and statistics.max >= low
