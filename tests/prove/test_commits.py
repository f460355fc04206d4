"""SIGKILL between each step of a commit, the first one of a unit and its replacement: no visible shard that
cannot be read, and the same command completes it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.prove.checks import Damage
from tests.prove.conftest import Figures

ROOT = Path(__file__).parents[2]


@pytest.mark.prove
@pytest.mark.prove_ci
@pytest.mark.parametrize(("kind", "least"), [("first", 30), ("replacement", 60)])
def test_killed_at_every_step_of_a_commit(
    kind: str, least: int, tmp_path: Path, figures: Figures, clock: float
) -> None:
    command = [sys.executable, "-m", "tests.prove.commit_victim", str(tmp_path), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    damage = Damage(**found["damage"])
    name = f"SIGKILL at each step of a commit: {kind}"
    figures.note(name, damage, time.monotonic() - clock, runs=found["steps"])
    assert found["steps"] >= least
    assert not damage
