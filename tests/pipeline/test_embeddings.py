"""Reading embeddings back from a column folder: as they were written, and a clear word where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import embeddings
from pipeline.errors import ConfigError, InputError
from tests.pipeline.folders import FixedColumns, run_here


def fixed(rows: list[list[float] | None], size: int = 4) -> pa.Array:
    return pa.array(
        [None if row is None else np.array(row, np.float16) for row in rows], pa.list_(pa.float16(), size)
    )


def folder_of(place: Path, *shards: pa.Array) -> str:
    tables = {
        number: pa.table({"key": [f"{number}-{i}" for i in range(len(vectors))], "e": vectors})
        for number, vectors in enumerate(shards)
    }
    run_here(FixedColumns(tables), place, overwrite=True)
    return str(place)


def test_a_shard_at_a_time_without_the_rows_that_have_none(tmp_path: Path) -> None:
    rows = [[0.5, 1, 2, 3], None, [4, 5, 6, 7]]
    folder = folder_of(tmp_path / "c", fixed(rows), fixed([None]), fixed([[1, 1, 1, 1]]))
    found = list(embeddings.read(folder, "e"))
    assert [keys for keys, _ in found] == [["0-0", "0-2"], [], ["2-0"]]
    assert [v.shape for _, v in found] == [(2, 4), (0, 4), (1, 4)]
    assert all(v.dtype == np.float16 for _, v in found)
    np.testing.assert_array_equal(found[0].vectors_NE, [rows[0], rows[2]])


def test_slices_and_lists_of_float32_read_the_same(tmp_path: Path) -> None:
    plain = pa.array([[9.0, 9.0], None, [1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    (shard,) = embeddings.read(folder_of(tmp_path / "c", plain.slice(1)), "e")
    assert shard.keys == ["0-1", "0-2"]
    np.testing.assert_array_equal(shard.vectors_NE, np.array([[1, 2], [3, 4]], np.float16))
    empty = folder_of(tmp_path / "d", pa.array([None, None], pa.list_(pa.float32())))
    assert next(embeddings.read(empty, "e")).vectors_NE.shape == (0, 0)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())), "1 to 2 dimensions"),
        (pa.array([[1.0, None]], pa.list_(pa.float32())), "nulls in it"),
        (pa.array([1.0, 2.0]), "no embedding; those are lists"),
        (pa.array([["a"]]), "no embedding; those are lists"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, vectors: pa.Array, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(embeddings.read(folder_of(tmp_path / "c", vectors), "e"))


def test_missing_columns_folders_and_mixed_models_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "c", fixed([[1, 2, 3, 4]]), fixed([[1, 2]], 2))
    with pytest.raises(InputError, match=r"no column 'image'; it has key, e"):
        list(embeddings.read(folder, "image"))
    with pytest.raises(InputError, match=r"embeddings of 2 dimensions .* before it have 4"):
        list(embeddings.read(folder, "e"))
    with pytest.raises(ConfigError, match="does not exist"):
        list(embeddings.read(str(tmp_path / "nothing"), "e"))


def test_export_is_what_numpy_would_have_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(n, 4)).astype(np.float16) for n in (3, 0, 130)]
    folder = folder_of(tmp_path / "c", *(fixed([None, *block]) for block in blocks))
    place, keys = tmp_path / "all.npy", tmp_path / "keys.txt"
    assert embeddings.export(folder, "e", str(place), keys=str(keys)) == (133, 4)
    np.save(tmp_path / "numpy.npy", np.concatenate(blocks))
    np.testing.assert_array_equal(np.load(place, mmap_mode="r"), np.concatenate(blocks))
    assert place.read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    assert keys.read_text().splitlines()[:4] == ["0-1", "0-2", "0-3", "2-1"]


def test_export_of_nothing_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "c", fixed([None, None]))
    with pytest.raises(InputError, match="has no embedding in column 'e'"):
        embeddings.export(folder, "e", str(tmp_path / "all.npy"))
    assert not (tmp_path / "all.npy").exists()
