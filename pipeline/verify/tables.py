"""What of a part can be compared: the rows and keys of a parquet."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

SUCCESS = "success"


@dataclass(frozen=True)
class Table:
    """rows of a parquet; keys and success of each where it has such columns."""

    rows: int
    keys: list[str | None] | None
    successes: list[str] | None


def read_table(path: str) -> Table:
    """Rows and keys of a local parquet, without its other columns."""
    with pq.ParquetFile(path) as file:
        names = [n for n in ("key", "status") if n in file.schema_arrow.names]
        table = file.read(columns=names)
        rows = file.metadata.num_rows
    keys = table["key"].to_pylist() if "key" in names else None
    successes = None
    if len(names) == 2:
        successes = table.filter(pc.equal(table["status"], SUCCESS))["key"].to_pylist()
    return Table(rows, keys, successes)


def read_through(path: str) -> None:
    """Decodes every page of a parquet, in pieces."""
    with pq.ParquetFile(path) as file:
        for _ in file.iter_batches(batch_size=4096):
            pass


def short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
