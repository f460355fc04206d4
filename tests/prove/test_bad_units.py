"""Units that die or hang, workers that cannot start, machines that go away, and chance in the timing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from pipeline import manifest
from pipeline.errors import RunError, StorageFullError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from tests.prove.bad_stage import BadConfig, BadStage
from tests.prove.checks import Damage, compare
from tests.prove.conftest import Figures
from tests.prove.test_kills import ray_workers
from tests.prove.world import STAGES, UNITS, World

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.prove


def _begun(log: Path) -> Counter[str]:
    """How often each unit (or `start`) was begun."""
    return Counter(line.split()[0] for line in log.read_text().splitlines())


@pytest.mark.prove_ci
@pytest.mark.usefixtures("one_ray")
def test_poison_and_hung_units_are_quarantined_and_the_others_complete(
    output: str, tmp_path: Path, figures: Figures, clock: float
) -> None:
    """One unit ends its worker, one sleeps, two hang in C code, with and without the interpreter's lock."""
    log = tmp_path / "log"
    mode = {"1": "die", "2": "hang", "3": "hold", "4": "busy"}
    stage = BadStage(BadConfig(units=7, mode=mode, log=str(log)))
    summary = run_stage(stage, output, RunOptions(workers=2, unit_timeout=3.0))
    assert (summary.done, summary.exit_code, sorted(summary.failed)) == (3, 1, [1, 2, 3, 4])
    assert {n: _begun(log)[n] for n in "0123456"} == {**dict.fromkeys("056", 1), **dict.fromkeys("1234", 3)}
    assert "worker died" in summary.failed[1]
    assert all("no end after 3 s" in summary.failed[n] for n in (2, 3, 4))
    assert manifest.list_quarantined(output) == {1, 2, 3, 4}
    time.sleep(1)
    hung = [p for p in ray_workers(psutil.Process()) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not hung, "workers of hung units are still there"
    healed = run_stage(BadStage(BadConfig(units=7)), output, RunOptions(workers=2))
    assert (healed.done, healed.exit_code) == (4, 0)
    run_stage(BadStage(BadConfig(units=7)), str(tmp_path / "peace"))
    damage = compare(str(tmp_path / "peace"), output)
    figures.note("poison and hung units", damage, time.monotonic() - clock)
    assert not damage


@pytest.mark.prove_ci
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(("mode", "word"), [("fail", "this does not work"), ("die", "worker died")])
def test_a_stage_that_starts_in_no_worker_ends_the_run(
    mode: str, word: str, output: str, tmp_path: Path, figures: Figures, clock: float
) -> None:
    log = tmp_path / "log"
    stage = BadStage(BadConfig(units=50, mode={"start": mode}, log=str(log)))
    with pytest.raises(RunError, match=f"no worker starts.*{word}"):
        run_stage(stage, output, RunOptions(workers=2))
    assert 3 <= _begun(log).total() <= 5
    assert not manifest.list_quarantined(output)
    figures.note("workers that cannot start", Damage(), time.monotonic() - clock)


@pytest.mark.prove_ci
@pytest.mark.usefixtures("one_ray")
def test_a_full_disk_quarantines_nothing(output: str) -> None:
    stage = BadStage(BadConfig(units=50, mode={"3": "full"}))
    with pytest.raises(StorageFullError, match=r"on disk .* bytes free; make room"):
        run_stage(stage, output, RunOptions(workers=1))
    assert not manifest.list_quarantined(output)


@pytest.mark.prove_ci
def test_a_node_is_lost(output: str, tmp_path: Path, figures: Figures, clock: float) -> None:
    command = [sys.executable, "-m", "tests.prove.lost_node", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done 16" in done.stdout
    from tests.pipeline.folders import run_here

    run_here(BadStage(BadConfig(units=16)), tmp_path / "peace")
    damage = compare(str(tmp_path / "peace"), output)
    figures.note("one of two nodes lost", damage, time.monotonic() - clock)
    assert not damage


def test_bytes_do_not_depend_on_timing(
    seed: int, undisturbed: World, output: str, figures: Figures, clock: float
) -> None:
    """Other numbers of workers, another order of units, another chance in the answers of the web."""
    rng = random.Random(seed)
    name, tasks = STAGES[seed % len(STAGES)], rng.sample(range(3), 3)
    for task in tasks:
        options = RunOptions(workers=rng.choice([1, 2, 3]), task=f"{task}/3")
        assert run_stage(undisturbed.stage(name), output, options).done == UNITS // 3
    damage = compare(undisturbed.place(name), output)
    figures.note("other workers, order and timing", damage, time.monotonic() - clock)
    assert not damage
