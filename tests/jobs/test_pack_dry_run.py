"""`pairmill pack` from the command line: dry runs against packing itself; all its choices together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from jobs import cli
from jobs.pack_dry_run import dry_run
from jobs.pack_funnel import as_json, render
from jobs.saved import load_saved
from pipeline import columns, manifest
from pipeline.shards.view import open_view
from pipeline.stages.pack import PackConfig, pack_stages
from pipeline.stages.pack.captions import CaptionOptions
from pipeline.stages.pack.rule import RuleOptions
from tests.pipeline.folders import crawled, make_columns, make_images, run_here

PICTURE = b"no picture that anybody decodes"
LANGUAGES = ("en", "de", None)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Four shards of twelve rows, the last of each a failed download; texts and domains that come again."""
    images, scores = {}, {}
    for n in range(4):
        rows = [
            crawled(
                n,
                i,
                caption=f"a picture of thing {i % 5}",
                url=f"http://www.site{(n + i) % 3}.example/{n}/{i}.jpg",
                picture=PICTURE,
                **({"reason": "timeout"} if i == 11 else {}),
            )
            for i in range(12)
        ]
        images[n] = rows
        keys = [row["key"] for row in rows[:11]]
        scores[n] = {
            "key": keys,
            "clip_score": [None if i == 4 else (i * 7 + n * 3) % 11 / 10 for i in range(11)],
            "language": [LANGUAGES[(i + n) % 3] for i in range(11)],
            "web_itm": [i / 10 for i in range(11)],
            "synthetic_captions": [["generated"]] * 11,
            "synthetic_itm": [[0.9 if i % 2 else 0.1] for i in range(11)],
        }
    make_images(tmp_path / "images", images)
    make_columns(tmp_path / "columns", scores)
    return tmp_path


def _options(world: Path, *words: str) -> list[str]:
    return ["pack", "--input", f"{world}/images", "--columns", f"[{world}/columns]", *words]


def _packed(world: Path, rule: dict[str, Any], name: str = "packed") -> dict[str, int]:
    config = PackConfig(input=str(world / "images"), columns=(str(world / "columns"),), **rule)
    for stage, output in pack_stages(config, str(world / name)):
        run_here(stage, output)
    total = manifest.total_counts(manifest.read_all(str(world / name))).to_json()
    return {**total["dropped"], "kept": total["out"]}


RULES: list[dict[str, Any]] = [
    {},
    {"where": "clip_score >= 0.3 AND language = 'en'"},
    {"preset": "datacomp-laion2b", "max_per_text": 2},
    {"where": "language IS NOT NULL", "max_per_domain": 5, "top": "40%", "by": "clip_score"},
    {"where": "language = 'de'", "top": "50%", "by": "clip_score", "of": "all"},
    {"captions": CaptionOptions(policy="capfilt"), "max_per_text": 3, "top": 9, "by": "web_itm"},
]


def test_the_figures_are_those_of_packing(world: Path) -> None:
    """And those of another rule beside it; what moved adds up to what both keep."""
    packed = [_packed(world, rule, f"packed-{n}") for n, rule in enumerate(RULES)]
    kept = [
        {
            key
            for p in (world / f"packed-{n}").glob("*.parquet")
            for key in pq.read_table(p)["key"].to_pylist()
        }
        for n in range(len(RULES))
    ]
    for one in range(0, len(RULES), 2):
        pair = (one, one + 1)
        config = PackConfig(input=str(world / "images"), columns=(str(world / "columns"),), **RULES[one])
        found = as_json(dry_run(config, RuleOptions(**RULES[one + 1]), workers=2))
        assert found["rows"] == 48
        for said, number in zip(found["rules"], pair, strict=True):
            assert {**said["dropped"], "kept": said["kept"]} == packed[number]
            languages = said["languages"].values()
            assert sum(language["kept"] for language in languages) == said["kept"]
            assert sum(language["rows"] for language in languages) == 48
        mine, theirs = (kept[number] for number in pair)
        assert found["compared"] == {
            "both": len(mine & theirs),
            "only_this": len(mine - theirs),
            "only_other": len(theirs - mine),
            "neither": 48 - len(mine | theirs),
        }
        swapped = sum(move["rows"] for move in found["moved"] if "kept" in (move["from"], move["to"]))
        assert swapped == len(mine ^ theirs)


def test_counts_are_those_of_sql(world: Path) -> None:
    """The whole funnel by DuckDB over the files, without a line of ours."""
    config = PackConfig(
        input=str(world / "images"),
        columns=(str(world / "columns"),),
        where="language = 'en'",
        max_per_text=2,
        top="50%",
        by="clip_score",
    )
    found = as_json(dry_run(config, None, workers=1))["rules"][0]
    query = f"""
        WITH rows AS (
            SELECT i.key, i.caption, i.status, c.clip_score, c.language
            FROM '{world}/images/*.parquet' i LEFT JOIN '{world}/columns/*.parquet' c USING (key)),
        ruled AS (SELECT * FROM rows WHERE status = 'success' AND language = 'en'),
        best AS (SELECT *, row_number() OVER
            (PARTITION BY caption ORDER BY clip_score DESC NULLS LAST, key) AS place FROM ruled),
        capped AS (SELECT * FROM best WHERE place <= 2),
        topped AS (SELECT *, row_number() OVER (ORDER BY clip_score DESC NULLS LAST, key) AS place2,
            count(*) OVER () AS competing FROM capped)
        SELECT (SELECT count(*) FROM ruled), (SELECT count(*) FROM capped),
            (SELECT count(*) FROM topped WHERE clip_score IS NOT NULL AND place2 <= floor(competing / 2))"""
    ruled, capped, kept = duckdb.sql(query).fetchall()[0]
    assert found["dropped"]["max_per_text"] == ruled - capped > 0
    assert found["kept"] == kept > 0


def test_a_screen_and_a_file(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--where", "clip_score >= 0.5", "--top", "50%", "--by", "clip_score", "--dry-run")
    words += ("--against.where", "clip_score >= 0.5", "--against.max-per-domain", "2")
    assert cli.main(_options(world, *words, "--json", f"{world}/figures.json", "--workers", "2")) == 0
    screen = capsys.readouterr().out
    for line in (
        "48 rows in 4 shards; nothing was written",
        "this rule: clip_score >= 0.5; top 50% of kept by clip_score",
        "the other rule: clip_score >= 0.5; 2 a domain",
        "only by this rule",
        "kept by this",
    ):
        assert line in screen
    figures = json.loads((world / "figures.json").read_text())
    assert figures["rules"][0]["rule"] == {"where": "clip_score >= 0.5", "top": "50%", "by": "clip_score"}
    assert figures["rules"][1]["dropped"]["max_per_domain"] > 0


def test_only_what_a_rule_names_is_read(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    real = columns.read_parquet

    def noting(url: str, names: Any = None) -> Any:
        table = real(url, names)
        read.update(table.column_names)
        return table

    monkeypatch.setattr(columns, "read_parquet", noting)
    config = PackConfig(
        input=str(world / "images"), columns=(str(world / "columns"),), where="clip_score > 0.5"
    )
    dry_run(config, None, workers=1)
    assert read == {"key", "status", "reason", "clip_score", "language"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--where", "nothing > 1"), "unknown column 'nothing'"),
        (("--against.where", "nothing > 1"), "against: .*unknown column 'nothing'"),
        (("--top", "30%"), "needs --by"),
        (("--against.top", "120%", "--against.by", "clip_score"), "at most 100%"),
        (("--preset", "laion400m"), "duplicate_of"),
        (("--input", "/nowhere"), "does not exist"),
    ],
)
def test_bad_rules_are_refused(
    world: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(_options(world, "--dry_run", *words)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_nothing_stored_and_no_output(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["pack", "--dry_run", "--input", f"{tmp_path}/empty"]) == 2
    assert "holds no finished *.tar" in capsys.readouterr().err
    assert cli.main(_options(world)) == 2
    assert "no --output" in capsys.readouterr().err
    assert cli.main(_options(world, "--output", f"{world}/out", "--json", "x.json")) == 2
    assert "belong to a dry run" in capsys.readouterr().err
    make_columns(world / "columns", {n: {"key": [], "clip_score": []} for n in range(4)})
    assert cli.main(_options(world, "--dry_run", "--top", "1", "--by", "clip_score")) == 1
    assert "'clip_score' has no value in any of 44 rows" in capsys.readouterr().err


def test_other_options_are_refused_before_anything_is_chosen(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _packed(world, {"where": "clip_score > 0.2"}, "out")
    words = ("--where", "clip_score > 0.2", "--top", "30%", "--by", "clip_score", "--output", f"{world}/out")
    assert cli.main(_options(world, *words)) == 2
    assert (
        'was packed with other options: by null -> "clip_score"; top null -> "30%"' in capsys.readouterr().err
    )
    assert not list((world / "out").glob("_select_*"))


def test_taken_down_rows_are_told(world: Path) -> None:
    (world / "list.txt").write_text("domain:site1.example\n")
    config = PackConfig(
        input=str(world / "images"), columns=(str(world / "columns"),), tombstones=str(world / "list.txt")
    )
    found = dry_run(config, None, workers=1)
    assert as_json(found)["rules"][0]["dropped"]["taken_down"] == 16
    assert "taken_down" in render(found)


@pytest.mark.prove
@pytest.mark.prove_ci
def test_everything_together_from_the_command_line(world: Path) -> None:
    """A list of uids, a predicate, a preset and a top, packed on Ray; as a view; as was foretold."""
    rows = [row for p in sorted((world / "images").glob("*.parquet")) for row in pq.read_table(p).to_pylist()]
    (world / "uids.txt").write_text("".join(f"{row['uid']}\n" for row in rows if row["key"][-1] != "3"))
    where = "coalesce(language, 'de') = 'de' OR language = 'en'"
    words = ("--uids", f"{world}/uids.txt", "--where", where, "--preset", "none")
    words += ("--top", "30%", "--by", "clip_score", "--group", "4", "--ray.cpus", "2", "--workers", "1")
    assert cli.main(_options(world, *words, "--output", f"{world}/packed")) == 0
    assert cli.main(_options(world, *words, "--dry_run", "--json", f"{world}/figures.json")) == 0
    total = manifest.total_counts(manifest.read_all(f"{world}/packed"))
    said = json.loads((world / "figures.json").read_text())["rules"][0]
    assert (said["kept"], said["dropped"]) == (total.kept, dict(total.dropped))
    assert total.to_json() == {
        "in": 48,
        "out": 12,
        "dropped": {"timeout": 4, "not_in_uids": 4, "below_top": 24, "below_top_null": 4},
    }
    rule = {"uids": f"{world}/uids.txt", "where": where, "preset": "none", "top": "30%", "by": "clip_score"}
    assert _packed(world, {**rule, "view": True}, "view")["kept"] == 12
    assert len(list(open_view(f"{world}/view"))) == 12
    assert cli.main(["verify", f"{world}/packed", f"{world}/view", f"{world}/packed/_select_1_rows"]) == 0
    assert load_saved(f"{world}/packed/_select_7_verdicts").stage.name == "pack-settle"
