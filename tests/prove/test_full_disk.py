"""A disk that fills up: the message names it, nothing half-written stays, and a rerun completes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from tests.prove.checks import Damage, compare, leftovers, unreadable
from tests.prove.conftest import Figures
from tests.prove.world import UNITS, World

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.prove, pytest.mark.prove_ci]


def _mount(folder: Path, size: str, *, again: bool = False) -> None:
    how = f"{'remount,' if again else ''}size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", how, "pairmill-prove", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB. Mounting one takes root; without, a stage that reports a full disk is all there is
    (test_bad_units)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        _mount(folder, "200k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _pack(world: World, output: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["pack", *world.options("pack"), f"--output={output}", "--workers=1", "--ray.cpus=1"]
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_the_disk_of_the_output_is_full(
    undisturbed: World, small_disk: Path, figures: Figures, clock: float
) -> None:
    output = small_disk / "shards"
    ended = _pack(undisturbed, output)
    assert ended.returncode == 1
    assert f"on disk {small_disk} with " in ended.stderr
    assert "204,800 bytes free; make room" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert 0 < len(manifest.list_done(str(output))) < UNITS
    assert not leftovers(str(output))
    assert not unreadable(str(output))
    _mount(small_disk, "16m", again=True)
    again = run_stage(undisturbed.stage("pack"), str(output), RunOptions(workers=1))
    assert (again.exit_code, again.done_before + again.done) == (0, UNITS)
    damage = compare(undisturbed.place("pack"), str(output))
    figures.note("full disk: output", damage, time.monotonic() - clock)
    assert not damage


def test_the_disk_for_scratch_is_full(
    undisturbed: World, small_disk: Path, tmp_path: Path, figures: Figures, clock: float
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(190_000))
    output = tmp_path / "shards"
    # Ray has a scratch disk of its own, which is not the matter here
    ended = _pack(undisturbed, output, TMPDIR=str(small_disk), RAY_TMPDIR="/tmp")
    assert ended.returncode == 1
    assert f"on disk {small_disk} with " in ended.stderr
    assert not leftovers(str(output))
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    figures.note("full disk: scratch", Damage(), time.monotonic() - clock)
