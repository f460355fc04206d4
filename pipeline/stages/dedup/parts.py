"""What the stages of all methods share: tables of which a part can be read, and folders read as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError
from pipeline.inputs import Shard
from pipeline.stage import Input

#: rows of a row group: what is read at least when a part of a table is asked for
ROW_GROUP = 8192
#: files read at a time; their waiting is what counts on an object store
READERS = 8


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
