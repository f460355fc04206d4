"""The files of a unit without some of its rows; what stays in them stays as it is, byte for byte in a tar."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError
from pipeline.shards.reader import SampleIndex, index_tar
from pipeline.stage import Counts
from pipeline.tombstones import TAKEN_DOWN


def read_table(url: str, sha256: str) -> tuple[pa.Table, int | None]:
    """A parquet with this checksum, and the rows of its row groups where it has several.

    Raises:
        InputError: it is missing, damaged or cannot be read.
    """
    try:
        data = storage.read_bytes(url)
        _check(url, hashlib.sha256(data).hexdigest(), sha256)
        file = pq.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        return file.read(), max(groups) if len(groups) > 1 else None
    except FileNotFoundError as error:
        raise InputError(f"{url}: the file is missing; rerun its stage, then the takedown") from error
    except pa.ArrowException as error:
        raise InputError(
            f"{url}: not a readable parquet ({error}); delete it, rerun its stage, then the takedown"
        ) from error


def read_part(url: str, sha256: str) -> bytes:
    """The bytes of a part with this checksum.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: the file is missing; rerun its stage, then the takedown") from error
    _check(url, hashlib.sha256(data).hexdigest(), sha256)
    return data


def _check(url: str, found: str, expected: str) -> None:
    """A damaged file must not come out of a takedown with a fresh checksum."""
    if found != expected:
        raise InputError(
            f"{url}: its bytes are not those that its manifest lists; run `pairmill verify --fix`, which "
            "leaves out what was taken down, then the takedown again"
        )


def encode_table(table: pa.Table, row_group: int | None) -> bytes:
    """The bytes of a parquet as the commit writes it, cut into row groups as it was before: dedup reads
    parts of its tables by them."""
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, compression="zstd", row_group_size=row_group)
    return sink.getvalue()


def rows_with(table: pa.Table, keys: Collection[str]) -> pa.BooleanArray:
    """Which rows have one of the keys."""
    column = table["key"].cast(pa.string()).combine_chunks()
    return pc.is_in(column, value_set=pa.array(sorted(keys), pa.string()))


def copy_tar(url: str, sha256: str, target: Path, *, without: Collection[str]) -> int:
    """Copies a tar with this checksum but for the samples of some keys; returns how many samples it has now.

    The members that stay are copied with their headers, and the end is padded as tarfile does, so the bytes
    are those that a writer would give who never saw the others.

    Raises:
        InputError: the tar is missing or damaged.
    """
    try:
        with storage.local_copy(url) as path:
            _check(url, storage.sha256_file(path), sha256)
            samples = index_tar(str(path))
            with path.open("rb") as source, target.open("wb") as copy:
                for start, end in _ranges(samples, without):
                    _copy_range(source, copy, start, end)
                copy.write(bytes(2 * tarfile.BLOCKSIZE))
                copy.write(bytes(-copy.tell() % tarfile.RECORDSIZE))
            return sum(sample.key not in without for sample in samples)
    except FileNotFoundError as error:
        raise InputError(f"{url}: the file is missing; rerun its stage, then the takedown") from error


def _ranges(samples: Sequence[SampleIndex], without: Collection[str]) -> Iterator[tuple[int, int]]:
    """Where the samples that stay lie in their tar, headers included, as few ranges of bytes: (start, end).
    The headers of a member begin where the block of the one before it ends."""
    begin = at = 0
    for sample in samples:
        last = max(offset + size for offset, size in sample.members.values())
        end = -(-last // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if sample.key in without:
            yield begin, at
            begin = end
        at = end
    yield begin, at


def _copy_range(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    left = end - start
    while left:
        block = source.read(min(left, 1 << 20))
        if not block:
            raise InputError(f"{left} bytes of a member are missing; the tar was cut off")
        target.write(block)
        left -= len(block)


def image_stats(stats: Mapping[str, Any], table: pa.Table) -> dict[str, Any]:
    """The statistics of an image shard, counted anew from its parquet; times stay."""
    status = Counter(table["status"].to_pylist())
    told = {"failed_to_download", "failed_to_resize", *(status.keys() & stats.keys())}
    # a fused crawl counts a status of its own, which may have lost its last row
    told |= {"below_floor"} & stats.keys()
    return {
        **stats,
        "count": len(table),
        **{name: status[name] for name in sorted(told)},
        "successes": status["success"],
        "status_dict": dict(Counter(m or "success" for m in table["error_message"].to_pylist())),
    }


def packed_stats(stats: Mapping[str, Any], counts: Counts) -> dict[str, Any]:
    """The statistics of a packed shard."""
    told = counts.to_json()
    return {**stats, "successes": told["out"], "dropped": told["dropped"]}


def image_counts(table: pa.Table) -> Counts:
    """The counts of an image shard: its parquet has every row with its reason."""
    dropped = Counter(reason for reason in table["reason"].to_pylist() if reason is not None)
    return Counts(len(table), len(table) - dropped.total(), dropped)


def kept_counts(counts: Counts, rows: int) -> Counts:
    """The counts of candidates or packed samples when so many of those kept are taken down."""
    dropped = Counter({**counts.dropped, TAKEN_DOWN: counts.dropped[TAKEN_DOWN] + rows})
    return Counts(counts.taken, counts.kept - rows, dropped)


def fewer_counts(counts: Counts, rows: int) -> Counts:
    """The counts of a column that lost rows, as if it had never seen them. Whether they had a value is not
    known of every kind, so they count as kept as long as there are such."""
    fewer = Counts(counts.taken - rows, counts.kept, counts.dropped)
    for name in (None, *[reason for reason, _ in counts.dropped.most_common()]):
        taken = min(rows, fewer.kept if name is None else fewer.dropped[name])
        if name is None:
            fewer.kept -= taken
        else:
            fewer.dropped[name] -= taken
        rows -= taken
    return fewer
