"""Candidates: what discover found, before any picture is fetched, as rows with keys.

`candidates/part-N.parquet` stores no key: a candidate is what its place says, the number of its part and
its row in it, before any filter (`pipeline.shards.format.candidate_key`, 16 digits). Column folders over
candidates (dedup, language) have one `N.parquet` for each part, a row for every candidate in this order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pyarrow as pa

from pipeline import columns, inputs, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import candidate_key

PREFIX = "part-"
_PART = re.compile(rf"{PREFIX}(\d+)\.parquet")
#: what a folder of another maker must have to count as candidates
NEEDED = ("url", "caption")


def is_candidates(folder: str) -> bool:
    """Whether a folder holds candidates: discover wrote it, or no stage did and it has `part-N.parquet`."""
    if not storage.isdir(folder):
        return False
    if manifest.is_output(folder):
        done = next(iter(manifest.list_done(folder).values()), None)
        if done is not None:
            return manifest.read(done)["stage"] == "discover"
    return any(_PART.fullmatch(storage.basename(f.url)) for f in storage.list_files(folder))


def parts(folder: str) -> list[inputs.Shard]:
    """The finished parts, by number.

    Raises:
        ConfigError: there is none, or the first one lacks a column that candidates have.
    """
    found = inputs.shards(folder, ".parquet", prefix=PREFIX)
    names = columns.read_schema(found[0].input.url).names
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise ConfigError(
            f"{found[0].input.url}: no column {missing[0]!r}; candidates have {' and '.join(NEEDED)}, found "
            f"{', '.join(names)}"
        )
    return found


def part_number(url: str) -> int:
    """3 for `.../part-00000003.parquet`."""
    match = _PART.fullmatch(storage.basename(url))
    if match is None:
        raise InputError(f"{url}: candidates lie in files named {PREFIX}N.parquet")
    return int(match[1])


def keys(part: int, start: int, stop: int) -> pa.StringArray:
    """The keys of rows start..stop-1 of a part."""
    return pa.array([candidate_key(part, row) for row in range(start, stop)], pa.string())


def read_part(url: str, names: Collection[str] | None = None) -> pa.Table:
    """A part with its `key`, then its columns with normalised types; only those in `names` (lower case)
    where given.

    Raises:
        InputError: it cannot be read.
    """
    return with_keys(columns.read_parquet(url, names), part_number(url), 0)


def with_keys(rows: pa.Table, part: int, start: int) -> pa.Table:
    """Rows of a part from `start` on with their key in front; a column `key` of their own gives way to it."""
    own = [name for name in rows.column_names if name.lower() == "key"]
    rows = rows.drop_columns(own)
    return rows.add_column(0, "key", keys(part, start, start + len(rows)))


def joined_schema(url: str, sidecars: Sequence[str]) -> pa.Schema:
    """The schema of a part with its key and the columns of its sidecars.

    Raises:
        ConfigError: two files have a column of one name.
    """
    part = with_keys(columns.read_schema(url).empty_table(), 0, 0).schema
    return columns.add_schemas(part, sidecars)


def same_rows(sidecar: pa.Table, part: int, start: int, stop: int, name: str) -> pa.Table:
    """Rows start..stop-1 of a sidecar, once it is clear that they are those of these candidates.

    Raises:
        InputError: they are of other candidates, or of fewer.
    """
    found = sidecar.slice(start, stop - start)
    if not found["key"].combine_chunks().equals(keys(part, start, stop)):
        raise InputError(
            f"{name}: its rows {start} to {stop} are not those of part {part}; it was made from other "
            "candidates: run its stage again"
        )
    return found
