"""The evaluate command on a model folder with random weights: files, numbers, refusals, rerun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli
from jobs.reporting.runs import read_run
from jobs.reporting.tables import results
from tests.models.test_inference_clip import export
from tests.models.toy_shards import write_shards

WORDS = "colour: [red, green, blue, yellow]\nrelation: [left, right]\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an ALBEF, held-out shards and a word list."""
    root = tmp_path_factory.mktemp("evaluate")
    (root / "run").mkdir()
    export(root / "run", "albef")
    write_shards(root / "shards", shards=2, samples=30, seed=9)
    (root / "words.yaml").write_text(WORDS)
    return root


def arguments(world: Path, *more: str) -> list[str]:
    options = [
        "--model",
        str(world / "run"),
        "--shards",
        str(world / "shards"),
        "--pool",
        "50",
        "--top_k",
        "8",
    ]
    return ["evaluate", *options, "--device", "cpu", *more]


def test_results_stand_and_a_rerun_leaves_them(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(world, "--mlm_words", str(world / "words.yaml"))
    assert cli.main(command) == 0
    printed = capsys.readouterr().err
    assert "retrieval over 50 pictures and 50 captions" in printed
    assert (world / "run" / "eval" / "summary.txt").read_text() in printed
    retrieval = json.loads((world / "run" / "eval" / "retrieval.json").read_text())
    assert retrieval["pool"] == {"pictures": 50, "captions": 50}
    assert retrieval["top_k"] == 8
    assert retrieval["reranked"] is True
    assert 0 < retrieval["pairs_matched"] <= 2 * 8 * 50
    assert retrieval["chance"] == {"r1": 0.02, "r5": 0.1, "r10": 0.2}
    assert set(retrieval["tr"]) == set(retrieval["ir"]) == {"r1", "r5", "r10"}
    mlm = json.loads((world / "run" / "eval" / "mlm.json").read_text())
    assert set(mlm["accuracy"]) == {"with_picture", "withheld", "shuffled"}
    assert set(mlm["words_masked"]) == {"all", "colour", "relation"}
    # random weights: what is not asked of the picture cannot be right more often than by chance
    assert retrieval["withheld"]["ir"] == pytest.approx(retrieval["chance"])
    itm = json.loads((world / "run" / "eval" / "itm.json").read_text())
    assert itm["pairs"] == 100
    assert {itm["accuracy"]["withheld"][kind]["mean"] for kind in ("hard", "random")} == {0.5}
    assert not (world / "run" / "eval" / "captions.json").exists()

    assert json.loads((world / "run/eval/evaluation.json").read_text())["results"] == [
        "itm",
        "mlm",
        "retrieval",
    ]
    before = (world / "run" / "eval" / "retrieval.json").stat().st_mtime_ns
    assert cli.main(command) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (world / "run" / "eval" / "retrieval.json").stat().st_mtime_ns == before


def test_the_report_shows_every_result(world: Path) -> None:
    assert cli.main(arguments(world, "--mlm_words", str(world / "words.yaml"))) == 0
    shown = results([read_run(str(world / "run"))])
    assert [part["name"] for part in shown] == [
        "run: retrieval", "run: matched or not", "run: masked words",
    ]  # fmt: skip
    [recall], [match], [words] = (part["tables"] for part in shown)
    assert [row[0] for row in recall.rows][-3:] == ["TR, wrong picture", "IR, wrong picture", "By chance"]
    assert match.head == ("Wrong picture of a pair", "With the picture", "Picture withheld", "Wrong picture")
    assert [row[0] for row in match.rows] == ["hard", "random"]
    assert {row[2] for row in match.rows} == {"50.0\u00a0%"}
    assert words.head[-1] == "Words masked"


def test_options_are_parsed_without_torch(world: Path) -> None:
    code = (
        "import sys; from jobs import cli; cli.parse_verb(sys.argv[1], sys.argv[2:]);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *arguments(world)], check=True)
    subprocess.run([sys.executable, "-c", code, "train", "--shards", "x", "--output", "y"], check=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pool", "61"], "pool 61: the shards hold 60 readable pictures"),
        (["--model", "nowhere"], "'nowhere' holds no finished model"),
        (["--shards", "nowhere"], r"'nowhere': no .tar files"),
        (["--mlm_words", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
        (["--mlm_words", '{"x": ["zebra"]}'], "none of 50 captions holds a word of x"),
    ],
)
def test_impossible_options_end_with_2(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main(arguments(world, "--output", str(tmp_path / "out"), *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
