"""What sketch, resolve and mark share: entries and their buckets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: what may be compared, in the order in which a reason is given when several hold; files hold the place in
#: this order, so new ones follow behind
URL_CAPTION, IMAGE, URL, PHASH_CAPTION = "url_caption", "image", "url", "phash_caption"
KINDS = (URL_CAPTION, IMAGE, URL, PHASH_CAPTION)

#: one hash of one sample; the kind is its place in KINDS
ENTRIES = pa.schema(
    [("bucket", pa.int32()), ("kind", pa.int8()), ("hash", pa.binary(16)), ("key", pa.string())]
)
#: `key` is a duplicate of `of`
LOSERS = pa.schema([("key", pa.string()), ("kind", pa.int8()), ("of", pa.string())])


def default_kinds(*, of_candidates: bool) -> tuple[str, ...]:
    """What is compared where nobody says: all there is to see, but one URL may have several captions."""
    return (URL_CAPTION,) if of_candidates else (URL_CAPTION, IMAGE)


def pair_hash(url: str, caption: str | None) -> bytes:
    """128 bits of sha256 over URL (or another name of a picture) and caption; the length keeps one from
    running into the other."""
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
