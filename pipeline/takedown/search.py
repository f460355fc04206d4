"""Which rows of a folder were asked to go: read from the parquets alone, and of these the columns needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import candidates, storage
from pipeline.errors import InputError
from pipeline.tombstones import Tombstones, taken_rows

CANDIDATES, IMAGES, COLUMNS, SHARDS = "candidates", "images", "columns", "shards"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Rows of one unit: keys (and URLs) that are to go now, and keys that went before and left a trace;
    columns that were asked for and that it has not."""

    keys: tuple[str, ...]
    urls: tuple[str | None, ...]
    before: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keys or self.before)


NOTHING = Found(keys=(), urls=())


def search_parquet(url: str, kind: str, stones: Tombstones) -> Found:
    """The rows of one unit of candidates, images or packed shards that tombstones name.

    Raises:
        InputError: the parquet is missing or cannot be read.
    """
    try:
        with storage.open_read(url) as stream:
            file = pq.ParquetFile(stream)
            return _search(file, url, kind, stones)
    except FileNotFoundError as error:
        raise InputError(f"{url}: the file is missing; rerun its stage, then the takedown") from error
    except pa.ArrowException as error:
        raise InputError(
            f"{url}: not a readable parquet ({error}); delete it, rerun its stage, then the takedown"
        ) from error


def _search(file: pq.ParquetFile, url: str, kind: str, stones: Tombstones) -> Found:
    names = file.schema_arrow.names
    asked = [n for n in stones.columns if n in names]
    lacking = tuple(n for n in stones.columns if n not in names)
    table = file.read(columns=[*asked, *_traces(kind, names, asked)])
    before = _gone_before(table, kind)
    now = pc.and_(stones.mask(table), pc.invert(before))
    if not pc.any(pc.or_(now, before)).as_py():
        return Found(keys=(), urls=(), lacking=lacking)
    if kind == CANDIDATES:
        keys: pa.Array = candidates.keys(candidates.part_number(url), 0, len(table))
    else:
        keys = file.read(columns=["key"])["key"].cast(pa.string()).combine_chunks()
    urls = (table if "url" in table.column_names else file.read(columns=["url"]))["url"]
    return Found(
        keys=tuple(keys.filter(now).to_pylist()),
        urls=tuple(urls.filter(now).to_pylist()),
        before=tuple(keys.filter(before).to_pylist()),
        lacking=lacking,
    )


def _traces(kind: str, names: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The columns that tell which rows were taken down before."""
    wanted = {IMAGES: ["reason"], CANDIDATES: ["url"], SHARDS: ["key"]}[kind]
    return [n for n in wanted if n in names and n not in asked]


def _gone_before(table: pa.Table, kind: str) -> pa.BooleanArray:
    if kind == IMAGES and "reason" in table.column_names:
        return taken_rows(table)
    if kind == CANDIDATES:
        # discover writes no candidate without a URL
        return pc.is_null(table["url"]).combine_chunks()
    return pa.repeat(pa.scalar(False), len(table))
