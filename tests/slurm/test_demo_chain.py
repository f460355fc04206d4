"""The demo's chain, submitted step by step: the same bytes as without SLURM, ALBEF over two nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.chain import choose, run_chain
from jobs.demo.__main__ import CHAIN, load_steps
from jobs.demo.server import serve
from jobs.demo.world import World, build_world
from jobs.slurm import books
from jobs.slurm.steps import command
from tests.prove.checks import checksums
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.prove, pytest.mark.prove_ci, pytest.mark.timeout(1200)]

DATA = ("candidates", "images", "trusted", "columns/clip", "columns/dedup", "shards", "heldout")
#: a scorer that has seen so little cannot tell right captions from wrong ones
SMALL = {
    "scorer": ["--epochs=2"],
    "pack": ["--where=clip_score > -1 AND duplicate_of IS NULL"],
    "albef": ["--epochs=1", "--checkpoint_every=0"],
    "evaluate": ["--pool=100"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    built = build_world(tmp_path_factory.mktemp("a small web") / "world", seed=1, scale=0.1, heldout=100)
    with serve(built.folder):
        yield built


@pytest.fixture(scope="module")
def local(world: World) -> Path:
    """The folder of a run without SLURM, up to the shards."""
    root = world.folder.parent
    steps = load_steps(root, world, overrides=SMALL)
    wanted = [step for step in steps if step.name not in ("albef", "evaluate", "report")]
    assert run_chain(wanted) == 0
    return root


def test_every_step_is_a_job_and_the_bytes_are_the_same(
    slurm: Cluster, world: World, local: Path, tmp_path: Path
) -> None:
    root = tmp_path / "submitted's root"
    root.mkdir()
    (root / "world").symlink_to(world.folder)
    shutil.copytree(local / "runs/scorer", root / "runs/scorer")
    steps = load_steps(root, world, overrides=SMALL)

    said = submit(root, world)

    jobs = books.read_submitted(root / "slurm")
    assert {job.step for job in jobs} == {step.name for step in choose(steps)}, said
    for job in jobs:
        facts = slurm.wait(job.job, seconds=400)
        log = next((root / "slurm/logs").glob(f"{job.step}-{job.job}*"), None)
        assert facts["ExitCode"] == "0:0", f"{job}: {facts}\n{log and log.read_text()}"
    for folder in DATA:
        expected = checksums(str(local / folder))
        assert expected
        assert checksums(str(root / folder)) == expected, folder
    assert json.loads((root / "runs/albef/eval/retrieval.json").read_text())["pool"]["pictures"] == 100
    assert (root / "report.html").stat().st_size > 10_000

    assert "nothing" in submit(root, world)
    assert books.read_submitted(root / "slurm") == jobs


def submit(root: Path, world: World) -> str:
    words = [
        command(),
        "submit",
        str(CHAIN),
        f"--set.root={root}",
        f"--set.hosts={json.dumps(world.allow_private)}",
    ]
    words += ["--set.attribution=none", "--slurm.all.cpus-per-task=1", "--slurm.all.mem=2G"]
    words += ["--slurm.crawl.nodes=2", "--slurm.score.array=4", "--slurm.albef.nodes=2"]
    words += [
        f"--{step}.{option.removeprefix('--')}" for step, options in SMALL.items() for option in options
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
