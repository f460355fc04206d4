"""The score stage's benchmark: its pictures, its sums, and both sides over a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench import score
from jobs.bench.score import Spent, make_images, summarise, table
from jobs.cli import main as command
from pipeline.shards.reader import iter_samples
from pipeline.stages.score import ScoreConfig
from tests.pipeline.test_score import write_model


def test_ours_is_a_share_of_the_bare_pass_repeat_by_repeat() -> None:
    spent = {
        "ours": [Spent(cpu=10, wall=20), Spent(cpu=20, wall=40), Spent(cpu=10, wall=10)],
        "bare": [Spent(cpu=9, wall=10), Spent(cpu=19, wall=50), Spent(cpu=8, wall=5)],
    }
    report = summarise(spent, 100, by="cpu")
    assert report["ratios"] == [0.9, 0.95, 0.8]
    assert report["ratio"] == 0.9
    assert report["pairs_per_s"]["cpu"]["ours"] == 10
    assert "| bare forward | 11.11 | 10.00 |" in table(report)
    assert "90.0 % of the bare pass by CPU time (0.900, 0.950, 0.800)" in table(report)
    assert summarise(spent, 100, by="wall")["ratios"] == [0.5, 1.25, 0.5]


def test_the_shards_hold_photo_like_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "VARIANTS", 1)
    make_images(tmp_path / "images", 6, 2)
    samples = [s for n in range(2) for s in iter_samples(str(tmp_path / "images" / f"{n:05d}.tar"))]
    assert len({s.key for s in samples}) == 6
    assert all(len(s.members["jpg"]) > 5000 for s in samples)


def test_both_sides_run_and_every_pair_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score, "VARIANTS", 1)
    model = write_model(tmp_path / "model")
    sizes = ["--pairs", "8", "--shards", "2", "--batch_size", "2", "--repeats", "2"]
    place = tmp_path / "figures.json"
    assert command(["bench", "score", "--model", str(model), *sizes, "--json", str(place)]) == 0
    out = capsys.readouterr().out
    assert "% of the bare pass by CPU time" in out
    assert "(own weights)" in out
    figures = json.loads(place.read_text())
    assert [len(runs) for runs in figures["s"].values()] == [2, 2]
    assert all(run["cpu"] > 0 for runs in figures["s"].values() for run in runs)
    assert figures["facts"]["threads"] == 1


def test_a_pair_that_is_not_judged_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "VARIANTS", 1)
    make_images(tmp_path / "images", 4, 1)
    model = write_model(tmp_path / "model")
    config = ScoreConfig(input=str(tmp_path / "images"), model=str(model), batch_size=1)
    with pytest.raises(RuntimeError, match="judged 4 of 5 pairs"):
        score.make_sides(config, tmp_path, 5)["ours"]()


def test_impossible_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--pairs", "100"], "multiple of shards x batch size, 128"),
        (["--repeats", "0"], "must be at least 1"),
        (["--model", "ViT-B-99"], "neither a model/ folder nor a name"),
    ):
        assert command(["bench", "score", *options]) == 2
        assert message in capsys.readouterr().err
