"""SIGKILL at random moments: of workers, and of the whole command, in every stage.

Afterwards the same command completes: nothing lost, nothing twice, the bytes of a run in peace.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline import manifest
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from tests.prove.checks import Damage, compare
from tests.prove.commit_victim import an_hour_later
from tests.prove.conftest import Figures
from tests.prove.world import STAGES, UNITS, World

ROOT = Path(__file__).parents[2]
#: one unit must not lose three workers, which would rightly quarantine it
KILLS = 2

pytestmark = pytest.mark.prove


def ray_workers(process: psutil.Process) -> list[psutil.Process]:
    """The workers of the Ray that a process has started which hold a stage, idle ones included."""
    found = []
    for child in process.children(recursive=True):
        try:
            if child.name().startswith("ray::Worker"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


class Killer(threading.Thread):
    """Kills some worker of this process's Ray `KILLS` times, each a moment after so many units stand as
    chance says. The clock alone would come too late on a quiet machine."""

    def __init__(self, rng: random.Random, output: str) -> None:
        super().__init__(daemon=True)
        self.rng, self.output = rng, output
        self.killed, self.over = 0, threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        # two units at least are left then
        for units in sorted(self.rng.sample(range(UNITS - 2), KILLS)):
            moment = self.rng.uniform(0.0, 0.05)
            while not self.over.wait(0.005):
                if len(manifest.list_done(self.output)) < units or not ray_workers(me):
                    continue
                self.over.wait(moment)
                if workers := ray_workers(me):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        self.rng.choice(workers).kill()
                        self.killed += 1
                        break


@pytest.mark.parametrize("name", STAGES)
def test_workers_are_killed(
    name: str, seed: int, undisturbed: World, output: str, figures: Figures, clock: float
) -> None:
    killer = Killer(random.Random(f"{name} {seed}"), output)
    killer.start()
    summary = run_stage(undisturbed.stage(name), output, RunOptions(workers=2))
    killer.over.set()
    killer.join()
    assert killer.killed
    assert (summary.exit_code, summary.done) == (0, UNITS)
    an_hour_later(Path(output))
    damage = compare(undisturbed.place(name), output)
    figures.note(f"SIGKILL of workers: {name}", damage, time.monotonic() - clock)
    assert not damage


@pytest.mark.parametrize("name", STAGES)
def test_the_command_is_killed(
    name: str, seed: int, undisturbed: World, output: str, figures: Figures, clock: float
) -> None:
    rng = random.Random(f"{name} {seed}")
    done = _run_and_kill(undisturbed, name, output, after=rng.randrange(UNITS), later=rng.uniform(0.0, 0.3))
    an_hour_later(Path(output))
    again = run_stage(undisturbed.stage(name), output, RunOptions(workers=1))
    assert again.exit_code == 0
    # a worker whose driver is gone may still commit the unit that it has
    assert again.done <= UNITS - done
    damage = compare(undisturbed.place(name), output)
    figures.note(f"SIGKILL of the command: {name}", damage, time.monotonic() - clock)
    assert not damage


def _run_and_kill(world: World, name: str, output: str, *, after: int, later: float) -> int:
    """Starts the command and kills it `later` seconds after so many units were done; those done by then."""
    words = [name, *world.options(name), f"--output={output}", "--workers=1", "--ray.cpus=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while process.poll() is None and len(manifest.list_done(output)) < after:
        assert time.monotonic() < deadline, f"{name}: no {after} units within 100 s"
        time.sleep(0.01)
    if not after:  # anywhere on the way to the first unit
        time.sleep(later * 20)
    time.sleep(later)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=20) in (-signal.SIGKILL, 0)
    return len(manifest.list_done(output))


@pytest.mark.parametrize("to_the_last", [pytest.param(False, marks=pytest.mark.prove_ci), True])
def test_nothing_of_a_killed_command_stays_alive(to_the_last: bool, output: str, figures: Figures) -> None:
    """Its Ray, and a worker in the midst of a unit, in C code that holds the interpreter's lock."""
    began = time.monotonic()
    script = (
        "import sys; from tests.prove.bad_stage import *; "
        "run_stage(BadStage(BadConfig(mode={'0': 'hold', '1': 'hold'}, log=sys.argv[2])), sys.argv[1])"
    )
    log = Path(output).with_name("log")
    process = subprocess.Popen([sys.executable, "-c", script, output, str(log)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("hold") < 2:
        assert time.monotonic() < deadline, "no unit was begun within a minute"
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(ray_workers(psutil.Process(process.pid))) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    # two helpers without work take their time
    assert {p.name() for p in alive if p.is_running()} <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    if to_the_last:
        _, alive = psutil.wait_procs(alive, timeout=120)
        assert not alive
    figures.note("processes of a killed command", Damage(), time.monotonic() - began)
