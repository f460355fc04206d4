"""What the report tells of curation: languages, hosts, duplicates, captions; how large its page gets."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.report import ReportConfig, report
from jobs.reporting.gather import Facts, gather
from jobs.reporting.pictures import thumbnails
from jobs.reporting.render import render
from jobs.reporting.sites import hosts_of
from jobs.reporting.survey import Survey
from pipeline.errors import ConfigError
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from tests.jobs import curated_world
from tests.jobs.curated_world import Curated
from tests.jobs.test_report import Reader


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curated_world.build(tmp_path_factory.mktemp("curated"))


@pytest.fixture(scope="module")
def facts(world: Curated) -> Facts:
    return gather(ReportConfig(**world.options(world.root / "report.html")))


@pytest.fixture(scope="module")
def survey(facts: Facts) -> Survey:
    assert facts.survey is not None
    return facts.survey


@pytest.fixture(scope="module")
def page(facts: Facts) -> Reader:
    return Reader(render(facts))


def kept(world: Curated) -> list[dict]:
    def passes(row: dict) -> bool:
        score, least = row["clip_score"], 0.28 if row["language"] == "en" else 0.26
        return (
            score is not None
            and np.float32(score) >= np.float32(least)
            and row["unsafe"] is not None
            and row["unsafe"] < 0.5
            and row["near_duplicate_of"] is None
            and row["duplicate_of"] is None
            and len(row["caption"]) >= 5
        )

    return [row for row in world.pictures if passes(row)]


def test_the_rule_is_taken_apart_and_told(world: Curated, facts: Facts, survey: Survey, page: Reader) -> None:
    assert survey.what_if.kept == len(kept(world))
    assert facts.notes == ()
    assert facts.thresholds == (0.26, 0.28)
    told = [(cut.value, cut.op, cut.start, bool(cut.mark)) for cut in survey.what_if.rule.cuts]
    assert told == [
        ("clip_score", ">=", 0.28, False),
        ("clip_score", ">=", 0.26, False),
        ("unsafe", "<", 0.5, False),
        ("near_distance", ">", None, True),
        ("length(caption)", ">=", 5.0, False),
        ("semantic_similarity", "<", None, True),
        ("contamination_distance", ">", None, True),
        ("quality_sharpness", ">=", None, False),
        ("quality_side", ">=", None, False),
        ("web_itm", ">=", None, False),
        ("web_clip", ">=", None, False),
    ]
    assert "the rule drops all with a near_duplicate_of" in page.text
    assert "clip_score below what the rule asks of it" in page.text


def test_languages_have_counts_and_thresholds_of_their_own(
    world: Curated, survey: Survey, page: Reader
) -> None:
    every = Counter(row["language"] or "" for row in world.pictures)
    passed = Counter(row["language"] or "" for row in kept(world))
    assert {name: tuple(c) for name, c in survey.languages.counts.items()} == {
        name: (every[name], passed[name]) for name in every
    }
    assert survey.languages.threshold("en") == 0.28
    assert survey.languages.threshold("de") == survey.languages.threshold("") == 0.26
    scored = Counter(r["language"] or "" for r in world.pictures if r["clip_score"] is not None)
    assert {name: int(h.sum()) for name, h in survey.languages.histograms.items()} == scored
    assert "clip_score: en" in page.text


def test_hosts_and_opt_outs(world: Curated, survey: Survey, page: Reader) -> None:
    def host(row: dict) -> str:
        return (urlsplit(row["url"]).hostname or "").removeprefix("www.")

    passed = {row["key"] for row in kept(world)}
    links, pictures, left = Counter(), Counter(), Counter()
    for row in world.rows:
        links[host(row)] += 1
        pictures[host(row)] += row["status"] == "success"
        left[host(row)] += row["key"] in passed
    assert survey.sites.hosts.counts == {h: [links[h], pictures[h], left[h]] for h in links}
    assert survey.sites.words == {
        ("opt_out", words): n * curated_world.SHARDS for words, n in curated_world.OPT_OUTS.items()
    }
    out = Counter(host(row) for row in world.rows if row["reason"] == "opt_out")
    assert survey.sites.asked.counts == {name: [n] for name, n in out.items()}
    assert "opted out: robots.txt 20" in page.text
    assert "40 links of sites that asked not to be collected" in page.text


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://WWW.Shop.Example:8080/a?b#c", "shop.example"),
        ("http://user:secret@a.example/x@y", "a.example"),
        ("http://[::1]:80/x", "[::1]"),
        ("javascript:alert(1)", ""),
        (None, ""),
    ],
)
def test_the_host_of_an_address(url: str | None, host: str) -> None:
    assert hosts_of(pa.chunked_array([pa.array([url], pa.string())])).to_pylist() == [host]


def test_clusters_of_duplicates_and_hits_of_benchmarks(world: Curated, survey: Survey, page: Reader) -> None:
    for mark in ("duplicate_of", "near_duplicate_of", "semantic_duplicate_of"):
        marked = Counter(row[mark] for row in world.pictures if row[mark])
        kind = survey.clusters.kinds[mark]
        assert kind.winners.counts == {key: [n] for key, n in marked.items()}
        assert kind.marked == sum(marked.values())
        for key, losers in kind.losers.items():
            assert len(losers) == min(5, marked[key])
            assert survey.winners[key][1]["key"] == key
    rows = {row["key"]: row for row in world.pictures}
    for loser in survey.clusters.kinds["near_duplicate_of"].losers[world.pictures[3]["key"]]:
        assert loser.measure == rows[loser.sample.row["key"]]["near_distance"]
    assert survey.clusters.sets == {"coco": 6}
    assert [distance for *_, distance in survey.clusters.hits] == [0, 1, 2, 3, 4, 5]
    assert "6 pictures that a benchmark holds too" in page.text
    assert "coco/val2014_3</script>.jpg" in page.text


def test_captions_before_and_after_with_what_pack_chose(world: Curated, survey: Survey, page: Reader) -> None:
    worked = [row for row in world.pictures if row["synthetic_captions"]]
    found = survey.captions
    assert (found.worked, found.texts) == (len(worked), sum(len(r["synthetic_captions"]) for r in worked))
    assert found.better == sum(
        max(r["synthetic_itm"]) > r["web_itm"] for r in worked if r["web_itm"] is not None
    )
    packed = pa.concat_tables(pq.read_table(p) for p in (world.root / "shards").glob("0*.parquet"))
    chosen = {r["key"]: (r["caption"], r["caption_source"]) for r in packed.to_pylist()}
    assert len(found.pairs) == 8
    rows = {row["key"]: row for row in worked}
    for pair in found.pairs:
        key = pair.sample.row["key"]
        assert pair.packed == chosen[key]
        assert {one.text for one in pair.texts} <= set(rows[key]["synthetic_captions"])
        seconds = [one.clip2 for one in pair.texts]
        known = [v for v in seconds if v is not None]
        assert seconds == [*sorted(known, reverse=True), *[None] * (len(seconds) - len(known))]
    assert page.text.count("packed") >= 8


def test_nothing_of_it_is_asked_of_a_crawl_without_columns(world: Curated) -> None:
    text = Reader(render(gather(ReportConfig(images=str(world.root / "images"))))).text
    assert "What if a threshold moved" not in text
    assert "Captions before and after" not in text
    assert "Most frequent hosts" in text


def test_a_rule_whose_columns_are_not_given_is_told(world: Curated, tmp_path: Path) -> None:
    options = {**world.options(tmp_path / "r.html"), "columns": [world.folders[0]]}
    text = Reader(render(gather(ReportConfig(**options)))).text
    assert "4 image shards could not be judged" in text
    assert "names the unknown column" in text
    assert "What if a threshold moved" not in text


@pytest.mark.parametrize(
    "where", ["1 = 1", "TRY_CAST(caption AS INTEGER) > 3 OR true", "CAST('3' AS INTEGER) > 2"]
)
def test_rules_without_a_threshold(world: Curated, tmp_path: Path, where: str) -> None:
    other = curated_world.repack(world, tmp_path / "shards", where, columns=())
    options = {"images": str(world.root / "images"), "shards": other, "output": str(tmp_path / "r.html")}
    facts = gather(ReportConfig(**options))
    assert facts.survey is not None
    assert facts.survey.what_if.kept == len(world.pictures)
    assert facts.survey.rows.problems == []
    assert "What if a threshold moved" not in Reader(render(facts)).text


def test_only_what_is_needed_is_read(world: Curated, survey: Survey) -> None:
    table = survey.source.read(survey.source.chosen[0])
    assert {"clip_score", "synthetic_captions", "near_distance"} <= set(table.column_names)
    assert not {"unsafe_label", "uid", "semantic_cluster"} & set(table.column_names)


def test_sharing_shards_among_other_threads_changes_nothing(
    world: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for threads in (1, 7):
        monkeypatch.setattr("jobs.reporting.view.THREADS", threads)
        path = world.root / f"threads{threads}.html"
        assert report(ReportConfig(**world.options(path))) == 0
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


def noise(path: Path, number: int) -> list[tuple[str, str]]:
    """A tar of pictures that JPEG cannot make small."""
    rng = np.random.default_rng(0)
    keys = [f"k{i}" for i in range(number)]
    with ShardWriter(path) as shard:
        for key in keys:
            sink = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (240, 240, 3), dtype=np.uint8)).save(
                sink, "JPEG", quality=95
            )
            shard.write(Sample(key, {"jpg": sink.getvalue()}))
    return [(str(path), key) for key in keys]


def test_pictures_stay_within_their_budget(tmp_path: Path) -> None:
    places = noise(tmp_path / "noise.tar", 24)
    free = thumbnails(places, places, budget=10**9)
    whole = sum(map(len, [*free.large.values(), *free.small.values()]))
    assert (len(free), free.left_out) == (48, 0)
    half = thumbnails(places, places, budget=whole // 2)
    assert (len(half), half.left_out) == (48, 0)  # smaller, and all there
    assert sum(map(len, [*half.large.values(), *half.small.values()])) <= whole // 2
    few = thumbnails(places, places, budget=whole // 60)
    assert len(few) + few.left_out == 48
    assert few.left_out
    assert sum(map(len, [*few.large.values(), *few.small.values()])) <= whole // 60


def test_the_page_stays_below_its_size_and_says_what_is_missing(world: Curated, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    noise(folder / "00000.tar", 220)
    rows = [f"k{i}" for i in range(220)]
    table = {"key": rows, "url": rows, "caption": rows, "status": ["success"] * 220}
    pq.write_table(pa.table(table), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"successes": 220, "status_dict": {"success": 220}}')
    path = tmp_path / "r.html"
    assert report(ReportConfig(images=str(folder), output=str(path), thumbnails=200, page_mb=3)) == 0
    assert path.stat().st_size <= 3_000_000
    text = path.read_text()
    shown = text.count("data:image/jpeg")
    assert f"{200 - shown} pictures left out" in text if shown < 200 else "pictures left out" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sample": 0}, "sample 0 must be in 1..200000"), ({"page_mb": 1}, "page_mb 1 must be at least 3")],
)
def test_impossible_sizes(options: dict, message: str, world: Curated) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        report(ReportConfig(images=str(world.root / "images"), **options))
