"""The parts of the trainer that need no run: schedule, parameter groups, run folder, checkpoints, metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.training import checkpoint, rundir
from models.training.config import (
    TrainConfig,
    ZeroConfig,
    check,
    digest,
    from_dict,
    local_batch,
    to_dict,
)
from models.training.metrics import Metrics
from models.training.optim import learning_rate, parameter_groups
from pipeline.settings import semantic_config


def config(output: Path | str = "run", **changes: object) -> TrainConfig:
    return TrainConfig(**{"shards": "shards", "output": str(output), "steps": 100, **changes})  # type: ignore[arg-type]


def test_the_rate_warms_up_and_ends_at_its_least() -> None:
    rates = [learning_rate(s, steps=100, lr=1.0, min_lr=0.1, warmup_steps=10) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, steps=1, lr=1.0, min_lr=0.1, warmup_steps=0) == 1.0


def test_rates_of_the_other_schedules() -> None:
    linear = [
        learning_rate(s, steps=101, lr=1.0, min_lr=0.0, warmup_steps=0, schedule="linear") for s in range(101)
    ]
    assert linear[25] == pytest.approx(0.75)
    assert linear[100] == 0.0
    epochs = [
        learning_rate(
            s,
            steps=100,
            lr=1.0,
            min_lr=0.5,
            warmup_steps=5,
            schedule="exponential",
            epoch_steps=10,
            decay=0.8,
        )
        for s in range(100)
    ]
    assert epochs[9] == 1.0
    assert epochs[10] == epochs[19] == pytest.approx(0.8)
    assert epochs[29] == pytest.approx(0.64)
    assert epochs[99] == 0.5


def small_model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model.register_parameter("temperature", torch.nn.Parameter(torch.tensor(0.07)))
    return model


def named_groups(model: torch.nn.Module, groups: list[dict]) -> dict[tuple[float, float], set[str]]:
    names = {p: name for name, p in model.named_parameters()}
    return {(g["lr_scale"], g["weight_decay"]): {names[p] for p in g["params"]} for g in groups}


def test_norms_biases_and_temperatures_do_not_decay() -> None:
    model = small_model()
    groups = parameter_groups(model, weight_decay=0.1)
    assert named_groups(model, groups) == {
        (1.0, 0.1): {"0.weight", "2.weight"},
        (1.0, 0.0): {"0.bias", "1.weight", "1.bias", "2.bias", "temperature"},
    }
    everything = parameter_groups(model, weight_decay=0.1, decay="all")
    assert [len(g["params"]) for g in everything] == [7]


def test_multipliers_fit_the_beginnings_of_names_and_frozen_parameters_are_left_out() -> None:
    model = small_model()
    model.get_submodule("1").requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1, multipliers={"2": 5.0, "2.bias": 10.0})
    assert named_groups(model, groups) == {
        (1.0, 0.1): {"0.weight"},
        (1.0, 0.0): {"0.bias", "temperature"},
        (5.0, 0.1): {"2.weight"},
        (10.0, 0.0): {"2.bias"},
    }
    with pytest.raises(ValueError, match="begins with 'head'; there are 0, 2, temperature"):
        parameter_groups(model, weight_decay=0.1, multipliers={"head": 2.0})


def test_a_config_survives_its_file_and_unknown_keys_are_refused() -> None:
    original = config(model={"embed_dim": 64}, zero=ZeroConfig(stage=1))
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(original)))) == original
    with pytest.raises(ValueError, match=r"TrainConfig has no learning_rate; valid: accumulation"):
        from_dict(TrainConfig, {"learning_rate": 1})


def test_operational_fields_are_no_part_of_the_digest() -> None:
    base = config()
    same = config("elsewhere", processes=2, workers=3, log_every=1, checkpoint_every=7, keep_checkpoints=9)
    assert digest(base, ["a"]) == digest(same, ["a"])
    assert digest(base, ["a"]) != digest(base, ["b"])
    assert digest(base, ["a"]) != digest(config(lr=1e-4), ["a"])
    assert digest(base, ["a"]) == digest(config(zero=ZeroConfig(stage=1)), ["a"])
    assert not {"output", "shards", "processes"} & semantic_config(base).keys()


def test_local_batch_divides_or_says_what_would() -> None:
    assert local_batch(config(batch_size=48, accumulation=3), 4) == 4
    with pytest.raises(ValueError, match="use 48"):
        local_batch(config(batch_size=50, accumulation=3), 4)
    with pytest.raises(ValueError, match=r"output 's3://bucket/run'"):
        check(config("s3://bucket/run"))


def test_a_run_folder_refuses_another_run_and_can_be_taken_over(tmp_path: Path) -> None:
    first = config(tmp_path / "run")
    assert rundir.prepare_run(first, inputs=["a:1"]) is False
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert rundir.prepare_run(first, inputs=["a:1"]) is False
    with pytest.raises(ValueError, match=r"seed 0 -> 7; weight_decay 0\.02 -> 0\.1"):
        rundir.prepare_run(config(tmp_path / "run", seed=7, weight_decay=0.1), inputs=["a:1"])
    with pytest.raises(ValueError, match=r"the shards \(1 -> 2, 1 differ\)"):
        rundir.prepare_run(first, inputs=["a:1", "b:2"])
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert rundir.prepare_run(first, inputs=["a:1", "b:2"], overwrite=True) is False
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_one_process_at_a_time_trains_into_a_folder(tmp_path: Path) -> None:
    with (
        rundir.locked(tmp_path / "run"),
        pytest.raises(ValueError, match="another process is training into"),
        rundir.locked(tmp_path / "run"),
    ):
        pass
    with rundir.locked(tmp_path / "run"):
        pass


def test_a_finished_run_needs_its_model(tmp_path: Path) -> None:
    settings = config(tmp_path)
    rundir.prepare_run(settings, inputs=[])
    rundir.finish_run(tmp_path)
    assert rundir.prepare_run(settings, inputs=[]) is False  # finished, but its model was deleted
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    rundir.finish_run(tmp_path)
    assert rundir.prepare_run(settings, inputs=[]) is True


def save(run: Path, step: int, *, keep: int = 2) -> Path:
    return checkpoint.save(
        run, step=step, meta={"step": step}, write_parts=lambda f: (f / "part").touch() or None,
        is_main=True, barrier=lambda: None, keep=keep,
    )  # fmt: skip


def test_checkpoints_appear_whole_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save(tmp_path, step)
    assert [checkpoint.step_of(p) for p in checkpoint.list_complete(tmp_path)] == [2, 30]
    last = checkpoint.last_complete(tmp_path)
    assert last is not None
    assert checkpoint.read_meta(last) == {"step": 30, "files": {"part": 0}}
    assert (last / "part").exists()


def test_a_save_that_was_killed_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def killed(folder: Path) -> None:
        (folder / "part").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(
            tmp_path, step=2, meta={}, write_parts=killed, is_main=True, barrier=lambda: None, keep=2
        )
    unmarked = checkpoint.checkpoint_path(tmp_path, 3)
    unmarked.mkdir()  # killed between the rename and the marker
    last = checkpoint.last_complete(tmp_path)
    assert last is not None
    assert checkpoint.step_of(last) == 1
    checkpoint.sweep(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_metrics_hold_each_step_once_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, first_step=0)
    for step in (1, 2, 3):
        first.write({"step": step})
    first.close()
    with path.open("a") as stream:
        stream.write('{"step": 4, "lo')  # a row cut by a kill
    again = Metrics(path, first_step=2)
    again.write({"step": 3, "loss": 0.5})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
