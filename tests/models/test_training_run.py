"""Real runs over two gloo processes: ZeRO stages agree, a stopped run goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.train import train
from models.training.checkpoint import list_complete
from models.training.config import AugmentConfig, TrainConfig, ValidateConfig, ZeroConfig, to_dict
from pipeline.errors import ConfigError
from tests.models.toy_shards import write_shards

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
TINY = {
    "image_size": 32, "patch_size": 16, "vision_width": 32, "vision_depth": 1, "vision_heads": 2,
    "text_width": 32, "text_depth": 2, "fusion_start": 1, "text_heads": 2, "embed_dim": 16,
    "max_text_length": 16, "text_positions": 16, "queue_size": 32, "momentum": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("shards"), shards=2, samples=20))


def configure(folder: str, output: Path, **changes: object) -> TrainConfig:
    options = {
        "shards": folder, "output": str(output), "recipe": "albef", "model": TINY, "vocab_size": 64,
        "batch_size": 8, "accumulation": 2, "steps": STEPS, "lr": 1e-2, "warmup_steps": 2, "processes": 2,
        "checkpoint_every": 0, "log_every": 1, "clip_grad": 0.5,
        "augment": AugmentConfig(crop_scale=(0.6, 1.0)),
    }  # fmt: skip
    return TrainConfig(**{**options, **changes})  # type: ignore[arg-type]


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
    return [{k: r[k] for k in ("loss", "itc", "itm", "mlm", "grad_norm")} for r in rows]


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run at ZeRO 2."""
    run = tmp_path_factory.mktemp("runs") / "zero2"
    assert train(configure(shards, run)) == 0
    return run


def assert_equal_curves(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], tolerance: float
) -> None:
    assert len(ours) == len(theirs) == STEPS
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=tolerance), f"{name} at step {step}"


@pytest.mark.parametrize("stage", [0, 1])
def test_zero_stages_give_one_loss_curve(shards: str, undisturbed: Path, tmp_path: Path, stage: int) -> None:
    run = tmp_path / f"zero{stage}"
    assert train(configure(shards, run, zero=ZeroConfig(stage=stage))) == 0
    assert_equal_curves(losses(run), losses(undisturbed), 1e-4)
    curve = [row["loss"] for row in losses(run)]
    assert abs(curve[0] - curve[-1]) > 1e-2, "nothing was learnt, so equal curves say nothing"


def test_a_run_stopped_by_sigterm_goes_on_with_half_the_processes_as_if_undisturbed(
    shards: str, undisturbed: Path, tmp_path: Path
) -> None:
    """Stopped on two processes, finished on one; validated on the way, which changes nothing."""
    run = tmp_path / "stopped"
    held = write_shards(tmp_path / "held", shards=1, samples=16, seed=9)
    validate = ValidateConfig(shards=str(held), every=2, samples=8, pool=10, keep_best="val_loss")
    config = configure(shards, run, checkpoint_every=2, keep_checkpoints=1, validate=validate)
    process = start(config, tmp_path)
    wait_for_rows(run, 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    [saved] = list_complete(run)
    stopped_at = len((run / "metrics.jsonl").read_text().splitlines())
    assert saved.name == f"step_{stopped_at:08d}"
    assert 3 <= stopped_at < STEPS
    assert not (run / "model").exists()

    # what a kill in the middle of a save leaves behind is no checkpoint
    (run / "checkpoints" / "step_00000099.tmp").mkdir()
    assert train(replace(config, processes=1)) == 0
    assert_equal_curves(losses(run), losses(undisturbed), 1e-5)
    assert not (run / "checkpoints" / "step_00000099.tmp").exists()

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = {row["step"]: row for row in rows if "val_loss" in row}
    assert list(validated) == [2, 4, 6, 8]
    for row in validated.values():
        assert row["val_loss"] == pytest.approx(row["val_itc"] + row["val_itm"] + row["val_mlm"], abs=1e-5)
        assert 0 <= row["val_tr_r1"] <= row["val_tr_r5"] <= 1
    best = json.loads((run / "model_best" / "config.json").read_text())["training"]
    assert best["value"] == min(row["val_loss"] for row in validated.values())
    assert validated[best["step"]]["val_loss"] == best["value"]


def start(config: TrainConfig, folder: Path) -> subprocess.Popen[bytes]:
    """`train` in another process, slowed down so that a signal meets it half way."""
    path = folder / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    code = (
        "import json, sys; from pathlib import Path; from jobs.train import train;"
        "from models.training.config import TrainConfig, from_dict;"
        "sys.exit(train(from_dict(TrainConfig, json.loads(Path(sys.argv[1]).read_text()))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=folder, env=environment)


def wait_for_rows(run: Path, rows: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    path = run / "metrics.jsonl"
    while not path.is_file() or len(path.read_text().splitlines()) < rows:
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < deadline, "no progress within two minutes"
        time.sleep(0.005)


def test_a_finished_run_is_left_alone_without_importing_torch(undisturbed: Path, shards: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    path = undisturbed.parent / "again.json"
    path.write_text(json.dumps(to_dict(configure(shards, undisturbed, processes=1, log_every=5))))
    code = (
        "import json, sys; from pathlib import Path; from jobs.train import train;"
        "from models.training.config import TrainConfig, from_dict;"
        "assert train(from_dict(TrainConfig, json.loads(Path(sys.argv[1]).read_text()))) == 0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()} == before


def test_another_configuration_is_refused_with_the_difference(undisturbed: Path, shards: str) -> None:
    with pytest.raises(ConfigError, match=r"lr 0\.01 -> 0\.02.*--overwrite"):
        train(configure(shards, undisturbed, lr=2e-2))


def test_tensorboard_and_the_model_folder_stand(undisturbed: Path) -> None:
    assert list((undisturbed / "tensorboard").rglob("events.*"))
    facts = json.loads((undisturbed / "model" / "config.json").read_text())
    assert facts["recipe"] == "albef"
    assert facts["training"]["step"] == STEPS
    assert (undisturbed / "model" / "model.safetensors").is_file()
    assert json.loads((undisturbed / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, r"batch_size 9 must divide by 2 processes x accumulation 2; use 8"),
        ({"steps": None}, r"either steps \(None\) or epochs \(None\)"),
        ({"zero": ZeroConfig(stage=3)}, r"zero\.stage 3 .* momentum teacher of albef"),
        ({"precision": "fp16"}, r"'fp16': use auto, fp32 or bf16"),
        ({"shards": "/nowhere"}, r"'/nowhere': no \.tar files"),
    ],
)
def test_impossible_options_are_refused(
    shards: str, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(configure(shards, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_unknown_dimension_ends_with_2_and_names_the_valid_ones(
    shards: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(configure(shards, tmp_path / "run", model={"imagesize": 3}, processes=1)) == 2
    assert "albef has no imagesize; valid: alpha" in capfd.readouterr().err


@pytest.mark.prove
def test_torchrun_trains_the_same_and_a_stop_file_stops_it(
    shards: str, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "torchrun"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(configure(shards, run))))
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys; from pathlib import Path; from jobs.train import train\n"
        "from models.training.config import TrainConfig, from_dict\n"
        "code = train(from_dict(TrainConfig, json.loads(Path(sys.argv[1]).read_text())))\n"
        "Path(sys.argv[1] + '.' + os.environ['RANK']).write_text(str(code))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(program), str(path)], env=environment, cwd=tmp_path)
    wait_for_rows(run, 2, process)
    (run / "STOP").touch()
    assert process.wait(120) == 0
    assert [(tmp_path / f"config.json.{rank}").read_text() for rank in (0, 1)] == ["75", "75"]
    assert train(configure(shards, run)) == 0
    assert_equal_curves(losses(run), losses(undisturbed), 1e-6)


def test_too_many_corrupt_samples_end_the_run_with_1_and_their_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_shards(tmp_path / "shards", shards=1, samples=16)
    tar = folder / "00000000.tar"
    data = tar.read_bytes()
    start = data.index(b"\xff\xd8\xff")
    tar.write_bytes(data[:start] + b"\0" * 400 + data[start + 400 :])
    config = configure(str(folder), tmp_path / "run", processes=1, accumulation=1, max_corrupt=0.0)
    assert train(config) == 1
    errors = capfd.readouterr().err
    assert "1 of 16 samples cannot be read, more than max_corrupt 0.0 allows" in errors
    assert "000000000000" in errors
    allowed = configure(str(folder), tmp_path / "run2", processes=1, accumulation=1, max_corrupt=0.1, steps=2)
    assert train(allowed) == 0
    assert "the next one takes its place" in capfd.readouterr().err
