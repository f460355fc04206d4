"""Embeddings as vectors of small integers, whose scalar products are exact.

A unit vector x becomes q = round(s x) with s a little below 4096, in 16 bits, which is what a float16 takes.
Then |q| |r| <= 2^24, so every partial sum of a scalar product is a whole number that float32 holds: a matrix
product gives the same bits in any order of summation, with any block size, thread count, library or machine.
Hence a row's cluster and its duplicates depend on the vectors alone, and shards that come later cannot change
a bit of what was said of earlier ones. The price is a rounding that moves cosines by about 1e-4.

Shapes: N, M rows; D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError

#: beyond it, rounding would eat up what is compared
MAX_DIMENSIONS = 16384
#: rows of a block, and of what it is multiplied with at a time: 16 MB of products
ROWS, OTHERS = 1024, 4096

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int16]


def scale(dimensions: int) -> int:
    """s: rounding lengthens a vector by at most half the root of its dimensions."""
    return int(4095 - math.sqrt(dimensions) / 2)


def dimensions_of(kind: pa.DataType) -> int | None:
    """Dimensions of a column of embeddings; None for another type of column."""
    fits = pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    return int(kind.list_size) if fits and 1 <= kind.list_size <= MAX_DIMENSIONS else None


def encode(column: pa.ChunkedArray) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """Fixed-size lists of floats, of any length but 0 -> codes of the rows that have one (M, D), and which
    these are (N): not those that are null, zero, or hold a value that is none (NaN, infinity)."""
    width = column.type.list_size
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    there = pc.is_valid(array).to_numpy(zero_copy_only=False)
    flat = array.filter(pc.is_valid(array)).flatten().to_numpy(zero_copy_only=False)
    codes, sound = quantise(flat.reshape(-1, width))
    there[there] = sound
    return codes, there


def quantise(values: npt.NDArray[np.floating]) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """Vectors of any length (N, D) -> the codes of the sound ones (M, D), and which these are (N)."""
    values = values.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", values, values))
    sound = np.isfinite(lengths) & (lengths > 0)
    scaled = values[sound] * (scale(values.shape[1]) / lengths[sound, None])
    return np.rint(scaled).astype(np.int16), sound


def to_arrow(codes: Codes) -> pa.FixedSizeBinaryArray:
    """Codes as 2 D bytes a row (little endian), which parquet reads much faster than lists."""
    kind = pa.binary(2 * codes.shape[1])
    data = pa.py_buffer(np.ascontiguousarray(codes, "<i2"))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(codes), [None, data])


def from_arrow(column: pa.ChunkedArray) -> Codes:
    """The codes of a column that `to_arrow` made: a view where the column has one chunk."""
    width = column.type.byte_width // 2
    parts = [
        np.frombuffer(c.buffers()[1], "<i2", len(c) * width, c.offset * 2 * width).reshape(-1, width)
        for c in column.chunks
        if len(c)
    ]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty((0, width), np.int16), *parts])


def inverse_lengths(codes: Codes) -> Floats:
    """1 / |q| of each row."""
    squares = np.einsum("nd,nd->n", codes, codes, dtype=np.float64)
    return (1 / np.sqrt(squares)).astype(np.float32)


def nearest(codes: Codes, others: Codes, *, earlier: bool = False) -> tuple[npt.NDArray[np.int64], Floats]:
    """For each row the most similar of `others`, the first of several, and the cosine (float32, at most 1).

    earlier: `others` are the same rows, and only those before a row count; the first has -1 and NaN.
    """
    inverse_others, inverse = inverse_lengths(others), inverse_lengths(codes)
    best = np.full(len(codes), -1, np.int64)
    product = np.full(len(codes), -np.inf, np.float32)
    for start in range(0, len(codes), ROWS):
        stop = min(start + ROWS, len(codes))
        block = codes[start:stop].astype(np.float32)
        for at, products in _products(block, others[: stop if earlier else None], inverse_others):
            if earlier and at + products.shape[1] > start:
                rows, columns = np.arange(start, stop), np.arange(at, at + products.shape[1])
                products[columns[None] >= rows[:, None]] = -np.inf
            first = products.argmax(1)
            found = products[np.arange(stop - start), first]
            better = found > product[start:stop]
            best[start:stop][better] = at + first[better]
            product[start:stop][better] = found[better]
    cosine = np.minimum(product * inverse, np.float32(1))
    return best, np.where(best < 0, np.float32(np.nan), cosine).astype(np.float32)


def _products(block: Floats, others: Codes, inverse: Floats) -> Iterator[tuple[int, Floats]]:
    """(place of the first of some others, scalar products with these divided by their lengths)."""
    for at in range(0, len(others), OTHERS):
        piece = others[at : at + OTHERS].astype(np.float32)
        products = block @ piece.T
        products *= inverse[at : at + len(piece)]
        yield at, products


def check_width(codes: Codes, expected: int, name: str) -> None:
    """Raises InputError unless codes have so many dimensions."""
    if codes.shape[1] != expected:
        raise InputError(
            f"{name}: its embeddings have {codes.shape[1]} dimensions, those of others {expected}; one "
            "column folder must come from one model: run `pairmill score --kind embedding` again"
        )
