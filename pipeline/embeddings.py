"""Embeddings of a column folder (`pairmill score --kind embedding`) as matrices, a shard at a time.

    for keys, vectors_NE in read("columns/embedding", "image_embedding"):
        ...
    export("columns/embedding", "image_embedding", "vectors.npy", keys="keys.txt")

N rows that have an embedding, E dimensions. Rows without one (a picture that cannot be read, say) are left
out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, scratch, storage
from pipeline.errors import InputError


class Embeddings(NamedTuple):
    """Of one shard: the keys of the rows that have an embedding, in their order, and float16 [N, E]."""

    keys: list[str]
    vectors_NE: np.ndarray


def read(folder: str, column: str) -> Iterator[Embeddings]:
    """The embeddings of each shard, in the order of the shards.

    Raises:
        ConfigError: the folder does not exist, or no stage wrote it.
        InputError: as `read_shard`, or two shards are of different models: their E differs.
    """
    known = 0
    for _, shard in sorted(columns.open_folder(folder).shards.items()):
        found = read_shard(shard.url, column)
        size = found.vectors_NE.shape[1]
        if known and size and size != known:
            raise InputError(
                f"{shard.url}: embeddings of {size} dimensions in column {column!r}, those before it have "
                f"{known}; make them all with one model"
            )
        known = known or size
        yield found


def read_shard(url: str, column: str) -> Embeddings:
    """The embeddings of one parquet of a column folder. Lists whose type fixes no length must
    all have one; E is 0 where such a shard has none at all.

    Raises:
        InputError: it cannot be read, has no such column, or this does not hold vectors of one length.
    """
    known = columns.read_schema(url).names
    if column not in known:
        raise InputError(f"{url}: no column {column!r}; it has {', '.join(known)}")
    table = columns.read_column(url, {column.lower()})
    lists = table[column].combine_chunks()
    size = _size(lists, f"{url}, column {column!r}")
    values = lists.flatten()  # of lists that are there: null ones have no part in it
    if values.null_count:
        raise InputError(f"{url}: column {column!r} has an embedding with nulls in it; make it again")
    keys = table["key"].filter(pc.is_valid(lists)).to_pylist()
    vectors = values.to_numpy(zero_copy_only=False).astype(np.float16, copy=False)
    return Embeddings(keys, vectors.reshape(len(keys), size))


def _size(lists: pa.Array, name: str) -> int:
    kind = lists.type
    fixed = pa.types.is_fixed_size_list(kind)
    listed = fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not listed or not pa.types.is_floating(kind.value_type):
        raise InputError(f"{name}: {kind} is no embedding; those are lists of float16 or float32")
    if fixed:
        return kind.list_size
    sizes = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if len(sizes) > 1:
        raise InputError(
            f"{name}: embeddings of {min(sizes)} to {max(sizes)} dimensions; all need one length"
        )
    return sizes[0] if sizes else 0


def export(folder: str, column: str, output: str, *, keys: str | None = None) -> tuple[int, int]:
    """Writes all embeddings of a folder as one `.npy` (float16, [N, E]) without holding more than a shard.

    Args:
        output: the `.npy`, any location.
        keys: a text file to write beside it: the key of each row, one a line.

    Returns:
        (N, E).

    Raises:
        ConfigError, InputError: as `read`, or there is no embedding at all.
    """
    with scratch.folder() as place:
        matrix, lines = place / "vectors.npy", place / "keys.txt"
        shape = _write(folder, column, matrix, lines)
        if not shape[0]:
            raise InputError(f"column folder {folder!r} has no embedding in column {column!r}")
        storage.put_file(matrix, output)
        if keys is not None:
            storage.put_file(lines, keys)
    return shape


def _write(folder: str, column: str, matrix: Path, lines: Path) -> tuple[int, int]:
    rows, size = 0, 0
    with matrix.open("wb") as stream, lines.open("w", encoding="utf-8") as names:
        header = _header((0, 0))
        stream.write(header)
        for found in read(folder, column):
            rows, size = rows + len(found.keys), size or found.vectors_NE.shape[1]
            stream.write(np.ascontiguousarray(found.vectors_NE).data)
            names.writelines(f"{key}\n" for key in found.keys)
        # numpy leaves room for the number of rows to grow, so the header keeps its length
        whole = _header((rows, size))
        assert len(whole) == len(header)
        stream.seek(0)
        stream.write(whole)
    return rows, size


def _header(shape: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(buffer, {**facts, "shape": shape})
    return buffer.getvalue()
