"""Columns: the sidecars of an image folder, joined on the sample's key into one table.

Column folders over candidates are read by the same functions; `pipeline.candidates` has what is different.

`images/N.parquet` tells what became of every URL; each column folder holds `N.parquet` with `key` and the
columns of one kind. What judges samples (pack, dedup, the report) reads them here as one Arrow table: every
row of the images' parquet in its order, failed downloads kept, columns without a judgement null.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import inputs, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import sample_uid, shard_name
from pipeline.stage import Input

#: The types that the well-known columns have, whatever a foreign writer chose for them (a column
#: that is null in a whole shard may come with the type null, an integer column with nulls as float).
KNOWN_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(
        ("key", "url", "caption", "page_url", "archive", "status", "error_message", "exif", "reason"),
        pa.string(),
    ),
    **dict.fromkeys(("sha256", "uid", "duplicate_of", "duplicate_reason", "contaminated_by"), pa.string()),
    **dict.fromkeys(("width", "height", "original_width", "original_height", "http_status"), pa.int32()),
    **dict.fromkeys(("bytes", "record_offset", "position"), pa.int64()),
    "clip_score": pa.float32(),
    "language": pa.string(),
    "language_probability": pa.float32(),
    "unsafe": pa.float32(),
    "metaclip_matches": pa.int32(),
    "metaclip_keep": pa.bool_(),
}

SUCCESS = "success"


@dataclass(frozen=True)
class ColumnFolder:
    """A finished column folder: where it is, which stage wrote it, and its shards by number."""

    url: str
    stage: str
    shards: Mapping[int, Input]

    def shard(self, number: int) -> Input:
        """The sidecar of an image shard.

        Raises:
            ConfigError: it was not made yet.
        """
        if number not in self.shards:
            raise ConfigError(
                f"column folder {self.url!r} has no shard {shard_name(number)}, which its input has; "
                f"run stage {self.stage!r} again over it"
            )
        return self.shards[number]


def open_folder(url: str) -> ColumnFolder:
    """Lists a column folder.

    Raises:
        ConfigError: it does not exist, or no stage wrote it.
    """
    found = inputs.shards(url, ".parquet")
    if not manifest.is_output(url):
        raise ConfigError(f"column folder {url!r} has no manifests; give the --output of score or dedup")
    done = next(iter(manifest.list_done(url).values()))
    return ColumnFolder(url, manifest.read(done)["stage"], {s.number: s.input for s in found})


def open_folders(urls: Sequence[str] | str) -> list[ColumnFolder]:
    """Lists column folders, given as an option has them: one location, or several.

    Raises:
        ConfigError: as `open_folder`.
    """
    return [open_folder(url) for url in listed(urls)]


def listed(urls: Sequence[str] | str) -> list[str]:
    """What an option names that takes one location or several; an empty one names nothing."""
    return [url for url in ([urls] if isinstance(urls, str) else urls) if url]


def read_images(url: str) -> pa.Table:
    """The parquet of an image shard with normalised types, and with `reason`, `http_status` and `uid` where a
    foreign writer (img2dataset) has none. `url` is the location of the parquet.

    Raises:
        InputError: it cannot be read, lacks a column that img2dataset writes, or keys are not unique.
    """
    table = read_parquet(url)
    for name in ("key", "url", "caption", "status"):
        if name not in table.column_names:
            raise InputError(
                f"{url}: no column {name!r}; images need img2dataset's columns, found {_names(table)}"
            )
    check_keys(table, url)
    return complete_images(table)


def complete_images(table: pa.Table) -> pa.Table:
    """Adds what our crawl writes and img2dataset does not: `reason` (its status), `http_status`, `uid`."""
    if "reason" not in table.column_names:
        failed = pc.not_equal(pc.fill_null(table["status"], "unknown"), SUCCESS)
        status = pc.fill_null(table["status"], "unknown")
        table = table.append_column("reason", pc.if_else(failed, status, pa.scalar(None, pa.string())))
    if "http_status" not in table.column_names:
        table = table.append_column("http_status", pa.nulls(len(table), pa.int32()))
    return table if "uid" in table.column_names else add_uid(table)


def add_uid(table: pa.Table) -> pa.Table:
    """Rows of `caption` and `url` with the identity of each pair."""
    pairs = zip(table["caption"].to_pylist(), table["url"].to_pylist(), strict=True)
    uids = pa.array([sample_uid(c or "", u or "") for c, u in pairs], pa.string())
    return table.append_column("uid", uids)


def read_column(url: str, names: Collection[str] | None = None) -> pa.Table:
    """One sidecar with normalised types; only its key and the columns in `names` (lower case) where
    given.

    Raises:
        InputError: it cannot be read, has no `key`, or keys are not unique.
    """
    table = read_parquet(url, None if names is None else {"key", *names})
    if "key" not in table.column_names:
        raise InputError(
            f"{url}: no column 'key'; a column folder needs one row a sample, found {_names(table)}"
        )
    check_keys(table, url)
    return table


def join(images: pa.Table, sidecars: Iterable[tuple[str, pa.Table]]) -> pa.Table:
    """Left join on `key`: the rows and the order of `images`, the columns of all. `sidecars` are (name for
    messages, table).

    Raises:
        ConfigError: two of them have a column of one name.
        InputError: a sidecar has a key that the images lack: it belongs to other images.
    """
    joined = images
    for name, table in sidecars:
        _check_clash(joined.column_names, table.column_names, name)
        found = pc.index_in(joined["key"].combine_chunks(), value_set=table["key"].combine_chunks())
        if len(found) - found.null_count != len(table):
            foreign = pc.filter(
                table["key"], pc.invert(pc.is_in(table["key"], images["key"].combine_chunks()))
            )
            raise InputError(
                f"{name}: {len(foreign)} keys, such as {foreign[0].as_py()!r}, are not among the images; "
                "it was made from other images: run its stage again"
            )
        for column in table.column_names:
            if column != "key":
                joined = joined.append_column(column, table[column].take(found))
    return joined


def read_joined(images: str, sidecars: Sequence[str]) -> pa.Table:
    """The images' parquet and the sidecars of one shard, given by location, as one table.

    Raises:
        InputError, ConfigError: as `read_images`, `read_column` and `join`.
    """
    return join(read_images(images), ((url, read_column(url)) for url in sidecars))


def joined_schema(images: str, sidecars: Sequence[str]) -> pa.Schema:
    """The schema that `read_joined` gives, from the footers alone.

    Raises:
        ConfigError: two files have a column of one name.
    """
    return add_schemas(complete_images(read_schema(images).empty_table()).schema, sidecars)


def add_schemas(schema: pa.Schema, sidecars: Sequence[str]) -> pa.Schema:
    """The schema of a table with the columns of its sidecars, from their footers alone.

    Raises:
        ConfigError: two have a column of one name.
    """
    for url in sidecars:
        added = read_schema(url)
        _check_clash(schema.names, added.names, url)
        for field in added:
            if field.name != "key":
                schema = schema.append(field)
    return schema


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of several shards one after the other; a column that one of them lacks is null there.

    Raises:
        InputError: a column has types that do not go together.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"shards do not go together: {error}; give their column one type") from error


def normalise(table: pa.Table) -> pa.Table:
    """Known columns in their known types; large strings, views and dictionaries as plain strings or values.

    A list may carry a column that has a known name and means something else (`position` = "top"): it stays as
    it is.
    """
    arrays = [_cast(name, column) for name, column in zip(table.column_names, table.columns, strict=True)]
    return pa.table(arrays, names=table.column_names)


def _cast(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = column.cast(_plain(column.type))
    try:
        return column.cast(KNOWN_TYPES.get(name, column.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return column


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return pa.float32() if pa.types.is_float16(kind) else kind


def read_parquet(url: str, names: Collection[str] | None = None) -> pa.Table:
    """Any parquet with normalised types, no metadata; only the columns in `names` (lower case) where given.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with storage.open_read(url) as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)
            wanted = file.schema_arrow.names
            if names is not None:
                wanted = [n for n in wanted if n.lower() in names]
            return normalise(file.read(wanted).replace_schema_metadata(None))
    except FileNotFoundError as error:
        raise InputError(f"{url}: the file is missing; run the stage that writes it again") from error
    except pa.ArrowException as error:
        raise InputError(f"{url}: not a readable parquet ({error}); delete it and rerun its stage") from error


def read_schema(url: str) -> pa.Schema:
    """The names and normalised types of a parquet's columns, from its footer alone.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        with storage.open_read(url) as stream:
            return normalise(pq.read_schema(stream).remove_metadata().empty_table()).schema
    except (FileNotFoundError, pa.ArrowException) as error:
        raise ConfigError(
            f"{url}: no readable parquet ({error}); run the stage that writes it again"
        ) from error


def check_keys(table: pa.Table, url: str) -> None:
    """Raises InputError when a row has no key, or two have the same."""
    if table["key"].null_count or len(pc.unique(table["key"])) != len(table):
        raise InputError(f"{url}: keys are not unique; every row needs a key of its own")


def _check_clash(before: Sequence[str], added: Sequence[str], name: str) -> None:
    # SQL does not tell `Score` from `score`, so neither may stand beside the other
    known = {column.lower() for column in before}
    clash = sorted(column for column in added if column != "key" and column.lower() in known)
    if clash or len({c.lower() for c in added}) != len(added):
        raise ConfigError(
            f"{name}: columns {clash or list(added)} stand there already; column names must be "
            "unique over all folders: score again under another --name"
        )


def _names(table: pa.Table) -> str:
    return ", ".join(table.column_names)
