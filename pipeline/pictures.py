"""The rows of an image shard with their pictures, and work on them in threads ahead of the one who takes the
results: decoding beside computing. For stages that look at pictures (score, caption)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.shards.format import is_image
from pipeline.shards.reader import iter_samples

S = TypeVar("S")
T = TypeVar("T")

#: why a row is not judged
NO_PICTURE, UNDECODABLE, NO_CAPTION = "missing_in_shard", "undecodable", "no_caption"

_NONE: Mapping[str, Any] = MappingProxyType({})


class Row(NamedTuple):
    """One sample: `picture` is None where none was asked for, and where the tar has none; `values` holds the
    columns that were asked for."""

    key: str
    picture: bytes | None
    caption: str
    values: Mapping[str, Any] = _NONE


def rows_of(table: pa.Table, needs: Sequence[str] = ()) -> Iterator[Row]:
    """Every row of a table with `key` and `caption`, without a picture; `needs` are columns of its values.

    Raises:
        InputError: it lacks one of them.
    """
    missing = [name for name in needs if name not in table.column_names]
    if missing:
        raise InputError(f"no column {missing[0]!r} in {', '.join(table.column_names)}; give it by --columns")
    values = _values(table.select(list(needs))) if needs else [{}] * len(table)
    keys, captions = table["key"].to_pylist(), table["caption"].to_pylist()
    for key, caption, row in zip(keys, captions, values, strict=True):
        yield Row(key, None, caption or "", row)


def _values(table: pa.Table) -> Iterator[dict[str, Any]]:
    """A few rows at a time: embeddings are large as Python's numbers."""
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def rows_with_pictures(tar: str, table: pa.Table, needs: Sequence[str] = ()) -> Iterator[Row]:
    """Every row with its picture: in the order of the tar, then those that the tar lacks."""
    waiting = {row.key: row for row in rows_of(table, needs)}
    for sample in iter_samples(tar):
        if sample.key in waiting:
            pictures = [data for suffix, data in sorted(sample.members.items()) if is_image(suffix)]
            row = waiting.pop(sample.key)
            yield row._replace(picture=pictures[0]) if pictures else row
    yield from waiting.values()


def prepared(
    rows: Iterable[S], prepare: Callable[[S], T], *, threads: int, ahead: int
) -> Iterator[tuple[S, T]]:
    """Each row (or batch of rows) with what `prepare` makes of it, in the order of `rows`.

    Args:
        prepare: called in `threads` threads at once.
        ahead: rows that may be prepared or waiting at a time; each holds its picture in memory.
    """
    under_way: deque[tuple[S, Future[T]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in rows:
                under_way.append((row, pool.submit(prepare, row)))
                if len(under_way) > ahead:
                    done, future = under_way.popleft()
                    yield done, future.result()
            while under_way:
                done, future = under_way.popleft()
                yield done, future.result()
        finally:
            for _, future in under_way:
                future.cancel()
