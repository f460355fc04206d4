"""Training goes on as if nothing had been: after signals, kills in the middle of a save, and on other numbers
of processes.

The runs are albef's with everything that a checkpoint must hold: a teacher at 0.995, a queue, dropout,
accumulation, a data worker.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.train import train
from models.training import checkpoint
from models.training.config import AugmentConfig, TrainConfig, ZeroConfig, to_dict
from models.training.launch import free_port, worker_environment
from tests.models.toy_shards import write_shards

ROOT = Path(__file__).parents[2]
TOWERS = {
    "image_size": 32, "patch_size": 16, "vision_width": 32, "vision_depth": 1, "vision_heads": 2,
    "text_width": 32, "text_depth": 2, "text_heads": 2, "embed_dim": 16, "max_text_length": 16,
}  # fmt: skip
FUSION = {"fusion_start": 1, "text_positions": 16, "queue_size": 32, "momentum": 0.995}
MODELS = {
    "albef": TOWERS | FUSION,
    "clip": TOWERS,
    "blip": {k: v for k, v in (TOWERS | FUSION).items() if k != "fusion_start"},
    "vlmo": {"image_size": 32, "patch_size": 16, "embed_dim": 16, "max_text_length": 16},
}

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A sum over two threads is another one in its last bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("shards"), shards=2, samples=20))


def configure(shards: str, output: Path, *, recipe: str = "albef", **changes: object) -> TrainConfig:
    options = {
        "shards": shards, "output": str(output), "recipe": recipe, "model": MODELS[recipe], "vocab_size": 64,
        "batch_size": 8, "accumulation": 2, "steps": 12, "lr": 3e-3, "warmup_steps": 2, "log_every": 1,
        "checkpoint_every": 1, "trackers": ["jsonl"], "augment": AugmentConfig(crop_scale=(0.6, 1.0)),
    }  # fmt: skip
    return TrainConfig(**{**options, **changes})  # type: ignore[arg-type]


def restless(shards: str, output: Path, **changes: object) -> TrainConfig:
    """Everything at once that a checkpoint must hold."""
    model = MODELS["albef"] | {"dropout": 0.1}
    return configure(shards, output, model=model, workers=1, **changes)


def rows(run: Path) -> list[dict[str, float]]:
    """What is computed, without what is timed; each step once."""
    timed = {"samples_per_s", "data_wait", "memory_gb", "seconds"}
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    return [{name: value for name, value in row.items() if name not in timed} for row in found]


def assert_same_to_the_bit(run: Path, undisturbed: Path) -> None:
    assert rows(run) == rows(undisturbed)
    ours, theirs = (load_file(p / "model" / "model.safetensors") for p in (run, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def start(config: TrainConfig, folder: Path, program: str = "") -> subprocess.Popen[bytes]:
    path = folder / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    code = program or (
        "import json, sys; from pathlib import Path; from jobs.train import train;"
        "from models.training.config import TrainConfig, from_dict;"
        "sys.exit(train(from_dict(TrainConfig, json.loads(Path(sys.argv[1]).read_text()))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=folder, env=environment)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline, path = time.monotonic() + 600, run / "metrics.jsonl"
    while not path.is_file() or len(path.read_text().splitlines()) < step:
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < deadline, f"no step {step} within 600 s"
        time.sleep(0.005)


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.prove_ci), 10])
def test_kills_in_the_middle_of_saves_cost_nothing(shards: str, tmp_path: Path, kills: int) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "peace"
    steps = 2 * kills + 4  # a life saves once or twice, and the last step is not saved
    config = restless(shards, run, steps=steps)
    assert train(restless(shards, undisturbed, steps=steps)) == 0
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    chance, before = random.Random(kills), 0
    for _ in range(kills):
        command = [sys.executable, "-m", "tests.prove.training_victim", str(path), str(chance.random())]
        environment = {**os.environ, **worker_environment(0, 1, free_port())}
        del environment["PAIRMILL_LAUNCHER"]
        process = subprocess.run(command, cwd=ROOT, env=environment, timeout=600, check=False)
        assert process.returncode == -signal.SIGKILL
        last = checkpoint.last_complete(run)
        assert last is not None
        assert checkpoint.damage(last) == ""
        assert checkpoint.step_of(last) > before, "the checkpoint before the killed save was lost"
        before = checkpoint.step_of(last)
    # DeepSpeed itself would go on without the optimizer's state
    next((last / "engine").glob("*optim_states.pt")).unlink()
    assert train(config) == 0
    assert_same_to_the_bit(run, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("processes", [1, 2])
def test_thirty_steps_and_thirty_equal_sixty_to_the_bit(
    shards: str, tmp_path: Path, processes: int, number: signal.Signals
) -> None:
    options = {"steps": 60, "checkpoint_every": 15, "processes": processes}
    assert train(restless(shards, tmp_path / "straight", **options)) == 0
    run = tmp_path / "run"
    process = start(restless(shards, run, **options), tmp_path)
    wait_for_step(run, 31, process)
    process.send_signal(number)
    code = process.wait(300)
    assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    last = checkpoint.last_complete(run)
    assert last is not None
    done = checkpoint.step_of(last)
    assert done >= 31 if number == signal.SIGTERM else done == 30
    assert train(restless(shards, run, **options)) == 0
    assert_same_to_the_bit(run, tmp_path / "straight")


@pytest.mark.parametrize(
    ("recipe", "stage"),
    [("albef", 2), ("albef", 1), ("albef", 0), ("clip", 2), ("clip", 3), ("blip", 2), ("vlmo", 2)],
)
def test_two_processes_then_one_then_two_compute_the_same(
    shards: str, tmp_path: Path, recipe: str, stage: int
) -> None:
    # a group of so few parameters that one process holds none of them
    groups = {"lr_multipliers": {"itm_head": 2.0}} if recipe == "albef" else {}
    options = {"recipe": recipe, "zero": ZeroConfig(stage=stage), "checkpoint_every": 0, "steps": 9} | groups
    assert train(configure(shards, tmp_path / "straight", processes=2, **options)) == 0
    run = tmp_path / "run"
    other = ZeroConfig(stage={1: 2, 2: 1}.get(stage, stage))
    for processes, upto, zero in ((2, 3, options["zero"]), (1, 6, other)):
        process = start(configure(shards, run, processes=processes, **(options | {"zero": zero})), tmp_path)
        wait_for_step(run, upto, process)
        (run / "STOP").touch()
        assert process.wait(300) == 75
        assert len(rows(run)) < 9
    assert train(configure(shards, run, processes=2, **options)) == 0
    ours, theirs = rows(run), rows(tmp_path / "straight")
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-5), f"step {a['step']}"
    assert abs(theirs[0]["loss"] - theirs[-1]["loss"]) > 1e-2, "nothing was learnt"


def test_trackers_go_on_where_a_killed_run_was(shards: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"recipe": "clip", "trackers": ["tensorboard", "wandb"], "checkpoint_every": 4}
    process = start(configure(shards, run, **options), tmp_path)
    wait_for_step(run, 6, process)
    [worker] = psutil.Process(process.pid).children()
    process.kill()
    psutil.wait_procs([worker], timeout=10)
    assert train(configure(shards, run, **options)) == 0

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    name = json.loads((run / "wandb.json").read_text())["id"]
    folders = sorted(p.name for p in (run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.endswith(name) for folder in folders)


@pytest.mark.prove_ci
def test_when_one_process_dies_the_others_end_within_seconds(shards: str, tmp_path: Path) -> None:
    process = start(configure(shards, tmp_path / "run", processes=2, steps=5000), tmp_path)
    wait_for_step(tmp_path / "run", 2, process)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    workers[1].kill()
    killed = time.monotonic()
    assert process.wait(300) == 1
    assert time.monotonic() - killed < 20
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.prove_ci
def test_a_loss_that_is_no_number_ends_the_run_with_its_step(
    shards: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure(shards, tmp_path / "run", recipe="clip", lr=1e37, warmup_steps=0, clip_grad=0.0)
    assert train(config) == 1
    assert re.search(
        r"error: step [2-9]: \w+ is no number; nothing of this was saved", capfd.readouterr().err
    )
    for path in checkpoint.list_complete(tmp_path / "run"):
        weights = torch.load(path / "engine" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        assert all(torch.isfinite(w).all() for w in weights.values())


def test_when_the_launcher_dies_so_do_its_processes(shards: str, tmp_path: Path) -> None:
    process = start(configure(shards, tmp_path / "run", processes=2, steps=5000), tmp_path)
    wait_for_step(tmp_path / "run", 2, process)
    workers = psutil.Process(process.pid).children()
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
