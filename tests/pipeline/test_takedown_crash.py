"""A takedown that a crash ends anywhere: no unreadable unit, no other sample lost; run again it completes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import commit, locks, manifest, storage
from pipeline.takedown import Folders, take_down
from pipeline.tombstones import make_entry
from tests.pipeline.folders import read_tar
from tests.pipeline.takedown_world import (
    World,
    everything_in,
    keys_in,
    make_world,
    picture_of,
    rows_of,
)

#: what goes in the crash tests: a row of every shard, and a whole site
GONE = {(0, 3), (1, 3), *((0, i) for i in range(6))}
ENTRIES = [make_entry("page_domain", "page3.blog.example"), make_entry("domain", "site0.example")]


class Crash(BaseException):
    """Ends a takedown where it stands, as SIGKILL would: nothing that catches errors catches it."""


def folders_of(world: World) -> Folders:
    columns = (str(world.lengths), str(world.dedup))
    return Folders(images=(str(world.images),), columns=columns, shards=(str(world.shards),))


def all_folders(world: World) -> list[Path]:
    return [world.images, world.lengths, world.dedup / "_sketch", world.dedup, world.shards]


def parts_of(world: World) -> dict[str, bytes]:
    """Every part, index and manifest's name of a world: what must be the same however it came about."""
    found = {}
    for folder in all_folders(world):
        for info in storage.list_files(str(folder)):
            found[info.url.removeprefix(str(world.base))] = Path(info.url).read_bytes()
        for done in manifest.list_manifests(str(folder)):
            found[done.url.removeprefix(str(world.base))] = b""
    return found


def check_whole(world: World) -> None:
    """Every unit that counts as done is what its manifest says; all samples that are to stay are there."""
    for folder in all_folders(world):
        for record in manifest.read_all(str(folder)):
            for name, facts in record["files"].items():
                data = (folder / name).read_bytes()
                assert hashlib.sha256(data).hexdigest() == facts["sha256"], (folder, name)
    stay = {f"{s:08d}{i:04d}" for s in range(2) for i in range(5)} - {f"{s:08d}{i:04d}" for s, i in GONE}
    pending = [p for f in all_folders(world) for p in Path(commit.pending_folder(str(f))).glob("*")]
    for folder in (world.images, world.shards):
        tars = [*folder.glob("*.tar"), *(t for p in pending if folder in p.parents for t in p.glob("*.tar"))]
        keys = {key for tar in tars if tar.stat().st_size for key in read_tar(tar)}
        if folder == world.shards:
            assert keys >= {k for k in stay if k[-1] != "1"}
        else:
            assert keys >= stay
    assert keys_in(world.lengths) >= stay


def crashing(world: World, monkeypatch: pytest.MonkeyPatch, crash_at: int) -> bool:
    """Runs the takedown up to so many steps of the storage; whether it crashed."""
    steps = 0

    def counted(function):
        def run(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps > crash_at:
                raise Crash
            return function(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "put_file", "remove", "move", "remove_folder"):
            patch.setattr(storage, name, counted(getattr(storage, name)))
        # locks are dropped when their owner is gone; this process stays
        patch.setattr(locks, "STALE", -1.0)
        try:
            take_down(folders_of(world), ENTRIES, workers=1)
        except Crash:
            return True
    return False


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.prove)])
def test_a_crash_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    made = make_world(tmp_path / "made", shards=2)
    undisturbed = World(Path(shutil.copytree(made.base, tmp_path / "undisturbed")))
    assert not take_down(folders_of(undisturbed), ENTRIES, workers=1).failures
    expected = parts_of(undisturbed)
    for crash_at in range(0, 1000, stride):
        world = World(Path(shutil.copytree(made.base, tmp_path / str(crash_at))))
        crashed = crashing(world, monkeypatch, crash_at)
        check_whole(world)
        report = take_down(folders_of(world), ENTRIES, workers=1)
        assert not report.failures
        assert parts_of(world) == expected
        there = everything_in(*world.folders)
        assert not [g for g in GONE if rows_of(g[0])[g[1]]["caption"].encode() in there]
        assert not [g for g in GONE if g[1] != 1 and picture_of(*g) in there]
        shutil.rmtree(world.base)
        if not crashed:
            break
    assert crash_at > 50


#: says when it begins, so that the kill does not come while Python starts
PROGRAM = """
import sys, pipeline.takedown, pipeline.stages.pack
from jobs import cli, takedown
print("ready", flush=True)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.prove
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.prove_ci), 1, 2])
def test_sigkill_at_random_moments(tmp_path: Path, seed: int) -> None:
    made = make_world(tmp_path / "made", shards=2)
    undisturbed = World(Path(shutil.copytree(made.base, tmp_path / "undisturbed")))
    take_down(folders_of(undisturbed), ENTRIES)
    expected = parts_of(undisturbed)
    world = World(Path(shutil.copytree(made.base, tmp_path / "killed")))
    command = [sys.executable, "-c", PROGRAM, "takedown", *world.arguments()]
    command += ["--page-domain", "page3.blog.example", "--domain", "site0.example"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance, kills = random.Random(seed), 0
    for attempt in range(20):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        # at first so soon that no machine is done by then
        time.sleep(chance.uniform(0, min(0.3, 0.02 * 2**attempt)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        check_whole(world)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert parts_of(world) == expected
    assert kills
