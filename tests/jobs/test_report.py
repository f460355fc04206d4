"""The report: its facts, its words, and what hostile text becomes in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from jobs.report import ReportConfig, report
from jobs.reporting.expressions import conjuncts
from jobs.reporting.gather import Facts, gather, thresholds_in
from jobs.reporting.judge import Judge
from jobs.reporting.pictures import shrink
from jobs.reporting.render import render
from jobs.reporting.rows import MISSED
from pipeline import manifest
from pipeline.errors import ConfigError
from tests.jobs.report_world import (
    PER_SHARD,
    REASONS,
    SHARDS,
    WHERE,
    World,
    build,
    truth_counts,
)


class Reader(HTMLParser):
    """What a browser would see: elements with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def facts(world: World) -> Facts:
    return gather(ReportConfig(**world.options(world.root / "report.html"), thumbnails=200))


@pytest.fixture(scope="module")
def page(facts: Facts) -> Reader:
    return Reader(render(facts))


def test_funnel_counts_are_those_of_the_manifests(world: World, facts: Facts, page: Reader) -> None:
    tried, pictures, kept = SHARDS * PER_SHARD, len(world.pictures), len(world.kept)
    assert f"{tried} of 480 image tags became candidate pairs" in page.text
    assert f"{pictures} of {tried} image links became pictures" in page.text
    assert f"{kept} of {pictures} pictures became training pairs" in page.text
    marked = sum(r["duplicate_of"] is not None for r in world.pictures)
    assert f"{pictures - marked} of {pictures} pictures are no duplicate" in page.text
    assert f"duplicate url caption {marked} " in page.text
    assert dict(facts.stages[1].dropped) == {reason: n * SHARDS for reason, n in REASONS.items()}
    assert facts.pack_stage is not None
    # what the crawl dropped is told at the crawl, and the predicate is told part by part
    duplicates = sum(r["score"] >= 0.25 and r["duplicate_of"] is not None for r in world.pictures)
    assert dict(facts.pack_stage.dropped) == {
        "predicate: clip_score >= 0.25": pictures - kept - duplicates,
        "predicate: duplicate_of IS NULL": duplicates,
    }


def test_kept_and_dropped_pictures_are_those_that_pack_kept_and_dropped(world: World, facts: Facts) -> None:
    assert facts.rows is not None
    packed = pa.concat_tables(
        pq.read_table(path) for path in sorted((world.root / "shards").glob("0*.parquet"))
    )
    shown = {sample.row["key"] for sample in facts.rows.samples["kept"]}
    assert facts.rows.verdicts["kept"] == len(packed) == len(world.kept)
    assert shown < set(packed["key"].to_pylist())
    assert len(shown) == 200
    dropped = {s.row["key"] for v, group in facts.rows.samples.items() if "predicate" in v for s in group}
    assert dropped == {r["key"] for r in world.pictures} - {r["key"] for r in world.kept}


def test_truth_is_held_against_the_rule(world: World, facts: Facts, page: Reader) -> None:
    every, kept = truth_counts(world.pictures), truth_counts(world.kept)
    caught = every[True] - kept[True]
    assert (
        f"Of {every[True]} wrong captions, {caught} were dropped and {kept[True]} slipped through"
        in page.text
    )
    assert f"Of {every[False]} right captions, {kept[False]} were kept" in page.text
    pairs = [
        (r["score"], w["score"])
        for r in world.pictures
        if not r["wrong"]
        for w in world.pictures
        if w["wrong"]
    ]
    assert facts.auc == pytest.approx(sum((r > w) + (r == w) / 2 for r, w in pairs) / len(pairs))
    assert facts.rows is not None
    assert {s.row["key"] for s in facts.rows.samples[MISSED]} == {r["key"] for r in world.kept if r["wrong"]}


def test_histogram_and_what_if_table_count_the_scores(world: World, facts: Facts, page: Reader) -> None:
    assert facts.rows is not None
    assert facts.thresholds == (0.25,)
    assert int(facts.rows.histograms["kept"].sum()) == len(world.kept)
    above = sum(r["score"] >= 0.3 for r in world.pictures)
    assert re.search(rf"≥ 0\.30 {above} ", page.text)
    assert "threshold 0.25" in page.text


def test_every_picture_shown_is_a_small_jpeg_inside_the_page(facts: Facts, page: Reader) -> None:
    images = page.all("img")
    assert facts.survey is not None
    assert len(images) == len(facts.survey.large) + len(facts.survey.small)
    assert facts.pictures.left_out == 0
    for image in images:
        head, _, data = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        assert base64.b64decode(data)[:2] == b"\xff\xd8"
        assert image["alt"]


def test_hostile_text_is_text(page: Reader) -> None:
    assert page.all("script") == [{"type": "application/json", "id": "what-if-data"}, {}]  # data, and ours
    assert page.text.count('<script>document.title = "owned"</script>') >= 1 + 4  # a card, lost links
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "turned gnp.exe around [31m" in page.text  # neither the direction nor the terminal is turned
    assert not re.search(
        "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page.text
    )
    assert max(len(word) for word in page.words if "مربع" in word) <= 220


def test_links_lead_to_web_addresses_only(page: Reader) -> None:
    links = [a for a in page.all("a") if not str(a["href"]).startswith("#")]
    assert links
    for link in links:
        assert re.fullmatch(r"http://pictures\.example/\d/\d+\.jpg", str(link["href"]))
        assert {"noopener", "noreferrer"} <= set(str(link["rel"]).split())


def test_page_loads_nothing_and_its_policy_allows_nothing_else(facts: Facts, page: Reader) -> None:
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    text = render(facts)
    style = text.split("<style>")[1].split("</style>")[0]
    mark = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    script = text.split("<script>")[1].split("</script>")[0]
    ours = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"img-src data:; style-src 'sha256-{mark}'; script-src 'sha256-{ours}'"
    assert policy == f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    assert "url(" not in style
    assert "@import" not in style
    loading = [a.get("src") or a.get("srcset") for _, a in page.elements if "src" in a or "srcset" in a]
    assert all(str(address).startswith("data:") for address in loading)
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    assert not any("style" in attributes for _, attributes in page.elements)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval|fetch|XMLHttp|import\b", script)


def test_same_input_gives_the_same_page_and_another_seed_other_pictures(world: World, tmp_path: Path) -> None:
    pages = []
    for seed in (0, 0, 1):
        config = ReportConfig(**world.options(tmp_path / "r.html"), thumbnails=3, seed=seed)
        assert report(config) == 0
        pages.append((tmp_path / "r.html").read_bytes())
    assert pages[0] == pages[1] != pages[2]
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_configuration_is_shown_without_secrets(page: Reader) -> None:
    assert "stage: crawl" in page.text
    assert "http://…@proxy.example:3128/?…" in page.text
    assert "secret" not in page.text
    assert "recipe: albef" in page.text
    assert "evaluate (albef) model: runs/albef pool: 1000" in page.text


def test_training_and_evaluation_are_shown(facts: Facts, page: Reader) -> None:
    (run,) = facts.runs
    assert [curve.name for curve in run.curves] == ["loss", "itc", "itm", "mlm", "lr", "samples_per_s"]
    assert (run.steps, run.torn) == (1500, 1)
    assert "1 line of metrics.jsonl cut off" in page.text
    assert "Picture to caption (TR) 12.1 % 33.4 % 47.1 %" in page.text
    assert "all words 58.0 % 21.0 % 16.0 % 2,964" in page.text
    assert "+37.0 points" in page.text


def test_a_result_file_of_an_unknown_shape_becomes_a_table(world: World, tmp_path: Path) -> None:
    (tmp_path / "run" / "eval").mkdir(parents=True)
    result = {"accuracy": 0.75, "per_class": {"<b>dog</b>": 0.5}, "notes": ["ignored"]}
    (tmp_path / "run" / "eval" / "vqa_v2.json").write_text(json.dumps(result))
    text = Reader(render(gather(ReportConfig(runs=[str(tmp_path / "run")])))).text
    assert "vqa v2" in text
    assert "accuracy 0.750" in text
    assert "<b>dog</b> 0.500" in text


def test_stages_that_have_not_run_are_told(tmp_path: Path) -> None:
    world = build(tmp_path, pack=False)
    options = {**world.options(tmp_path / "report.html"), "runs": [str(tmp_path / "runs" / "none")]}
    facts = gather(ReportConfig(**options))
    text = Reader(render(facts)).text
    assert "pack This stage has not run" in text
    assert "none has not run: there is no such folder" in text
    assert f"Crawled, not yet judged {len(world.pictures)} pictures" in text
    assert facts.thresholds == ()
    assert gather(ReportConfig(**options, threshold=0.31)).thresholds == (0.31,)


def test_unfinished_and_broken_units_are_told(tmp_path: Path) -> None:
    world = build(tmp_path)
    (gone,) = (tmp_path / "images" / "_pairmill" / "manifests").glob("00000002.*")
    gone.unlink()
    (tmp_path / "columns" / "clip" / "00000001.parquet").write_bytes(b"PAR1 torn")
    quarantine = manifest.quarantine_url(str(tmp_path / "images"), 2)
    Path(quarantine).parent.mkdir(parents=True)
    Path(quarantine).write_text(json.dumps({"error": "worker died <3 times>"}))
    facts = gather(ReportConfig(**world.options(tmp_path / "report.html")))
    text = Reader(render(facts)).text
    assert "1 unit failed and stood aside; unit 2: worker died <3 times>" in text
    assert "1 image shard could not be judged" in text
    assert "00000001.parquet: not a readable parquet" in text
    assert "Counted over 1 of 2 image shards" in text
    assert facts.pack_stage is not None
    assert any(reason == "predicate" for reason, _ in facts.pack_stage.dropped)  # no guess from a part


def test_columns_that_changed_after_packing_are_told(tmp_path: Path) -> None:
    world = build(tmp_path)
    options = ReportConfig(**world.options(tmp_path / "report.html"))
    assert gather(options).notes == ()
    sidecar = tmp_path / "columns" / "clip" / "00000000.parquet"
    table = pq.read_table(sidecar)
    pq.write_table(table.set_column(1, "clip_score", pa.nulls(len(table), pa.float32())), sidecar)
    facts = gather(options)
    now = sum(row["shard"] != 0 for row in world.kept)
    assert facts.notes == (
        f"The images or columns have changed since they were packed: the rule would now keep {now} pictures, "
        f"packed were {len(world.kept)}",
    )
    assert "no value for clip_score >= 0.25" in Reader(render(facts)).text


def test_only_a_bounded_choice_of_shards_is_read(world: World, tmp_path: Path) -> None:
    facts = gather(ReportConfig(**world.options(tmp_path / "r.html"), max_shards=1))
    assert facts.rows is not None
    assert (facts.rows.shards, facts.shards_in_all) == (1, SHARDS)
    assert f"Counted over 1 of {SHARDS} image shards" in Reader(render(facts)).text


def test_img2dataset_folder_without_manifests(world: World, tmp_path: Path) -> None:
    images = tmp_path / "foreign"
    images.mkdir()
    for suffix in (".tar", ".parquet"):
        (images / f"00000{suffix}").write_bytes((world.root / "images" / f"00000000{suffix}").read_bytes())
    stats = {"successes": 100, "status_dict": {"success": 100, "HTTP Error 404": 40}, "duration": 3.0}
    (images / "00000_stats.json").write_text(json.dumps(stats))
    facts = gather(ReportConfig(images=str(images)))
    assert "100 of 140 image links became pictures" in Reader(render(facts)).text
    assert len(facts.pictures) == 12


def test_a_picture_that_cannot_be_read_leaves_a_placeholder(world: World, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    data = (world.root / "images" / "00000000.tar").read_bytes()
    (images / "00000.tar").write_bytes(data.replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    (images / "00000.parquet").write_bytes((world.root / "images" / "00000000.parquet").read_bytes())
    (images / "00000_stats.json").write_text(json.dumps({"successes": 100, "status_dict": {"success": 100}}))
    page = Reader(render(gather(ReportConfig(images=str(images), thumbnails=2))))
    assert page.all("img") == []
    assert page.text.count("picture cannot be shown") == 2


def test_shrink_refuses_what_is_no_picture() -> None:
    assert shrink(b"") is None
    assert shrink(b"<svg onload=alert(1)>") is None
    assert shrink(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to report on"),
        ({"images": "/nowhere/images", "runs": ["/nowhere/runs"]}, "none of the given folders exists"),
        ({"images": ".", "output": "report.pdf"}, "must be an HTML file"),
        ({"images": ".", "thumbnails": 0}, "thumbnails 0 must be in 1..200"),
        ({"images": ".", "truth": "/nowhere/truth.parquet"}, "is no readable parquet file"),
    ],
)
def test_impossible_requests(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        report(ReportConfig(**{"output": str(tmp_path / "r.html"), **options}))
    assert not list(tmp_path.iterdir())


def test_truth_without_its_columns(world: World, tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="has no column 'is_wrong'"):
        report(ReportConfig(images=str(world.root / "images"), truth=str(tmp_path / "t.parquet")))


def test_command_line(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "report.html"
    words = ["report", f"--images={world.root / 'images'}", f"--output={output}", "--title=Mine & yours"]
    assert cli.main(words) == 0
    assert str(output) in capsys.readouterr().out
    assert "<h1>Mine &amp; yours</h1>" in output.read_text()
    assert cli.main(["report", "--images=/nowhere"]) == 2


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (WHERE, (0.25,)),
        ("(language = 'en' AND clip_score > .28) OR (clip_score>=0.26)", (0.26, 0.28)),
        ("0.3 <= clip_score AND my_clip_score > 0.9", (0.3,)),
        ("clip_score IS NOT NULL", ()),
    ],
)
def test_thresholds_in_a_rule(rule: str, expected: tuple[float, ...]) -> None:
    assert thresholds_in(rule, "clip_score") == expected


def test_parts_of_a_predicate() -> None:
    assert conjuncts(WHERE) == ["clip_score >= 0.25", "duplicate_of IS NULL"]
    assert len(conjuncts("a > 1 AND (b OR c = 'x AND y') AND d BETWEEN 1 AND 2")) == 3
    assert len(conjuncts("NOT (a > 1 AND b > 1)")) == 1


def test_a_false_part_is_named_before_a_missing_value() -> None:
    table = pa.table(
        {
            "status": ["success"] * 4,
            "reason": pa.nulls(4, pa.string()),
            "a": pa.array([1, None, None, 9], pa.int32()),
            "b": pa.array([9, 1, 9, 9], pa.int32()),
        }
    )
    judge = Judge(settings={"where": "a > 5 AND b > 5", "preset": None})
    assert judge.explain(table).to_pylist() == [
        "predicate: a > 5",
        "predicate: b > 5",
        "predicate_null: a > 5",
        None,
    ]
