"""One shard as a contact sheet: which samples it shows, and what is told of each.

A shard is a tar with a parquet beside it: an image shard of ours (columns are joined from column folders), a
packed one (it has them itself), or img2dataset's. A lone tar tells what its txt and json members say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reporting.text import MAX_CAPTION, clean, measure
from pipeline import columns, inputs, storage
from pipeline.errors import ConfigError, InputError
from pipeline.predicate import Predicate
from pipeline.shards.format import is_image
from pipeline.shards.reader import SampleIndex, index_tar, iter_samples, read_member
from pipeline.shards.view import is_view, open_view

#: values of a picture that are told without being asked for
DEFAULT_SHOWN = 6
#: numbers that say nothing of a picture's worth
_DULL = {"width", "height", "original_width", "original_height", "http_status", "bytes", "position"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a sheet is to show.

    Attributes:
        shard: a tar, or a folder of shards.
        number: of the shard, where a folder is given.
        columns: column folders to join.
        show: columns that are told of each picture; empty: a few numeric ones.
        where: predicate over the columns.
        keys: the samples themselves, in this order; empty: a seeded choice of `sample`.
        by: column to sort by, highest first; empty: the order of the tar.
    """

    shard: str
    number: int | None = None
    columns: tuple[str, ...] = ()
    show: tuple[str, ...] = ()
    where: str | None = None
    keys: tuple[str, ...] = ()
    sample: int = 60
    seed: int = 0
    by: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One sample: its picture as it is stored (None: it cannot be read), and what is told of it."""

    key: str
    data: bytes | None
    caption: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The samples that are shown, of `matching` that fit, of `whole` in the shard."""

    tar: str
    whole: int
    matching: int
    pictures: tuple[Picture, ...]


def read_sheet(asked: Asked) -> Sheet:
    """Reads what a sheet shows.

    Raises:
        ConfigError: no such shard, key or column, or an impossible predicate.
        InputError: the shard or a sidecar is damaged.
    """
    tar, number = find_shard(asked.shard, asked.number)
    samples = {s.key: s for s in _index(tar) if any(is_image(name) for name in s.members)}
    if not samples:
        raise InputError(f"{tar}: no picture in it; give a tar with jpg, png or webp members")
    table = read_table(tar, number, asked.columns)
    table = table.filter(pc.is_in(table["key"], pa.array(list(samples), pa.string())))
    if len(table) < len(samples) and not len(table):
        raise InputError(f"{tar}: the parquet beside it has none of its keys; it belongs to another shard")
    for name in (*asked.show, *((asked.by,) if asked.by else ())):
        _check_column(table, name)
    fitting = _fitting(table, asked)
    chosen = _choice(fitting, asked)
    shown = asked.show or default_columns(chosen.schema)
    rows = chosen.to_pylist()
    with ThreadPoolExecutor(8) as pool:
        data = list(pool.map(lambda row: _read(tar, samples[row["key"]]), rows))
    return Sheet(
        tar=tar,
        whole=len(samples),
        matching=len(fitting),
        pictures=tuple(
            Picture(
                key=row["key"],
                data=one,
                caption=clean(row.get("caption"), MAX_CAPTION),
                values=tuple((clean(name, 40), told(row.get(name))) for name in shown),
            )
            for row, one in zip(rows, data, strict=True)
        ),
    )


def find_shard(place: str, number: int | None) -> tuple[str, int | None]:
    """(tar, its number) of a tar, or of a shard of a folder."""
    if place.endswith(".tar"):
        if number is not None:
            raise ConfigError(f"{place!r} is one shard already; give no number with it")
        if not storage.exists(place):
            raise ConfigError(f"shard {place!r} does not exist; check the path")
        stem = storage.basename(place).removesuffix(".tar")
        return place, int(stem) if stem.isdigit() else None
    if not storage.isdir(place):
        raise ConfigError(f"{place!r} is neither a .tar nor a folder; give one, such as images/00000000.tar")
    if is_view(place):
        images = open_view(place).images
        raise ConfigError(
            f"{place!r} is a view: its pictures lie in the image folder {images!r}; inspect that"
        )
    found = {s.number: s for s in inputs.shards(place, ".tar")}
    if number is None and len(found) == 1:
        number = next(iter(found))
    if number is None:
        raise ConfigError(
            f"{place!r} has {len(found):,} shards; say which: pairmill inspect {place} {min(found)}"
        )
    if number not in found:
        raise ConfigError(
            f"{place!r} has no finished shard {number}; it has {len(found):,}, {min(found)} to {max(found)}"
        )
    return found[number].input.url, number


def _index(tar: str) -> list[SampleIndex]:
    try:
        return index_tar(tar)
    except FileNotFoundError as error:
        raise InputError(f"{tar}: the file is missing; run the stage that writes it again") from error


def read_table(tar: str, number: int | None, folders: Sequence[str]) -> pa.Table:
    """The rows of a shard with all that stands beside it."""
    parquet = tar.removesuffix(".tar") + ".parquet"
    if not storage.exists(parquet):
        if folders:
            raise ConfigError(f"{tar}: no parquet beside it, to which columns could be joined")
        return rows_of_tar(tar)
    table = columns.read_parquet(parquet)
    if "key" not in table.column_names:
        raise InputError(f"{parquet}: no column 'key'")
    if folders and number is None:
        raise ConfigError(f"{tar}: a shard without a number has no columns; name it such as 00000000.tar")
    sidecars = [columns.open_folder(folder).shard(number).url for folder in folders if number is not None]
    try:
        return columns.join(table, ((url, columns.read_column(url)) for url in sidecars))
    except InputError as error:
        raise InputError(f"{error}. Packed shards have their columns already: leave --columns out") from error


def rows_of_tar(tar: str) -> pa.Table:
    """What the json and txt members of a tar say, a row a sample."""
    rows: list[dict[str, Any]] = []
    for sample in iter_samples(tar):
        row: dict[str, Any] = {}
        try:
            value = json.loads(sample.members.get("json", b"{}"))
            row = {str(k): v for k, v in value.items() if isinstance(v, (str, int, float, bool))}
        except (ValueError, AttributeError):
            pass  # a json that is none tells nothing
        if "txt" in sample.members:
            row["caption"] = sample.members["txt"].decode("utf-8", "replace")
        rows.append({**row, "key": sample.key})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowException:
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _check_column(table: pa.Table, name: str) -> None:
    if name not in table.column_names:
        known = ", ".join(sorted(table.column_names))
        raise ConfigError(f"column {name!r} is not there; known columns: {known}")


def _fitting(table: pa.Table, asked: Asked) -> pa.Table:
    if asked.keys:
        found = {key: i for i, key in enumerate(table["key"].to_pylist())}
        missing = [key for key in asked.keys if key not in found]
        if missing:
            example = next(iter(found), "none")
            raise ConfigError(f"key {missing[0]!r} has no picture in the shard; a key here is {example!r}")
        table = table.take(pa.array([found[key] for key in asked.keys], pa.int64()))
    if asked.where is not None:
        table = table.filter(pc.fill_null(Predicate(asked.where).evaluate(table), False))
    return table


def _choice(table: pa.Table, asked: Asked) -> pa.Table:
    if not asked.keys and len(table) > asked.sample:
        drawn = np.random.default_rng(asked.seed).permutation(len(table))[: asked.sample]
        table = table.take(pa.array(np.sort(drawn)))
    if asked.by:
        try:
            order = pc.array_sort_indices(table[asked.by].combine_chunks(), order="descending")
        except pa.ArrowNotImplementedError as error:
            kind = table[asked.by].type
            raise ConfigError(f"by {asked.by!r}: a column of {kind} has no order; take another") from error
        table = table.take(order)
    return table


def default_columns(schema: pa.Schema) -> tuple[str, ...]:
    """A few numbers that judge a picture, and its language."""
    judged = [f.name for f in schema if pa.types.is_floating(f.type) and f.name not in _DULL]
    judged += [f.name for f in schema if pa.types.is_integer(f.type) and f.name not in _DULL]
    judged += [name for name in ("language", "duplicate_of", "near_duplicate_of") if name in schema.names]
    return tuple(judged[:DEFAULT_SHOWN])


def told(value: Any) -> str:
    """A value in a few characters; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return measure(value)
    if isinstance(value, list):
        return clean(" | ".join(told(one) for one in value), 300)
    return clean(value, 120)


def _read(tar: str, sample: SampleIndex) -> bytes | None:
    place = next(sample.members[name] for name in sorted(sample.members) if is_image(name))
    try:
        return read_member(tar, *place)
    except OSError:
        return None
