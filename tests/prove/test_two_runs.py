"""Two runs at once on one output: of the same options they share it, of others one is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.runner import run_stage
from tests.prove.bad_stage import BadConfig, BadStage
from tests.prove.checks import Damage, compare, leftovers, unreadable
from tests.prove.conftest import Figures
from tests.prove.world import UNITS, World

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.prove, pytest.mark.timeout(400)]


def _start(words: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE
    )


def _crawl(world: World, output: str, *options: str) -> subprocess.Popen[str]:
    words = [
        "jobs.cli",
        "crawl",
        *world.options("crawl"),
        f"--output={output}",
        "--workers=1",
        "--ray.cpus=1",
    ]
    return _start([*words, *options])


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=150)
    return process.returncode, errors


@pytest.mark.prove_ci
def test_the_same_command_twice(undisturbed: World, output: str, figures: Figures, clock: float) -> None:
    first, second = _crawl(undisturbed, output), _crawl(undisturbed, output)
    for code, errors in (_end(first), _end(second)):
        assert code == 0, errors
    damage = compare(undisturbed.place("crawl"), output)
    figures.note("two runs at once: the same", damage, time.monotonic() - clock)
    assert not damage


@pytest.mark.prove_ci
def test_two_commands_of_different_options(
    undisturbed: World, output: str, figures: Figures, clock: float
) -> None:
    """One is refused and says why; the other one's output is as if it had been alone."""
    same, other = _crawl(undisturbed, output), _crawl(undisturbed, output, "--image_size=48")
    ends = {"64": _end(same), "48": _end(other)}
    assert sorted(code for code, _ in ends.values()) == [0, 2], ends
    refused = next(errors for code, errors in ends.values() if code == 2)
    assert "image_size" in refused
    assert "made differently" in refused or "another run" in refused
    damage = Damage(unreadable=unreadable(output), left=len(leftovers(output)))
    sizes = {m["config"]["image_size"] for m in manifest.read_all(output)}
    assert len(sizes) == 1
    if sizes == {64}:
        damage = compare(undisturbed.place("crawl"), output)
    else:
        damage.lost = UNITS - len(manifest.list_done(output))
    figures.note("two runs at once: other options", damage, time.monotonic() - clock)
    assert not damage


@pytest.mark.parametrize("round_", range(5))
def test_runs_whose_bytes_differ_do_not_mix(
    round_: int, output: str, figures: Figures, clock: float, tmp_path: Path
) -> None:
    """The web is another one every minute. Three runs, one of them killed: every unit is of one make."""
    runs = [_start(["tests.prove.restless", output]) for _ in range(3)]
    deadline = time.monotonic() + 100
    while len(manifest.list_done(output)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.Random(round_).uniform(0, 1))
    runs[0].kill()
    codes = [_end(process)[0] for process in runs]
    assert codes[0] in (-9, 0)
    assert codes[1:] == [0, 0]
    run_stage(BadStage(BadConfig(units=24, volatile_salt=True)), output)
    done = manifest.list_manifests(output)
    damage = Damage(
        lost=24 - len({d.number for d in done}),
        duplicated=len(done) - len({d.number for d in done}),
        unreadable=unreadable(output),
        left=len(leftovers(output)),
    )
    figures.note("three runs at once, bytes that differ", damage, time.monotonic() - clock)
    assert not damage
