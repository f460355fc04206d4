"""Kills a process between any two steps of a commit, and looks at what it left. A process of its own:

    python -m tests.prove.commit_victim FOLDER first|replacement

For every step n a child is forked that commits a unit and is killed by SIGKILL before the n-th thing that it
does to the disk: a file opened for writing, synced, renamed or removed, a folder made or removed. Prints one
JSON object: the number of steps, and the damage found.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from pipeline import manifest
from pipeline.commit import run_and_commit
from pipeline.planning import make_plan
from tests.pipeline.folders import run_here
from tests.prove.bad_stage import BadConfig, BadStage
from tests.prove.checks import Damage, compare, unreadable

#: set for the child alone; nothing of the product reads it
KILL_AT = "PAIRMILL_PROVE_KILL_AT"
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
CONFIG = BadConfig(units=1, size=500)


def kill_between_steps() -> None:
    """From here on this process counts its changes to the disk, and is killed before one of them."""
    left = int(os.environ[KILL_AT])

    def step() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def hook(event: str, arguments: tuple) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in CHANGES:
            step()

    fsync = os.fsync

    def synced(descriptor: int) -> None:
        step()
        fsync(descriptor)

    os.fsync = synced
    sys.addaudithook(hook)


def killed_child(stage: BadStage, output: str, kill_at: int) -> bool:
    """Commits the unit in a child; whether it was killed on the way."""
    plan = make_plan(stage, output, overwrite=True)
    child = os.fork()
    if not child:
        os.environ[KILL_AT] = str(kill_at)
        kill_between_steps()
        (unit,) = plan.todo
        run_and_commit(stage, unit, output, stale=plan.stale.get(unit.number, []))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def main(root: Path, kind: str) -> None:
    new = BadStage(replace(CONFIG, salt="new"))
    old = BadStage(CONFIG)
    run_here(new, root / "expected")
    total, steps = Damage(), 0
    while True:
        output = root / str(steps)
        if kind == "replacement":
            run_here(old, output)
        if not killed_child(new, str(output), steps):
            break
        total.add(Damage(unreadable=unreadable(str(output))))
        if kind == "replacement" and manifest.list_done(str(output)):
            total.add(Damage(lost=not _whole(str(output))))
        run_here(new, output, overwrite=True)
        an_hour_later(output)
        make_plan(new, str(output))
        total.add(compare(str(root / "expected"), str(output)))
        steps += 1
    total.add(compare(str(root / "expected"), str(output)))
    print(json.dumps({"steps": steps, "damage": vars(total)}))


def _whole(output: str) -> bool:
    """Whether every part of the unit that counts as done is there."""
    (record,) = manifest.read_all(output)
    return all((Path(output) / name).exists() for name in record["files"])


def an_hour_later(output: Path) -> None:
    """Makes everything in a folder look two hours older, and sweeps as the next run does."""
    from pipeline.runner import sweep

    for folder, _, names in os.walk(output):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):  # a worker whose driver was killed may still commit
                os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 7200))
    sweep(str(output))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
