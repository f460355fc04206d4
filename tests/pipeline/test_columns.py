"""Columns joined on the key: nothing lost, nothing paired wrongly, clashes refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import columns
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import sample_uid
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images


def _images(folder: Path) -> str:
    rows = [crawled(0, 0), crawled(0, 1, reason="timeout"), crawled(0, 2)]
    return str(make_images(folder, {0: rows}) / "00000000.parquet")


def test_joins_on_the_key_and_keeps_failed_rows(tmp_path: Path) -> None:
    images = _images(tmp_path / "images")
    scores: dict[str, list] = {"key": ["000000000002", "000000000000"], "clip_score": [0.5, 0.25]}
    first = make_columns(tmp_path / "clip", {0: scores})
    second = make_columns(tmp_path / "dup", {0: {"key": ["000000000000"], "duplicate_of": ["000000000002"]}})
    table = columns.read_joined(images, [f"{f}/00000000.parquet" for f in (first, second)])
    assert table["key"].to_pylist() == ["000000000000", "000000000001", "000000000002"]
    assert table["clip_score"].to_pylist() == [0.25, None, 0.5]
    assert table["duplicate_of"].to_pylist() == ["000000000002", None, None]
    assert table["reason"].to_pylist() == [None, "timeout", None]
    schema = columns.joined_schema(images, [f"{f}/00000000.parquet" for f in (first, second)])
    assert schema == table.schema


def test_img2dataset_folder_gains_reason_and_uid(tmp_path: Path) -> None:
    rows = [crawled(3, 0), crawled(3, 1, reason="timeout"), crawled(3, 2, caption=None)]
    folder = make_foreign(tmp_path / "foreign", {3: rows})
    table = columns.read_images(str(folder / "00003.parquet"))
    assert table["key"].to_pylist() == ["000030000", "000030001", "000030002"]
    assert table["reason"].to_pylist() == [None, "failed_to_download", None]
    assert table["uid"].to_pylist() == [sample_uid(r["caption"] or "", r["url"]) for r in rows]
    assert table["http_status"].type == pa.int32()
    assert columns.joined_schema(str(folder / "00003.parquet"), []) == table.schema


def test_types_are_normalised(tmp_path: Path) -> None:
    table = pa.table(
        {
            "key": pa.array(["a"], pa.large_string()),
            "width": pa.array([3.0], pa.float64()),
            "clip_score": pa.nulls(1),
            "label": pa.array(["x"]).dictionary_encode(),
            "other": pa.array([0.5], pa.float16()),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    found = columns.read_column(str(tmp_path / "x.parquet"))
    assert found.schema.types == [pa.string(), pa.int32(), pa.float32(), pa.string(), pa.float32()]


def test_shards_with_a_null_column_go_together() -> None:
    one, two = pa.table({"a": [1], "b": pa.nulls(1)}), pa.table({"a": [2], "b": ["x"], "c": [0.5]})
    expected = [{"a": 1, "b": None, "c": None}, {"a": 2, "b": "x", "c": 0.5}]
    assert columns.concat([one, two]).to_pylist() == expected
    with pytest.raises(InputError, match="do not go together"):
        columns.concat([pa.table({"a": [1]}), pa.table({"a": ["x"]})])


@pytest.mark.parametrize("name", ["width", "Width", "clip_score", "CLIP_SCORE"])
def test_clashing_names_are_refused(tmp_path: Path, name: str) -> None:
    images = _images(tmp_path / "images")
    keys = ["000000000000"]
    first = make_columns(tmp_path / "a", {0: {"key": keys, "clip_score": [0.5]}})
    second = make_columns(tmp_path / "b", {0: {"key": keys, name: [0.5]}})
    urls = [f"{f}/00000000.parquet" for f in (first, second)]
    for ask in (columns.read_joined, columns.joined_schema):
        with pytest.raises(ConfigError, match="--name"):
            ask(images, urls)


def test_columns_of_other_images_are_refused(tmp_path: Path) -> None:
    images = _images(tmp_path / "images")
    other = make_columns(tmp_path / "a", {0: {"key": ["000000090000"], "clip_score": [0.5]}})
    with pytest.raises(InputError, match=r"'000000090000'.*made from other images"):
        columns.read_joined(images, [f"{other}/00000000.parquet"])


def test_double_keys_and_missing_keys_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a", "a"]}), tmp_path / "double.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "nokey.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name, message in (("double", "unique"), ("nokey", "no column 'key'"), ("broken", "not a readable")):
        with pytest.raises(InputError, match=message):
            columns.read_column(str(tmp_path / f"{name}.parquet"))
    with pytest.raises(InputError, match="missing"):
        columns.read_column(str(tmp_path / "absent.parquet"))


def test_missing_shard_names_the_stage_to_run(tmp_path: Path) -> None:
    folder = make_columns(tmp_path / "clip", {0: {"key": ["a"], "clip_score": [0.5]}}, stage="score")
    opened = columns.open_folder(str(folder))
    assert opened.shard(0).url.endswith("00000000.parquet")
    with pytest.raises(ConfigError, match=r"no shard 00000001.*run stage 'score'"):
        opened.shard(1)
    with pytest.raises(ConfigError, match="does not exist"):
        columns.open_folder(str(tmp_path / "nothing"))


@given(st.permutations(list(range(8))), st.sets(st.integers(0, 7)))
@settings(max_examples=40, deadline=None)
def test_join_is_a_lookup_by_key(order: list[int], scored: set[int]) -> None:
    images = pa.table({"key": [f"k{i}" for i in order], "n": order})
    rows = sorted(scored)
    sidecar = pa.table(
        {"key": pa.array([f"k{i}" for i in rows], pa.string()), "s": pa.array(rows, pa.int64())}
    )
    joined = columns.join(images, [("s", sidecar)])
    assert joined["n"].to_pylist() == order
    assert joined["s"].to_pylist() == [i if i in scored else None for i in order]
