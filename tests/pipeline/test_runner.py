"""The runner on a real Ray: what is done, redone, refused, retried, quarantined, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline import manifest, pulse, session
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from tests.pipeline.toy_stage import ToyConfig, ToyStage


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


def _snapshot(output: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in output.iterdir() if p.is_file()}


def test_runs_all_units_then_nothing(tmp_path: Path) -> None:
    config = ToyConfig(log=str(tmp_path / "log"))
    summary = run_stage(ToyStage(config), str(tmp_path / "out"))
    assert (summary.done, summary.exit_code) == (3, 0)
    assert summary.counts.to_json() == {"in": 9, "out": 6, "dropped": {"odd": 3}}
    before = _snapshot(tmp_path / "out")
    again = run_stage(ToyStage(config), str(tmp_path / "out"))
    assert (again.done, again.done_before) == (0, 3)
    assert _snapshot(tmp_path / "out") == before
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "b", "c", "finish", "finish"]


def test_deleted_part_redoes_that_unit_to_the_same_content(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_stage(ToyStage(ToyConfig()), str(output))
    before = manifest.list_done(str(output))
    (output / "00000001.parquet").unlink()
    again = run_stage(ToyStage(ToyConfig()), str(output))
    assert (again.done, again.done_before) == (1, 2)
    assert manifest.list_done(str(output)) == before


def test_new_inputs_redo_nothing_and_keep_numbers(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run_stage(ToyStage(ToyConfig(names=("b", "c"))), output)
    again = run_stage(ToyStage(ToyConfig(names=("a", "b", "c"))), output)
    assert (again.done, again.done_before) == (1, 2)
    values = [pq.read_table(f"{output}/0000000{n}.parquet")["value"][0].as_py() for n in range(3)]
    assert values == [2 * ord("b"), 2 * ord("c"), 2 * ord("a")]


def test_changed_semantic_option_is_refused_with_the_difference(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run_stage(ToyStage(ToyConfig()), output)
    with pytest.raises(ConfigError, match=r"factor 2 -> 3.*--overwrite"):
        run_stage(ToyStage(ToyConfig(factor=3)), output)
    # an operational one changes nothing
    assert run_stage(ToyStage(ToyConfig(seconds=0.01)), output).done == 0
    assert run_stage(ToyStage(ToyConfig(factor=3)), output, RunOptions(overwrite=True)).done == 3
    assert len(list((tmp_path / "out/_pairmill/manifests").iterdir())) == 3


def test_global_stage_is_redone_when_inputs_were_added(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run_stage(ToyStage(ToyConfig(global_stage=True, names=("a",))), output)
    assert run_stage(ToyStage(ToyConfig(global_stage=True, names=("a", "b"))), output).done == 2
    with pytest.raises(ConfigError, match="factor"):
        run_stage(ToyStage(ToyConfig(global_stage=True, names=("a", "b"), factor=5)), output)


def test_limit_and_task(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    config = ToyConfig(names=tuple("abcdef"), log=str(tmp_path / "log"))
    assert run_stage(ToyStage(config), output, RunOptions(limit=2)).done == 2
    assert run_stage(ToyStage(config), output, RunOptions(task="0/2")).done == 2  # units 0, 2, 4 less 0
    assert run_stage(ToyStage(config), output, RunOptions(task="1/2")).done == 2  # units 1, 3, 5 less 1
    assert "finish" not in (tmp_path / "log").read_text()
    assert run_stage(ToyStage(config), output).done == 0
    assert "finish" in (tmp_path / "log").read_text()
    for task in ("2/2", "x", "1", "-1/2"):
        with pytest.raises(ConfigError, match="task"):
            run_stage(ToyStage(config), output, RunOptions(task=task))


@pytest.mark.parametrize("mode", ["die", "fail"])
def test_poison_unit_is_quarantined_and_the_others_complete(tmp_path: Path, mode: str) -> None:
    output = str(tmp_path / "out")
    config = ToyConfig(mode={"b": mode}, log=str(tmp_path / "log"))
    summary = run_stage(ToyStage(config), output, RunOptions(workers=1))
    assert (summary.done, summary.exit_code, list(summary.failed)) == (2, 1, [1])
    assert (tmp_path / "log").read_text().split().count("b") == 3
    assert (tmp_path / "out/_pairmill/quarantine/00000001.json").exists()
    assert run_stage(ToyStage(config), output, RunOptions(allow_failed=1)).exit_code == 0
    healed = run_stage(ToyStage(replace(config, mode={})), output)
    assert (healed.done, healed.exit_code) == (1, 0)
    assert not (tmp_path / "out/_pairmill/quarantine/00000001.json").exists()


def test_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    config = ToyConfig(mode={"b": f"once:{tmp_path / 'flag'}"})
    assert run_stage(ToyStage(config), str(tmp_path / "out")).exit_code == 0


def test_config_error_in_a_worker_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model"):
        run_stage(ToyStage(ToyConfig(mode={"a": "config"})), str(tmp_path / "out"))


def test_hung_unit_is_ended(tmp_path: Path) -> None:
    config = ToyConfig(mode={"b": "hang"})
    summary = run_stage(ToyStage(config), str(tmp_path / "out"), RunOptions(unit_timeout=3.0))
    assert (summary.done, list(summary.failed)) == (2, [1])
    assert "TimeoutError" in summary.failed[1]


SCRIPT = """
import sys
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from tests.pipeline.toy_stage import ToyConfig, ToyStage
config = ToyConfig(names=tuple("abcdefghijkl"), seconds=0.4)
sys.exit(run_stage(ToyStage(config), sys.argv[1], RunOptions(grace=5.0)).exit_code)
"""


def _start(output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, str(output)]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=env)


def _wait_for_units(output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(manifest.list_done(str(output))) < count:
        assert time.monotonic() < deadline, "no unit was done within a minute"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGKILL, -9)]
)
def test_stop_in_the_middle_then_complete(tmp_path: Path, number: int, code: int) -> None:
    output = tmp_path / "out"
    process = _start(output)
    _wait_for_units(output, 2)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    done = len(manifest.list_done(str(output)))
    assert 2 <= done < 12
    config = ToyConfig(names=tuple("abcdefghijkl"), seconds=0.4)
    again = run_stage(ToyStage(config), str(output))
    assert again.exit_code == 0
    # a unit that was under way when the driver was killed may still have been committed by its worker
    assert again.done <= 12 - done
    undisturbed = tmp_path / "undisturbed"
    run_stage(ToyStage(config), str(undisturbed))
    assert manifest.list_done(str(output)).keys() == manifest.list_done(str(undisturbed)).keys()
    contents = [[d.content for d in manifest.list_done(str(o)).values()] for o in (output, undisturbed)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 1.5])
def test_an_end_while_ray_starts_is_a_stop_as_any_other(tmp_path: Path, seconds: float) -> None:
    process = _start(tmp_path)
    starting, deadline = psutil.Process(process.pid), time.monotonic() + 60
    while not any(child.name() == "raylet" for child in starting.children()):
        assert time.monotonic() < deadline, "Ray was not started within a minute"
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert len(manifest.list_done(str(tmp_path))) < 12


def test_a_run_under_way_is_seen_and_a_finished_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.05)
    output, seen, ended = str(tmp_path), [], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            seen.extend(pulse.living(output))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        config = ToyConfig(names=("a", "b", "bad"), mode={"bad": "fail"}, seconds=0.5)
        summary = run_stage(ToyStage(config), output, RunOptions(workers=1))
    finally:
        ended.set()
        watcher.join()
    assert (summary.done, list(summary.failed)) == (2, [2])
    assert {p.stage for p in seen} == {"toy"}
    assert {p.units for p in seen} == {3}
    assert max(p.running for p in seen) == 1
    assert max(p.done for p in seen) == 2
    assert max(p.failed for p in seen) >= 2
    assert not list((tmp_path / "_pairmill/running").iterdir())
