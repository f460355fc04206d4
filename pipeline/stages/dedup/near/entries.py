"""What sketch, resolve and mark of method near share: entries, a part of a hash each, and their buckets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.phash import WORDS, band_values, from_bytes
from pipeline.stages.dedup.hashes import HASHES

#: one hash of one picture under the value of one band; `whole`: of the whole picture, not of an inner crop
ENTRIES = pa.schema(
    [
        ("bucket", pa.int32()),
        ("band", pa.int16()),
        ("value", pa.uint64()),
        ("whole", pa.bool_()),
        ("hash", pa.binary(8 * WORDS)),
        ("key", pa.string()),
    ]
)
#: `key` looks like `of`, whose key is smaller
LOSERS = pa.schema([("key", pa.string()), ("of", pa.string()), ("distance", pa.int32())])
#: a row of a shard: `like` is the smallest key of the shard with exactly the same hashes, null for that one
ROWS = pa.schema([("key", pa.string()), ("like", pa.string()), ("hashed", pa.bool_())])
#: spreads values that differ in few bits over the buckets
_MIX = np.uint64(0x9E3779B97F4A7C15)


def make_entries(
    keys: pa.StringArray, hashes: np.ndarray, *, bands: int, band_bits: int, buckets: int
) -> pa.Table:
    """Entries sorted by (bucket, band, value), one for each picture, hash and band; an inner crop whose hash
    the picture has already says nothing new.

    Args:
        hashes: uint64 [n, HASHES, WORDS].
    """
    first = np.ones(hashes.shape[:2], bool)
    for later in range(1, HASHES):
        same = (hashes[:, :later] == hashes[:, later : later + 1]).all(axis=2).any(axis=1)
        first[:, later] = ~same
    picture, which = np.nonzero(first)
    flat = hashes[picture, which]
    value = band_values(flat, bands, band_bits)
    band = np.broadcast_to(np.arange(bands, dtype=np.int16), value.shape)
    mixed = (value | band.astype(np.uint64)) * _MIX >> np.uint64(32)
    bucket = (mixed % np.uint64(buckets)).astype(np.int32)
    order = np.lexsort((value.ravel(), band.ravel(), bucket.ravel()))
    entry = order // bands
    data = flat[entry].astype(">u8").tobytes()
    return pa.table(
        [
            pa.array(bucket.ravel()[order]),
            pa.array(band.ravel()[order]),
            pa.array(value.ravel()[order]),
            pa.array(which[entry] == 0),
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(8 * WORDS), len(order), [None, pa.py_buffer(data)]
            ),
            keys.take(pa.array(picture[entry])),
        ],
        schema=ENTRIES,
    )


def hash_words(column: pa.ChunkedArray) -> np.ndarray:
    """uint64 [n, WORDS] of a column of hashes without nulls."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if not len(array):
        return np.empty((0, WORDS), np.uint64)
    width = 8 * WORDS
    data = np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    return from_bytes(data.reshape(len(array), width))
