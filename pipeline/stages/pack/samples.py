"""One sample on its way from an image shard into a training shard: its members, and its flat json."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import InputError
from pipeline.shards.format import is_image
from pipeline.shards.reader import Sample, SampleIndex, index_tar


class ShardPool:
    """Random access to the samples of several tars, which are on this machine while the pool is open."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[IO[bytes], SampleIndex]] = {}

    def add(self, url: str, path: Path, file: IO[bytes]) -> None:
        try:
            found = index_tar(str(path))
        except InputError as error:
            raise InputError(str(error).replace(str(path), url)) from error
        for sample in found:
            if sample.key in self._samples:
                raise InputError(f"{url}: key {sample.key!r} also stands in another shard of the group")
            self._samples[sample.key] = (file, sample)

    def keys(self) -> set[str]:
        return set(self._samples)

    def read(self, key: str) -> dict[str, bytes] | None:
        """The pictures and features of a sample; None where the shard has no picture for this key."""
        if key not in self._samples:
            return None
        file, sample = self._samples[key]
        wanted = {s: place for s, place in sample.members.items() if is_image(s) or s == "npz"}
        if not any(is_image(suffix) for suffix in wanted):
            return None
        return {suffix: _read(file, *place, key=key) for suffix, place in wanted.items()}


def _read(file: IO[bytes], offset: int, size: int, *, key: str) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise InputError(f"sample {key!r}: {len(data)} of {size} bytes are there; its tar is cut off")
    return data


@contextmanager
def open_pool(urls: Sequence[str]) -> Iterator[ShardPool]:
    """Opens tars for random access; remote ones are fetched to disk first, one sequential read each.

    Raises:
        InputError: one is missing or damaged.
    """
    with ExitStack() as stack:
        pool = ShardPool()
        for url in urls:
            try:
                path = stack.enter_context(storage.local_copy(url))
                file = stack.enter_context(path.open("rb"))
            except FileNotFoundError as error:
                raise InputError(f"{url}: the file is missing; rerun the stage that writes it") from error
            pool.add(url, path, file)
        yield pool


def make_sample(row: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Sample:
    """The sample as FORMAT.md has it: the pictures unchanged, the caption, and the row as flat json."""
    text = (row["caption"] or "").encode("utf-8", "replace")
    return Sample(row["key"], {**pictures, "txt": text, "json": flat_json(row)})


def flat_json(row: Mapping[str, Any]) -> bytes:
    """A row as one json object of scalars, in the order of the columns. Null, numbers that JSON has not (NaN,
    infinity), lists and binary values are left out: readers that infer a schema fail on them; the parquet
    beside the shard has them all."""
    fields = {}
    for name, value in row.items():
        if isinstance(value, (datetime.datetime, datetime.date)):
            value = value.isoformat()
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, (str, bool, int, float)):
            fields[name] = value
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    return text.encode("utf-8", "replace")


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as Python values; a 32-bit float as the shortest decimal that names it (0.28, not
    0.2800000011920929)."""
    floats = [f.name for f in table.schema if f.type == pa.float32()]
    for batch in table.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            for name in floats:
                if row[name] is not None:
                    row[name] = float(str(np.float32(row[name])))
            yield row
