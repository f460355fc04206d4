"""Kind language: CLD3's codes as a column, of images or candidates, of all rows or of selected ones."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import columns, manifest
from pipeline.errors import ConfigError
from pipeline.selection import explain_rows
from pipeline.shards.format import candidate_key
from pipeline.stage import Input, Unit
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.score import ScoreConfig, ScoreStage
from pipeline.stages.score.kind import Row
from pipeline.stages.score.language import LanguageJudge
from tests.pipeline.folders import crawled, make_candidates, make_columns, make_foreign, make_images, run_here

ENGLISH = "a small boat with red sails on a quiet lake"
GERMAN = "ein kleines Boot mit roten Segeln auf dem ruhigen See"
JAPANESE = "静かな湖に浮かぶ赤い帆の小さな船"
RUSSIAN = "маленькая лодка с красными парусами на тихом озере"


def _config(folder: Path, **changes: Any) -> ScoreConfig:
    return ScoreConfig(**{"input": str(folder), "kind": "language", **changes})


def _languages(folder: Path, name: str = "language") -> dict[str, str | None]:
    table = pa.concat_tables(pq.read_table(p) for p in sorted(folder.glob("*.parquet")))
    assert table.column_names == ["key", name, f"{name}_probability"]
    assert table.schema.types == [pa.string(), pa.string(), pa.float32()]
    for row in table.to_pylist():
        assert (row[name] is None) == (row[f"{name}_probability"] is None)
        assert row[name] is None or 0.5 <= row[f"{name}_probability"] <= 1
    return dict(zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True))


def test_languages_and_texts_that_have_none() -> None:
    texts = {
        ENGLISH: "en",
        GERMAN: "de",
        JAPANESE: "ja",
        RUSSIAN: "ru",
        "": "no_text",
        " \t\n": "no_text",
        "2024-05-18, 3:15 !!!": "no_text",  # CLD3 alone says Japanese
        "\N{PARTY POPPER}\N{PARTY POPPER}": "no_text",
        "IMG_1234": "unreliable",
        ENGLISH + " \ud83d": "en",  # half a surrogate pair
        ENGLISH + "\0": "en",
        ENGLISH * 1000: "en",
    }
    found = LanguageJudge().judge(Row(str(n), None, text) for n, text in enumerate(texts))
    for judgement, (text, expected) in zip(found, texts.items(), strict=True):
        said = judgement.values[0] if judgement.values else judgement.reason
        assert said == expected, text[:60]


@given(st.lists(st.text(st.characters(), max_size=40), max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_text_is_judged_alone_and_twice_the_same(texts: list[str]) -> None:
    judge = LanguageJudge()
    rows = [Row(str(n), None, text) for n, text in enumerate(texts)]
    found = list(judge.judge(rows))
    assert [f.key for f in found] == [r.key for r in rows]
    assert found == [next(iter(LanguageJudge().judge([row]))) for row in rows]
    for judgement in found:
        assert (judgement.values is None) == (judgement.reason in ("no_text", "unreliable"))


def test_images_have_a_row_for_every_success_and_no_tar_is_opened(tmp_path: Path) -> None:
    rows = [
        crawled(0, 0, caption=ENGLISH),
        crawled(0, 1, caption=ENGLISH, reason="timeout"),
        crawled(0, 2, caption=GERMAN),
        crawled(0, 3, caption=None),
    ]
    images = make_images(tmp_path / "images", {0: rows})
    (images / "00000000.tar").write_bytes(b"no tar")
    counts = run_here(ScoreStage(_config(images)), tmp_path / "language")
    key = [f"00000000000{i}" for i in range(4)]
    assert _languages(tmp_path / "language") == {key[0]: "en", key[2]: "de", key[3]: None}
    assert counts.to_json() == {"in": 3, "out": 2, "dropped": {"no_text": 1}}
    [record] = manifest.read_all(str(tmp_path / "language"))
    assert record["notes"] == {"model": "cld3"}
    foreign = make_foreign(tmp_path / "foreign", {5: rows})
    run_here(ScoreStage(_config(foreign, name="tongue")), tmp_path / "tongue")
    assert _languages(tmp_path / "tongue", "tongue")["000050002"] == "de"


def test_candidates_are_judged_after_deduplication_only(tmp_path: Path) -> None:
    pairs = [("http://a/1", ENGLISH), ("http://a/2", GERMAN), ("http://a/1", ENGLISH), ("http://a/3", None)]
    folder = make_candidates(tmp_path / "candidates", {0: pairs, 3: [*pairs[:2], ("http://a/9", RUSSIAN)]})
    for stage, place in dedup_stages(DedupConfig(input=str(folder), buckets=2), str(tmp_path / "dedup")):
        run_here(stage, place)
    stage = ScoreStage(_config(folder, columns=str(tmp_path / "dedup"), where="duplicate_of IS NULL"))
    counts = run_here(stage, tmp_path / "language")
    key = candidate_key
    expected = {key(0, 0): "en", key(0, 1): "de", key(0, 2): None, key(0, 3): None}
    assert _languages(tmp_path / "language") == {
        **expected,
        key(3, 0): None,
        key(3, 1): None,
        key(3, 2): "ru",
    }
    assert counts.to_json() == {"in": 7, "out": 3, "dropped": {"no_text": 1, "not_selected": 3}}
    # a new part is judged, and no old one again, though dedup has run over all of them
    make_candidates(
        folder, {0: pairs, 3: [*pairs[:2], ("http://a/9", RUSSIAN)], 4: [("http://b/1", JAPANESE)]}
    )
    with pytest.raises(ConfigError, match=r"no shard 00000004.*run stage 'dedup' again"):
        stage.plan([])
    for inner, place in dedup_stages(DedupConfig(input=str(folder), buckets=2), str(tmp_path / "dedup")):
        run_here(inner, place)
    assert run_here(stage, tmp_path / "language").to_json() == {"in": 1, "out": 1, "dropped": {}}
    # another predicate is another result
    other = ScoreStage(dataclasses.replace(stage.config, where="duplicate_of IS NOT NULL"))
    with pytest.raises(ConfigError, match=r"where \"duplicate_of IS NULL\" -> .*--overwrite"):
        run_here(other, tmp_path / "language")


def test_a_predicate_over_the_candidates_own_columns(tmp_path: Path) -> None:
    folder = make_candidates(
        tmp_path / "c", {0: [("http://a/1", ENGLISH), (None, GERMAN), ("http://b", GERMAN)]}
    )
    counts = run_here(ScoreStage(_config(folder, where="url LIKE 'http://a/%'")), tmp_path / "out")
    assert list(_languages(tmp_path / "out").values()) == ["en", None, None]
    assert counts.to_json()["dropped"] == {"not_selected": 1, "not_selected_null": 1}
    counts = run_here(ScoreStage(_config(folder, where="key = '0000000000000002'")), tmp_path / "key")
    assert list(_languages(tmp_path / "key").values()) == [None, None, "de"]


def test_presets_and_predicates_read_the_column(tmp_path: Path) -> None:
    rows = [crawled(0, i, caption=c, original_width=640, original_height=480) for i, c in enumerate(
        [ENGLISH, GERMAN, "IMG_1234 x y z", "two words"]
    )]  # fmt: skip
    images = make_images(tmp_path / "images", {0: rows})
    run_here(ScoreStage(_config(images)), tmp_path / "language")
    urls = [str(images / "00000000.parquet"), str(tmp_path / "language/00000000.parquet")]
    table = columns.read_joined(urls[0], urls[1:])
    assert explain_rows(table, preset="datacomp-basic").to_pylist() == [
        None,
        "not_english",
        "not_english",
        "few_words",
    ]
    table = table.append_column("clip_score", pa.array([0.27, 0.27, 0.27, 0.3], pa.float32()))
    table = table.set_column(table.column_names.index("bytes"), "bytes", pa.array([6000] * 4))
    said = explain_rows(table, preset="laion5b").to_pylist()
    assert said == ["low_clip_score", None, None, None], "no language counts as another than English"
    assert explain_rows(table, where="language_probability > 0.9").to_pylist()[:2] == [None, None]


def test_what_makes_no_sense_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path / "candidates", {0: [("http://a/1", ENGLISH)]})
    dup = make_columns(tmp_path / "dup", {0: {"key": [candidate_key(0, 0)], "caption": ["x"]}}, stage="dedup")
    for changes, message in (
        ({"kind": "clip"}, "looks at pictures; crawl them first"),
        ({"kind": "colour"}, "must be one of clip, embedding"),
        ({"model": "ViT-B-32"}, "means nothing to kind 'language'"),
        ({"batch_size": 8}, "batch_size 8 means nothing"),
        ({"gpus": 1.0}, "gpus 1.0 means nothing"),
        ({"columns": [str(dup)]}, "there for --where"),
        ({"where": "duplicate_of IS NULL"}, "unknown column 'duplicate_of'"),
        ({"where": "caption"}, "gives VARCHAR"),
        ({"where": "caption = 'x'", "columns": [str(dup)]}, "stand there already"),
        ({"where": "x = 1", "columns": str(tmp_path / "nothing")}, "does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            ScoreStage(_config(folder, **changes)).plan([])


def test_columns_of_other_candidates_are_refused(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path / "candidates", {0: [("http://a/1", ENGLISH)]})
    other = make_columns(tmp_path / "x", {0: {"key": [candidate_key(7, 0)], "n": [1]}}, stage="score")
    stage = ScoreStage(_config(folder, columns=[str(other)], where="n = 1"))
    with pytest.raises(ValueError, match="made from other images"):
        run_here(stage, tmp_path / "out")


def test_digests_of_clip_columns_are_what_they_were() -> None:
    """Columns that were made before kinds came stay valid."""
    inputs = (Input(url="x", fingerprint="aaa"), Input(url="m", fingerprint="bbb"))
    unit = Unit(number=3, source={"shard": 3}, inputs=inputs)
    assert unit.digest(ScoreStage(ScoreConfig(model="x"))) == "c9fe8c34ab2e4f4b"
    other = ScoreConfig(model="x", name="b32", batch_size=8, precision="bf16")
    assert unit.digest(ScoreStage(other)) == "23444035f4a8ef64"


def test_a_deleted_part_is_judged_again_to_the_same_bytes(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path / "candidates", {0: [("http://a/1", ENGLISH), ("http://a/2", GERMAN)]})
    run_here(ScoreStage(_config(folder)), tmp_path / "out")
    shutil.copy(tmp_path / "out/00000000.parquet", tmp_path / "before")
    (tmp_path / "out/00000000.parquet").unlink()
    assert run_here(ScoreStage(_config(folder)), tmp_path / "out").taken == 2
    assert (tmp_path / "out/00000000.parquet").read_bytes() == (tmp_path / "before").read_bytes()
