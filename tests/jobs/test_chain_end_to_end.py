"""The data half of the demo's chain on a small world: byte identity through deletions, kills and reruns."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs import cli
from jobs.demo.server import serve
from jobs.demo.world import World, build_world
from pipeline import manifest, session

STEPS = ("candidates", "images", "columns/dedup", "shards")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A web of some hundred pictures, served on loopback."""
    built = build_world(tmp_path_factory.mktemp("small") / "world", seed=3, scale=0.06, heldout=20)
    with serve(built.folder):
        yield built


def _chain(world: World, root: Path) -> Path:
    hosts = json.dumps(world.allow_private)
    crawl = {"allow_private": hosts, "total_timeout": 4, "read_timeout": 2, "retries": 1}
    steps = {
        "discover": {"input": f"{world.archives}/*.gz", "output": "{root}/candidates", "rules": "laion400m"},
        "crawl": {"input": "{root}/candidates", "output": "{root}/images", "image_size": 64, "fetch": crawl},
        "dedup": {"input": "{root}/images", "output": "{root}/columns/dedup", "buckets": 2},
        "pack": {
            "input": "{root}/images",
            "columns": ["{root}/columns/dedup"],
            "where": "duplicate_of IS NULL",
            "output": "{root}/shards",
            "group": 2,
        },
    }
    path = root / "chain.yaml"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"root": str(root), "steps": steps}, sort_keys=False))
    return path


def _checksums(root: Path) -> dict[str, str]:
    """sha256 of every part that is not volatile, by path."""
    found = {}
    for step in STEPS:
        for record in manifest.read_all(str(root / step)):
            for name, facts in record["files"].items():
                if not facts.get("volatile"):
                    data = (root / step / name).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == facts["sha256"], name
                    found[f"{step}/{name}"] = facts["sha256"]
    return found


def _mtimes(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for step in STEPS for p in (root / step).glob("*.*")}


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    with session.shared_session():
        assert cli.main(["run", str(_chain(world, root))]) == 0
    return root


def test_counts_add_up_along_the_chain(undisturbed: Path) -> None:
    discover, crawl, _, pack = (
        manifest.total_counts(manifest.read_all(str(undisturbed / step))) for step in STEPS
    )
    assert discover.kept == crawl.taken == pack.taken
    assert pack.kept == crawl.kept - pack.dropped["predicate"]
    assert {"opt_out", "http_status", "not_an_image"} <= set(crawl.dropped)
    assert {"not_http", "no_alt", "short_caption"} <= set(discover.dropped)


def test_rerun_does_nothing_and_a_deleted_shard_comes_back_as_it_was(
    world: World, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = str(undisturbed / "chain.yaml")
    sums, times = _checksums(undisturbed), _mtimes(undisturbed)
    assert cli.main(["run", chain]) == 0
    assert _mtimes(undisturbed) == times
    assert capsys.readouterr().err.count("nothing to do") == 6  # dedup is three stages
    victim = undisturbed / "images/00000001.tar"
    victim.unlink()
    with session.shared_session():
        assert cli.main(["run", chain]) == 0
    assert _checksums(undisturbed) == sums
    changed = {Path(p).name for p, t in _mtimes(undisturbed).items() if times[p] != t}
    assert changed == {"00000001.tar", "00000001.parquet", "00000001_stats.json"}


@pytest.mark.prove
@pytest.mark.prove_ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_anywhere_it_completes_to_the_same_bytes(
    world: World, undisturbed: Path, tmp_path: Path, number: int
) -> None:
    chain = _chain(world, tmp_path)
    rng = random.Random(int(number))
    command = [sys.executable, "-m", "jobs.cli", "run", str(chain)]
    for _ in range(2):
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], env=dict(os.environ),
            # else, in the background of a shell without job control, Ctrl-C is ignored here
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        time.sleep(rng.uniform(8, 25))
        process.send_signal(number)
        assert process.wait(timeout=90) in (75, 0, -signal.SIGKILL)
    with session.shared_session():
        assert cli.main(["run", str(chain)]) == 0
    assert _checksums(tmp_path) == _checksums(undisturbed)
