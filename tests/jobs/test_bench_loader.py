"""The loader's benchmark: its shards, what it checks, its sums; both sides in the full proof."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from jobs.bench import loader, loader_run
from jobs.bench.loader import SHARDS, Work, check, make_shards, summarise, table
from jobs.cli import main as command
from tests.models.test_training_data import LetterTokenizer


def test_sums_are_marginal_and_compared_repeat_by_repeat() -> None:
    costs = {"ours": [(3.0, 5.0), (3.0, 4.0)], "bytes": [(2.0, 3.0)] * 2, "peer": [(9.0, 13.0), (8.0, 11.0)]}
    report = summarise(costs, 1000)
    assert report["cpu_ms"]["ours"] == [2.0, 1.0]
    assert report["ratios"]["ours"] == [2.0, 3.0]
    assert report["times_the_peer"]["bytes"] == 3.5
    assert report["samples_per_cpu_s"]["bytes"] == 1000
    assert "| open_clip, webdataset | 3.50 | 286 | 1.00 | 1.00, 1.00 |" in table(report)


def test_a_side_that_gives_too_few_samples_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"samples": 31, "shapes": [["torch.float32", 3, 224, 224]]}
    code = f"print({json.dumps(json.dumps(answer))})"
    monkeypatch.setattr(loader, "_command", lambda side, work, folder: [sys.executable, "-c", code])
    work = Work(shards="", braces="", samples=32)
    with pytest.raises(RuntimeError, match="asked for 32 samples"):
        check("ours", work, tmp_path, {})
    assert check("ours", Work(shards="", braces="", samples=31), tmp_path, {})["samples"] == 31


def test_ours_delivers_what_the_shards_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "VARIANTS", 1)
    monkeypatch.setattr(loader_run, "_OpenClipTokenizer", LetterTokenizer)
    make_shards(tmp_path / "shards", 32)
    assert len(list((tmp_path / "shards").glob("*.tar"))) == SHARDS
    work = Work(shards=str(tmp_path / "shards"), braces="", samples=32, batch_size=16, workers=1, size=32)
    for side, kind in ((loader_run.ours, torch.float32), (loader_run.ours_as_bytes, torch.uint8)):
        batches = list(side(work))
        assert [(p.dtype, *p.shape) for p, _ in batches] == [(kind, 16, 3, 32, 32)] * 2
        assert len({tuple(row) for _, ids in batches for row in ids.tolist()}) == 32


def test_impossible_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--sizes", "100", "200"], ["--sizes", "1024", "512"], ["--workers", "0"]):
        assert command(["bench", "loader", *options]) == 2
    assert "multiples of batch x workers" in capsys.readouterr().err


@pytest.mark.prove
def test_bench_loader_runs_both_sides(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = [
        "--sizes",
        "512",
        "1024",
        "--samples",
        "512",
        "--repeats",
        "1",
        "--json",
        str(tmp_path / "x.json"),
    ]
    assert command(["bench", "loader", *options, "--environments", str(tmp_path / "environments")]) == 0
    assert "open_clip, webdataset" in capfd.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["times_the_peer"]["peer"] == 1.0
