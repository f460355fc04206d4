"""Locks: one writer a unit, one configuration an output, and what a dead owner leaves counts for nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import commit, locks, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.planning import make_plan
from pipeline.runner import run_stage
from pipeline.stage import Counts
from tests.pipeline.toy_stage import ToyConfig, ToyStage

ROOT = Path(__file__).parents[2]


def _plant(output: str, name: str, **changes: Any) -> str:
    """A lock as another process would have left it."""
    with locks.unit(output, 99) as lock:
        facts: dict[str, Any] = {**lock.facts, "alive": time.time(), **changes}
    url = storage.join(locks.folder(output), f"{name}.other.json")
    storage.write_bytes(url, json.dumps(facts).encode())
    return url


def _holders(output: str) -> list[str]:
    return [storage.basename(f.url) for f in storage.list_files(locks.folder(output))]


def _add_one(counter: Path, output: str) -> None:
    for _ in range(5):
        with locks.unit(output, 7):
            value = int(counter.read_text())
            time.sleep(0.01)
            counter.write_text(str(value + 1))


def test_one_at_a_time(tmp_path: Path) -> None:
    counter, output = tmp_path / "counter", str(tmp_path / "out")
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_one, args=(counter, output)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert counter.read_text() == "15"
    assert not _holders(output)


def test_units_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with locks.unit(str(tmp_path), 1), locks.unit(str(tmp_path), 2):
        assert locks.is_busy(str(tmp_path), 1)
        assert not locks.is_busy(str(tmp_path), 3)
    assert not locks.is_busy(str(tmp_path), 1)


def test_a_lock_of_a_killed_owner_is_void(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pipeline import locks\n"
        "with locks.unit(sys.argv[1], 3): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert locks.is_busy(str(tmp_path), 3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not locks.is_busy(str(tmp_path), 3)
    assert not _holders(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "void"),
    [
        ({}, True),  # our own number, and we do not hold it: an error took the way past its removal
        ({"process": [os.getppid(), "1"]}, True),  # a number that was given out again
        ({"machine": "another"}, False),
        ({"machine": "another", "alive": time.time() - 2 * locks.STALE}, True),
    ],
)
def test_whose_lock_counts(tmp_path: Path, changes: Mapping[str, Any], void: bool) -> None:
    _plant(str(tmp_path), "00000003", **changes)
    locks.sweep(str(tmp_path))
    assert locks.is_busy(str(tmp_path), 3) is not void
    assert (not _holders(str(tmp_path))) is void


def test_a_run_of_other_options_is_refused(tmp_path: Path) -> None:
    output = str(tmp_path)
    other = {"stage": "toy", "version": 1, "config": {"factor": 3}}
    _plant(output, "run", machine="another", host="node7", process=[11, "1"], made_from=other)
    with pytest.raises(ConfigError, match=r"process 11 on node7.*config.factor 3 -> 2"):
        run_stage(ToyStage(ToyConfig()), output)
    assert not manifest.list_done(output)
    assert len(_holders(output)) == 1
    with locks.run(output, other) as lock:  # of the same options: any number
        lock.renewed -= 2 * locks.RENEW
        before = storage.read_bytes(lock.url)
        lock.renew()
        assert storage.read_bytes(lock.url) != before


def test_the_first_to_commit_wins(tmp_path: Path) -> None:
    """Two runs planned the same unit; the second one to finish drops what it has made."""
    output, stage = str(tmp_path / "out"), ToyStage(ToyConfig(names=("a",)))
    unit = make_plan(stage, output).todo[0]
    first = commit.run_and_commit(stage, unit, output)
    parts = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")}
    time.sleep(0.01)
    assert commit.run_and_commit(stage, unit, output) == first
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")} == parts
    with pytest.raises(ConfigError, match="meanwhile, made from other options"):
        commit.run_and_commit(ToyStage(ToyConfig(names=("a",), factor=3)), unit, output)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.*")} == parts


def test_a_replacement_that_somebody_overtook_is_dropped(tmp_path: Path) -> None:
    """What was taken down meanwhile must not come back by a replacement that was prepared before."""
    output = str(tmp_path)

    def record(text: str) -> dict[str, Any]:
        return {
            "stage": "toy", "version": 1, "unit": 3, "digest": "d" * 16, "config": {}, "source": {},
            "inputs": [], "counts": Counts(1, 1).to_json(), "notes": {"text": text},
        }  # fmt: skip

    commit.replace(output, record("old"), {"00000003.tar": b"old"}, stale=[])
    planned = [d.url for d in manifest.list_manifests(output)]
    commit.replace(output, record("clean"), {"00000003.tar": b"clean"}, stale=planned)
    with pytest.raises(InputError, match="replaced by another run meanwhile"):
        commit.replace(output, record("late"), {"00000003.tar": b"late"}, stale=planned)
    assert (tmp_path / "00000003.tar").read_bytes() == b"clean"
    assert [m["notes"]["text"] for m in manifest.read_all(output)] == ["clean"]
    assert commit.roll_forward(output) == 0
    # and one that a living process is about to put in place is left to it
    pending = Path(commit.pending_folder(output)) / "00000003-abc"
    storage.write_bytes(str(pending / commit.INTENT), b"{}")
    _plant(output, "00000003", machine="another")
    assert commit.roll_forward(output) == 0
    assert pending.exists()
