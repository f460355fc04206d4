"""The hash columns that near and contamination read, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns
from pipeline.errors import ConfigError, InputError
from pipeline.phash import BITS, CROPS, WORDS, from_bytes

#: the columns of `score --kind hash`
SHORT, LONG, INNER, SHA256 = "phash", "phash_long", "phash_inner", "picture_sha256"
#: hashes of one picture: the whole, then its inner crops
HASHES = 1 + len(CROPS)
_LONG_DIGITS = BITS // 4
_INNER_DIGITS = _LONG_DIGITS * len(CROPS)


def hash_folder(urls: Sequence[str] | str, method: str) -> columns.ColumnFolder:
    """The one of the column folders that has hashes.

    Raises:
        ConfigError: none has, or several have.
    """
    how = f"method {method} compares hashes: give --columns the output of `score --kind hash`"
    folders = columns.open_folders(urls)
    found = []
    for folder in folders:
        names = columns.read_schema(next(iter(folder.shards.values())).url).names
        if LONG in names and INNER in names:
            found.append(folder)
    if len(found) != 1:
        told = (
            f"{len(found)} of {', '.join(repr(f.url) for f in folders)} have" if folders else "none is given"
        )
        raise ConfigError(f"{how}; {told} ({LONG}, {INNER})")
    return found[0]


def read_outlines(table: pa.Table, url: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [m, HASHES, WORDS], bool [n]) of n rows: the hashes of those that have them, and which have.

    Raises:
        InputError: a value is none that the kind writes.
    """
    has = pc.and_(pc.is_valid(table[LONG]), pc.is_valid(table[INNER])).to_numpy(zero_copy_only=False)
    rows = table.select([LONG, INNER]).filter(pa.array(has))
    parts = []
    for name, digits in ((LONG, _LONG_DIGITS), (INNER, _INNER_DIGITS)):
        values = rows[name].to_pylist()
        wrong = next((v for v in values if not isinstance(v, str) or len(v) != digits), None)
        try:
            data = bytes.fromhex("".join(values)) if wrong is None else b""
        except ValueError:
            wrong, data = name, b""
        if wrong is not None:
            raise InputError(f"{url}: {name} must have {digits} hex digits; run `score --kind hash` again")
        parts.append(np.frombuffer(data, np.uint8).reshape(len(values), digits // 2))
    return from_bytes(np.concatenate(parts, axis=1)).reshape(-1, HASHES, WORDS), has
