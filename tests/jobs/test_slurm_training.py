"""How many processes a job trains with, what torchrun is told, and what became of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.slurm import training
from jobs.slurm.allocation import Allocation, own_address
from models.training.config import TrainConfig
from pipeline.errors import ConfigError


def allocation(*, nodes: int, gpus: int = 0) -> Allocation:
    return Allocation(
        job=7,
        name="7",
        task=None,
        restart=0,
        nodes=nodes,
        node=0,
        cpus=16,
        gpus=gpus,
        memory=0,
        run=Path("run"),
    )


def config(**options: object) -> TrainConfig:
    values = {"shards": "-", "output": "-", "steps": 1, "batch_size": 64, **options}
    return TrainConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("processes", "nodes", "gpus", "each"),
    [(2, 2, 0, 1), (4, 2, 0, 2), (2, 1, 0, 2), (1, 2, 8, 8), (1, 4, 4, 4), (3, 1, 1, 1)],
)
def test_a_process_for_each_gpu_and_processes_in_all_without(
    processes: int, nodes: int, gpus: int, each: int
) -> None:
    assert (
        training.processes_per_node(config(processes=processes), allocation(nodes=nodes, gpus=gpus)) == each
    )


@pytest.mark.parametrize(
    ("options", "nodes", "gpus", "says"),
    [
        ({"processes": 1}, 2, 0, r"processes 1 cannot be spread over 2 nodes; use .* --processes 2"),
        ({"processes": 4}, 3, 0, r"processes 4 cannot be spread over 3 nodes"),
        ({"batch_size": 8}, 2, 8, r"2 nodes of 8 processes: batch_size 8 must divide by 16 processes"),
    ],
)
def test_what_cannot_be_spread_is_refused_before_anything_is_started(
    options: dict[str, object], nodes: int, gpus: int, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        training.processes_per_node(config(**options), allocation(nodes=nodes, gpus=gpus))


def test_torchrun_is_told_its_node_and_values_stay_single_words() -> None:
    arguments = ["--config", "my $(touch x) file.yaml", "--output", "a b"]
    plan = {
        "nodes": 4, "processes": 8, "address": "10.0.0.1", "port": 4711, "cpus": 32, "arguments": arguments,
    }  # fmt: skip
    words = training.words(plan, 3)
    assert {"--nnodes=4", "--node-rank=3", "--nproc-per-node=8", "--max-restarts=0"} <= set(words)
    assert {"--master-addr=10.0.0.1", "--master-port=4711"} <= set(words)
    assert words[-5:] == ["train", *arguments]
    assert training.defaults(plan)["OMP_NUM_THREADS"] == "4"
    assert training.defaults({**plan, "cpus": 2})["OMP_NUM_THREADS"] == "1"


def test_the_address_of_a_node_is_that_of_the_chosen_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRMILL_INTERFACE", "lo")
    assert own_address() == "127.0.0.1"
    monkeypatch.setenv("PAIRMILL_INTERFACE", "ib7")
    with pytest.raises(ConfigError, match=r"'ib7' has no IPv4 address .*its interfaces: .*lo"):
        own_address()


def tell(folder: Path, verdicts: dict[int, tuple[int, str]]) -> None:
    for rank, (code, why) in verdicts.items():
        (folder / f"rank-{rank}").write_text(json.dumps({"code": code, "why": why}))


def test_who_fell_silent_is_named_with_its_node(tmp_path: Path) -> None:
    tell(tmp_path, {0: (70, "RuntimeError: connection reset"), 1: (70, ""), 3: (70, "")})
    (tmp_path / "node-1").write_text("gpu17")
    code, why = training.outcome(tmp_path, config(processes=4), allocation(nodes=2), ended=1)
    assert code == 70
    assert why == (
        "processes 0, 1, 3 (node 0, gpu17): RuntimeError: connection reset; "
        "process 2 (gpu17) ended without a word: killed, or never begun"
    )


def test_a_crash_that_was_told_is_named_with_its_node(tmp_path: Path) -> None:
    tell(tmp_path, {0: (70, "OutOfMemoryError: 3 GiB"), 1: (70, "RuntimeError: connection reset")})
    code, why = training.outcome(tmp_path, config(processes=2), allocation(nodes=2), ended=1)
    assert (code, why) == (70, "processes 0, 1 (node 0, node 1): OutOfMemoryError: 3 GiB")


def test_verdicts_that_a_network_disk_shows_late_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun says that all ended well, so each has told."""
    tell(tmp_path, {0: (75, "")})
    monkeypatch.setattr(training.time, "sleep", lambda _: tell(tmp_path, {1: (75, "")}))
    code, _ = training.outcome(tmp_path, config(processes=2), allocation(nodes=2), ended=0)
    assert code == 75
