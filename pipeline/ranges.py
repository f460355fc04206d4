"""Sorted tables on disk of which a range is read: what the parts of a global stage hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError

#: rows of a row group: what is read at least when a range is asked for
ROW_GROUP = 8192
#: files read at a time; their waiting is what counts on an object store
READERS = 8


def write_sorted(table: pa.Table, path: Path) -> Path:
    """Writes a table in small row groups, so that `read_between` skips what does not match."""
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
    return path


def read_between(url: str, column: str, low: Any, high: Any, *, names: Sequence[str]) -> pa.Table:
    """The rows with `low <= column <= high` of the columns in `names`, in the order of the file.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with storage.open_pieces(url) as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)
            at = file.schema_arrow.get_field_index(column)
            groups = [
                group
                for group in range(file.metadata.num_row_groups)
                if _overlaps(file.metadata.row_group(group).column(at).statistics, low, high)
            ]
            table = file.read_row_groups(groups, list(dict.fromkeys([*names, column])))
        inside = pc.and_(pc.greater_equal(table[column], low), pc.less_equal(table[column], high))
        return table.filter(inside).select(names)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise InputError(f"{url}: not a readable parquet ({error}); run its stage again") from error


def _overlaps(statistics: Any, low: Any, high: Any) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    return statistics.min <= high and statistics.max >= low
