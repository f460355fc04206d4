"""Only some of the candidates are fetched: the others keep row and key, and the web hears nothing of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import columns, manifest
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import candidate_key, sample_key
from pipeline.shards.reader import iter_samples
from pipeline.stages.crawl.stage import CrawlConfig, CrawlStage, FetchConfig
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.score import ScoreConfig, ScoreStage
from tests.pipeline.crawl_server import Site, serving
from tests.pipeline.folders import make_candidates, make_columns, run_here

ENGLISH = "a small boat with red sails on a quiet lake"
GERMAN = "ein kleines Boot mit roten Segeln auf dem ruhigen See"
RULE = "duplicate_of IS NULL AND language = 'en'"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


def _pairs(site: Site, start: int) -> list[tuple[str | None, str | None]]:
    """English, German, the first again, a text without letters, English, no URL."""
    urls = [site.url(f"/picture/{start + i}.jpg") for i in range(4)]
    return [
        (urls[0], ENGLISH),
        (urls[1], GERMAN),
        (urls[0], ENGLISH),
        (urls[2], "2024-05-18"),
        (urls[3], ENGLISH),
        (None, ENGLISH),
    ]


def _columns(root: Path) -> list[str]:
    """Dedup and language over ROOT/candidates, as a user runs them."""
    folder, dup, language = (str(root / n) for n in ("candidates", "dup", "language"))
    for stage, place in dedup_stages(DedupConfig(input=folder, buckets=2), dup):
        run_here(stage, place)
    rule = {"columns": dup, "where": "duplicate_of IS NULL"}
    run_here(ScoreStage(ScoreConfig(kind="language", input=folder, **rule)), language)
    return [dup, language]


def _config(root: Path, site: Site, **options: Any) -> CrawlConfig:
    fetch = FetchConfig(allow_private=[site.name], backoff=0.01, total_timeout=5.0)
    base: dict[str, Any] = {"image_size": 64, "fetch": fetch, "shard_size": 4}
    return CrawlConfig(**{"input": str(root / "candidates"), **base, **options})


def _rows(images: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(pq.read_table(p) for p in sorted(images.glob("*.parquet"))).to_pylist()


def test_what_is_not_selected_is_not_asked_for(tmp_path: Path, site: Site) -> None:
    make_candidates(tmp_path / "candidates", {0: _pairs(site, 0), 1: _pairs(site, 10)})
    config = _config(tmp_path, site, with_columns=_columns(tmp_path), where=RULE)
    stage = CrawlStage(config)
    counts = run_here(stage, tmp_path / "images")
    stage.close()
    assert set(site.hits) - {"/robots.txt", "/.well-known/tdmrep.json"} == {
        f"/picture/{n}.jpg" for n in (0, 3, 10, 13)
    }
    rows = _rows(tmp_path / "images")
    assert [r["key"] for r in rows] == [
        sample_key(s, i) for s, n in enumerate((4, 2, 4, 2)) for i in range(n)
    ]
    # the third of each part is a duplicate, the fourth has no language
    said = [None, "not_selected", "not_selected", "not_selected_null", None, "no_url"]
    assert [r["reason"] for r in rows] == [*said, *said]
    assert counts.to_json()["dropped"] == {"no_url": 2, "not_selected": 4, "not_selected_null": 2}
    for row in rows:
        assert (row["status"] == "success") == (row["reason"] is None)
        assert row["reason"] is None or row["status"] == "failed_to_download"
        assert row["reason"] is None or row["http_status"] is row["bytes"] is row["sha256"] is None
    # the columns travel along, keys of candidates do not
    assert [r["language"] for r in rows[:6]] == ["en", "de", None, None, "en", "en"]
    assert "duplicate_of" not in rows[0]
    assert rows[0]["page_url"] == "http://page.example/0/0"
    [first] = iter_samples(str(tmp_path / "images/00000000.tar"))
    assert (first.key, b'"language": "en"' in first.members["json"]) == (sample_key(0, 0), True)
    # so the images can be de-duplicated themselves, and joined with columns of their own
    for inner, place in dedup_stages(DedupConfig(input=str(tmp_path / "images")), str(tmp_path / "dedup")):
        run_here(inner, place)
    urls = [str(tmp_path / folder / "00000000.parquet") for folder in ("images", "dedup")]
    joined = columns.read_joined(urls[0], urls[1:])
    assert joined.schema.field("language_probability").type == pa.float32()
    assert joined["duplicate_of"].null_count == 4


def test_without_a_predicate_columns_are_carried_along(tmp_path: Path, site: Site) -> None:
    make_candidates(tmp_path / "candidates", {0: _pairs(site, 0)[:2]})
    config = _config(tmp_path, site, with_columns=_columns(tmp_path))
    stage = CrawlStage(config)
    assert run_here(stage, tmp_path / "images").kept == 2
    stage.close()
    assert [r["language"] for r in _rows(tmp_path / "images")] == ["en", "de"]
    only = CrawlStage(_config(tmp_path, site, where="url IS NOT NULL AND position < 1"))
    assert run_here(only, tmp_path / "own").to_json()["dropped"] == {"not_selected": 1}
    only.close()


def test_archives_that_follow_redo_nothing(tmp_path: Path, site: Site) -> None:
    parts = {0: _pairs(site, 0), 1: _pairs(site, 10)}
    make_candidates(tmp_path / "candidates", {0: parts[0]})
    config = _config(tmp_path, site, with_columns=_columns(tmp_path), where=RULE)
    stage = CrawlStage(config)
    assert run_here(stage, tmp_path / "images").taken == 6
    before = manifest.list_done(str(tmp_path / "images"))
    make_candidates(tmp_path / "candidates", parts)
    with pytest.raises(ConfigError, match=r"no shard 00000001.*run stage 'dedup' again"):
        run_here(stage, tmp_path / "images")
    _columns(tmp_path)
    assert run_here(stage, tmp_path / "images").taken == 6, "the new part alone"
    stage.close()
    after = manifest.list_done(str(tmp_path / "images"))
    assert {n: after[n] for n in before} == before
    assert site.hits["/picture/0.jpg"] == 1


def test_another_predicate_or_other_columns_are_another_crawl(tmp_path: Path, site: Site) -> None:
    make_candidates(tmp_path / "candidates", {0: _pairs(site, 0)[:2]})
    keys = [candidate_key(0, i) for i in range(2)]
    make_columns(tmp_path / "x", {0: {"key": keys, "good": [True, False]}})
    config = _config(tmp_path, site, with_columns=str(tmp_path / "x"), where="good")
    stage = CrawlStage(config)
    assert run_here(stage, tmp_path / "images").to_json() == {
        "in": 2,
        "out": 1,
        "dropped": {"not_selected": 1},
    }
    stage.close()
    other = CrawlStage(_config(tmp_path, site, with_columns=str(tmp_path / "x"), where="NOT good"))
    with pytest.raises(ConfigError, match=r'where "good" -> "NOT good"'):
        run_here(other, tmp_path / "images")
    make_columns(tmp_path / "x", {0: {"key": keys, "good": [True, True]}})
    with pytest.raises(ConfigError, match=r"inputs changed \(00000000.parquet\)"):
        run_here(CrawlStage(config), tmp_path / "images")


def test_columns_of_other_candidates_are_refused(tmp_path: Path, site: Site) -> None:
    make_candidates(tmp_path / "candidates", {0: _pairs(site, 0)[:2]})
    for number, keys in enumerate(([candidate_key(0, 0)], [candidate_key(0, i) for i in (1, 0)])):
        folder = make_columns(tmp_path / f"x{number}", {0: {"key": keys, "good": [True] * len(keys)}})
        stage = CrawlStage(_config(tmp_path, site, with_columns=[str(folder)], where="good"))
        with pytest.raises(InputError, match="made from other candidates"):
            run_here(stage, tmp_path / "images")
        stage.close()
    assert not site.hits


def test_what_makes_no_sense_is_refused_before_anything_is_fetched(tmp_path: Path, site: Site) -> None:
    make_candidates(tmp_path / "candidates", {0: _pairs(site, 0)})
    language = _columns(tmp_path)[1]
    own = make_columns(tmp_path / "own", {0: {"key": [candidate_key(0, 0)], "url": ["x"]}})
    pq.write_table(pa.table({"url": ["http://a/1"], "caption": ["c"]}), tmp_path / "list.parquet")
    table = pa.table({"url": ["http://a/1"], "text": ["c"]})
    (tmp_path / "parts").mkdir()
    pq.write_table(table, tmp_path / "parts" / "part-0.parquet")
    for options, message in (
        ({"where": "nsfw < 0.5"}, "unknown column 'nsfw'"),
        ({"where": "languag = 'en'", "with_columns": [language]}, "did you mean language"),
        ({"where": "language", "with_columns": [language]}, "not true or false"),
        ({"where": "random() < 0.5"}, "calls random"),
        ({"where": "url = 'x'", "with_columns": [str(own)]}, "stand there already"),
        ({"where": "true", "with_columns": [str(tmp_path / "absent")]}, "does not exist"),
        ({"where": "true", "input": str(tmp_path / "list.parquet")}, "list of its own"),
        ({"with_columns": [language], "input": str(tmp_path / "list.parquet")}, "list of its own"),
        ({"where": "true", "input": str(tmp_path / "parts")}, "no column 'caption'"),
    ):
        with pytest.raises(ConfigError, match=message):
            CrawlStage(_config(tmp_path, site, **options)).plan([])
    assert len(CrawlStage(_config(tmp_path, site, input=str(tmp_path / "parts"))).plan([])) == 1
