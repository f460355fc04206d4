"""What a run tells: its rows, the first figure that is no number, trackers; and no keys in files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.training import config as train_config
from models.training.config import TrainConfig, ValidateConfig, shareable
from models.training.journal import Journal
from models.training.metrics import Clock, FirstBad, Metrics
from models.training.stopping import StopRequest, TrainingError
from models.training.trackers import run_id, wandb_mode


def test_the_first_figure_that_is_no_number_is_named_a_part_before_the_whole() -> None:
    bad = FirstBad()
    fine, nan = torch.tensor(1.0), torch.tensor(float("nan"))
    bad.look(1, {"loss": fine, "itc": fine, "mlm": fine})
    assert bad.found() is None
    bad.look(2, {"loss": nan, "itc": fine, "mlm": torch.tensor(float("inf"))})
    bad.look(3, {"loss": nan, "itc": nan, "mlm": nan})
    assert bad.found() == (2, "mlm")


class OneProcess:
    """Stands for `Processes`; another process may have found something."""

    is_main, world_size = True, 1

    def __init__(self, other: tuple[int, str] | None = None) -> None:
        self.other, self.logged = other, []

    def start_trackers(self, *, first_step: int) -> None:
        self.first_step = first_step

    def gather(self, value):
        return [value, self.other]

    def sum(self, values):
        return values

    def log(self, row, *, step) -> None:
        self.logged.append((step, row))


def journal(folder: Path, processes: OneProcess, norm: float = 1.0) -> Journal:
    config = TrainConfig(shards="-", output=str(folder), batch_size=8, steps=9)
    engine = SimpleNamespace(gradient_norm=lambda: norm)
    return Journal(config, processes, engine, Clock(), first_step=0, steps=9, detail="")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "other", "norm", "says"),
    [
        (float("nan"), None, 1.0, "step 1: loss is no number"),
        (1.0, (1, "itm"), 1.0, "step 1: itm is no number"),
        (1.0, None, float("inf"), "step 1: gradient norm is no number"),
    ],
)
def test_a_row_that_is_no_number_ends_the_run_and_is_not_written(
    tmp_path: Path, loss: float, other: tuple[int, str] | None, norm: float, says: str
) -> None:
    told = journal(tmp_path, OneProcess(other), norm)
    told.after_step(1, {"loss": torch.tensor(loss)})
    with pytest.raises(TrainingError, match=says):
        told.write({"loss": torch.tensor(loss)}, lr=0.1, more={})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_rows_say_where_the_time_went_and_can_be_amended(tmp_path: Path) -> None:
    processes = OneProcess()
    told = journal(tmp_path, processes)
    told.clock.last -= 10.0
    told.clock.waited, told.clock.paused = 2.0, 2.0
    told.after_step(2, {"loss": torch.tensor(0.5)})
    told.write({"loss": torch.tensor(0.5)}, lr=0.1, more={"val_loss": 0.6})
    told.amend({"val_itc": 0.2})
    told.close()
    [row] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (row["step"], row["loss"], row["val_loss"], row["val_itc"]) == (2, 0.5, 0.6, 0.2)
    assert row["samples_per_s"] == pytest.approx(16 / 8, rel=0.05)
    assert row["data_wait"] == pytest.approx(2 / 8, rel=0.05)
    assert row["memory_gb"] > 0
    assert [step for step, _ in processes.logged] == [2, 2]


def test_a_resume_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    metrics = Metrics(path, first_step=2)
    assert metrics.last() == {"step": 2}
    metrics.write({"step": 3})
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def options(**changes: object) -> TrainConfig:
    return TrainConfig(**{"shards": "x", "output": "y", "steps": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trackers": ["mlflow"]}, r"'mlflow': use jsonl, tensorboard or wandb"),
        ({"validate": ValidateConfig(every=5)}, r"validate\.every 5 and validate\.shards '': give both"),
        ({"validate": ValidateConfig(shards="h")}, r"give both"),
        (
            {"validate": ValidateConfig(shards="h", every=5, samples=0)},
            r"validate\.samples 0 must be at least 1",
        ),
        (
            {"validate": ValidateConfig(shards="h", every=5, keep_best="loss")},
            r"keep_best 'loss': name a figure",
        ),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        train_config.check(options(**changes))


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    train_config.check(options(trackers=["jsonl"]))
    with pytest.raises(ValueError, match="trackers wandb: the package is not installed; pip install wandb"):
        train_config.check(options(trackers=["jsonl", "wandb"]))


def test_weights_and_biases_finds_its_run_again_and_asks_for_no_key(tmp_path: Path) -> None:
    assert run_id(tmp_path) == run_id(tmp_path)
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path) != run_id(tmp_path / "other")
    nowhere = {"NETRC": str(tmp_path / "none")}
    assert wandb_mode(nowhere) == "offline"
    assert wandb_mode({**nowhere, "WANDB_API_KEY": "k"}) == "online"
    assert wandb_mode({**nowhere, "WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}) == "disabled"


def test_processes_that_do_not_fit_the_batch_are_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"divide by 5 processes x .* 2; use 20, or 4 or 6 processes"):
        train_config.local_batch(options(batch_size=24, accumulation=2), 5)


def test_what_is_written_down_holds_no_keys() -> None:
    config = options(shards=["https://me:secret@host/a.tar?sig=key", "s3://bucket/b.tar", "/data/c?.tar"])
    assert shareable(config)["shards"] == ["https://host/a.tar", "s3://bucket/b.tar", "/data/c?.tar"]


def test_one_process_looks_for_the_stop_file(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    assert StopRequest(tmp_path, listen=False)
    assert not StopRequest(tmp_path, listen=False, look=False)
