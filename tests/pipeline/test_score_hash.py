"""Kind hash: a row a success, whatever the picture is; the same bytes with any number of threads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import columns
from pipeline.errors import ConfigError
from pipeline.phash import decode_grey, outlines, phash64, to_hex
from pipeline.stages.score import ScoreConfig, ScoreStage
from tests.pipeline.folders import crawled, jpeg, make_candidates, make_foreign, make_images, run_here


def _score(images: Path, output: Path, **changes: Any) -> Any:
    return run_here(ScoreStage(ScoreConfig(input=str(images), kind="hash", **changes)), output)


def _world() -> dict[int, list[dict[str, Any]]]:
    return {
        0: [
            crawled(0, 0),
            crawled(0, 1, picture=b"no picture"),
            crawled(0, 2, reason="timeout"),
            crawled(0, 3, picture=jpeg(3)[:200]),
            crawled(0, 4, picture=None),
            crawled(0, 5, caption=""),
        ],
        1: [crawled(1, i) for i in range(3)],
    }


def test_a_row_for_every_success_and_a_reason_where_there_is_no_hash(tmp_path: Path) -> None:
    make_images(tmp_path / "images", _world())
    counts = _score(tmp_path / "images", tmp_path / "hash")
    assert counts.to_json() == {"in": 8, "out": 5, "dropped": {"missing_in_shard": 1, "undecodable": 2}}
    rows = pq.read_table(tmp_path / "hash/00000000.parquet").to_pylist()
    assert [row["phash"] is not None for row in rows] == [True, False, False, False, True]
    data = jpeg(0)
    grey = decode_grey(data)
    assert rows[0] == {
        "key": "000000000000",
        "phash": phash64(grey),
        "phash_long": to_hex(outlines(grey)[0]),
        "phash_inner": to_hex(outlines(grey)[1:]),
        "picture_sha256": hashlib.sha256(data).hexdigest(),
    }
    joined = columns.read_joined(
        str(tmp_path / "images/00000000.parquet"), [str(tmp_path / "hash/00000000.parquet")]
    )
    assert joined["phash"].null_count == 4


def test_threads_and_a_foreign_folder_change_no_byte(tmp_path: Path) -> None:
    make_images(tmp_path / "images", _world())
    make_foreign(tmp_path / "foreign", _world())
    _score(tmp_path / "images", tmp_path / "one", decode_threads=1)
    _score(tmp_path / "images", tmp_path / "many", decode_threads=5)
    _score(tmp_path / "foreign", tmp_path / "theirs")
    for number in (0, 1):
        name = f"{number:08d}.parquet"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
        ours, theirs = (pq.read_table(tmp_path / folder / name) for folder in ("one", "theirs"))
        assert ours.drop_columns("key").equals(theirs.drop_columns("key"))


def test_another_name_and_a_predicate(tmp_path: Path) -> None:
    make_images(tmp_path / "images", _world())
    _score(tmp_path / "images", tmp_path / "named", name="look", where="url LIKE '%/1/2.jpg'")
    table = pa.concat_tables(pq.read_table(p) for p in sorted((tmp_path / "named").glob("*.parquet")))
    assert table.column_names == ["key", "look", "look_long", "look_inner", "look_sha256"]
    assert len(table) - table["look"].null_count == 1


def test_candidates_and_options_of_other_kinds_are_refused(tmp_path: Path) -> None:
    make_candidates(tmp_path / "candidates", {0: [("http://a/1", "a cat")]})
    with pytest.raises(ConfigError, match="crawl them first"):
        _score(tmp_path / "candidates", tmp_path / "out")
    with pytest.raises(ConfigError, match="means nothing to kind 'hash'"):
        _score(tmp_path / "candidates", tmp_path / "out", model="ViT-B-32")
