"""`pairmill bench train`: its figures are there, from memory and fed by the loader; bad options are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import main
from tests.models.toy_shards import write_shards

SMALL = {
    "image_size": 32, "patch_size": 16, "vision_width": 32, "vision_depth": 2, "vision_heads": 2,
    "text_width": 32, "text_depth": 2, "text_heads": 2, "embed_dim": 16, "max_text_length": 12,
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "albef", "--stage", "3"], "momentum teacher"),
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--batch_size", "5", "--accumulation", "2"], "batch_size 5 must divide"),
    ],
)
def test_bad_options_end_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *words]) == 2
    assert message in capsys.readouterr().err


def bench(folder: Path, *words: str) -> dict:
    result = folder / "figures.json"
    command = [sys.executable, "-m", "jobs.cli", "bench", "train", "--recipe", "clip", "--json", str(result)]
    sizes = ["--model", json.dumps(SMALL), "--batch_size", "8", "--steps", "2", "--warmup", "1"]
    done = subprocess.run(
        [*command, *sizes, *words], capture_output=True, text=True, check=False, timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "samples/s" in done.stdout
    return json.loads(result.read_text())


@pytest.mark.prove
@pytest.mark.prove_ci
def test_figures_from_memory_and_from_shards(tmp_path: Path) -> None:
    found = bench(tmp_path, "--accumulation", "2", "--contrast", "step", "--profile", str(tmp_path / "p.txt"))
    assert len(found["losses"]) == 3
    assert found["losses"][0] > found["losses"][-1]
    assert 0 < found["utilisation"] < 2
    assert found["flops_per_sample"]["teacher"] == 0
    assert found["flops_per_sample"]["backward"] > 1.8 * found["flops_per_sample"]["forward"]
    rate = found["flops_per_sample"]["total"] * found["samples_per_busy_s"]
    assert found["flops_per_s"] == pytest.approx(rate)
    assert found["memory_bytes"] > 50e6
    assert "aten::addmm" in (tmp_path / "p.txt").read_text()
    shards = write_shards(tmp_path / "shards", shards=1, samples=40)
    fed = bench(tmp_path, "--shards", str(shards), "--vocab_size", "64", "--no_flops")
    assert fed["fed by"] == "loader"
    assert fed["samples_per_s"] > 0
    assert "utilisation" not in fed


@pytest.mark.prove
def test_curves_of_both_precisions(tmp_path: Path) -> None:
    result = tmp_path / "curves.json"
    words = ["--batch_size", "8", "--steps", "6", "--warmup", "0", "--lr", "1e-3", "--json", str(result)]
    small = ["--recipe", "clip", "--model", json.dumps(SMALL)]
    assert main(["bench", "train", *small, *words, "--compare_precision"]) == 0
    curves = json.loads(result.read_text())
    assert curves["bf16"] != curves["fp32"]
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.03)
    assert curves["fp32"][0] > curves["fp32"][-1]
