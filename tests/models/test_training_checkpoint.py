"""Checkpoints on disk: a kill at any system call of a save costs nothing, damage is seen, errors are told."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from models.training import checkpoint
from models.training.stopping import LocalError

CALLS = ("mkdir", "replace", "unlink", "rmdir", "fsync", "open")


def body(step: int) -> bytes:
    return b"weights of step %d" % step * 50


def save(run: Path, step: int) -> None:
    def write_parts(folder: Path) -> None:
        (folder / "engine").mkdir()
        for part in range(2):
            (folder / "engine" / f"part_{part}.pt").write_bytes(body(step))

    checkpoint.save(
        run,
        step=step,
        meta={"step": step},
        write_parts=write_parts,
        is_main=True,
        barrier=lambda: None,
        keep=2,
    )


def save_killed(run: Path, step: int, at: int) -> bool:
    """Saves in a child that is killed before its `at`-th system call; whether it was."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def count(original):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, count(getattr(os, name)))
        save(run, step)
        os._exit(0)
    return os.waitpid(pid, 0)[1] != 0


def test_a_kill_at_any_call_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    at, newest = 0, set()
    while True:
        run = tmp_path / str(at)
        save(run, 1)
        save(run, 2)
        killed = save_killed(run, 3, at)
        last = checkpoint.last_complete(run)
        assert last is not None
        newest.add(checkpoint.step_of(last))
        for path in checkpoint.list_complete(run):
            assert checkpoint.damage(path) == "", f"killed before call {at}"
        if checkpoint.step_of(last) == 2:
            assert (last / "engine" / "part_1.pt").read_bytes() == body(2)
        checkpoint.sweep(run)
        save(run, 3)
        assert [checkpoint.step_of(p) for p in checkpoint.list_complete(run)] == [2, 3]
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000002", "step_00000003"]
        if not killed:
            break
        at += 1
    assert at > 15, "too few calls were seen: the save no longer goes through them"
    assert newest == {2, 3}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "engine" / "part_1.pt").unlink(), r"part_1\.pt should have 850 bytes and is missing"),
        (lambda p: (p / "engine" / "part_0.pt").write_bytes(b"x"), r"850 bytes and has 1"),
        (lambda p: (p / "meta.json").write_text("{"), r"meta\.json cannot be read"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, says: str) -> None:
    save(tmp_path, 1)
    [path] = checkpoint.list_complete(tmp_path)
    assert checkpoint.damage(path) == ""
    damage(path)
    assert re.search(says, checkpoint.damage(path))


def test_a_part_that_cannot_be_written_is_told_and_the_one_before_stands(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(LocalError, match=r"step 2 could not be saved.*No space left.*make room"):
        checkpoint.save(
            tmp_path, step=2, meta={}, write_parts=full, is_main=True, barrier=lambda: None, keep=2
        )
    [path] = checkpoint.list_complete(tmp_path)
    assert checkpoint.step_of(path) == 1


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534", LocalError),
        ("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer", RuntimeError),
    ],
)
def test_a_connection_lost_in_a_save_is_no_error_of_the_disk(tmp_path: Path, said: str, told: type) -> None:
    """A full disk would be full again; a process that was killed in a save is none's error."""

    def fail(folder: Path) -> None:
        raise RuntimeError(said)

    with pytest.raises(RuntimeError) as caught:
        checkpoint.save(
            tmp_path, step=1, meta={}, write_parts=fail, is_main=True, barrier=lambda: None, keep=2
        )
    assert type(caught.value) is told


def test_a_sweep_takes_what_is_unfinished_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1)
    [path] = checkpoint.list_complete(tmp_path)
    (tmp_path / "checkpoints" / "step_00000002.tmp").mkdir()
    (path / ".universal.tmp").mkdir()
    (path / "universal").mkdir()
    checkpoint.sweep(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [path.name]
    assert (path / "universal").is_dir()
    assert not (path / ".universal.tmp").exists()
