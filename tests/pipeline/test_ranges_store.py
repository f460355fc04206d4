"""A range of a large table on an object store: what is fetched is what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs.core import S3File

from pipeline import ranges, storage
from tests.pipeline.object_store import s3_bucket


def test_nothing_is_fetched_beyond_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 20_000
    noise = pa.py_buffer(np.random.default_rng(0).bytes(rows * 256))
    vectors = pa.FixedSizeBinaryArray.from_buffers(pa.binary(256), rows, [None, noise])
    table = pa.table({"bucket": pa.array(np.arange(rows) // 500, pa.int32()), "vector": vectors})
    path = tmp_path / "large.parquet"
    pq.write_table(table, path, row_group_size=500, use_dictionary=False)
    fetched = []
    fetch = S3File._fetch_range

    def counting(self: Any, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", counting)
    with s3_bucket("ranges") as bucket:
        storage.write_bytes(f"{bucket}/large.parquet", path.read_bytes())
        for place in (f"{bucket}/large.parquet", str(path)):
            found = ranges.read_between(place, "bucket", 7, 7, names=["vector"])
            assert found.equals(table.slice(3500, 500).select(["vector"]))
    # the slice is 128 kB of 5 MB; the footer is looked for in the last 64 kB
    assert 128_000 < sum(fetched) < 300_000, fetched
    assert len(fetched) <= 3
