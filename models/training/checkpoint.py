"""Checkpoints: a folder per step that appears whole or not at all, and is never written twice.

    checkpoints/step_00000500/
        engine/         DeepSpeed: weights, optimizer state, each process its own part
        system.pt       momentum teacher and queues
        meta.json       step, number of processes, ZeRO stage, corrupt samples seen, versions
        COMPLETE        written last

No random state is saved, because none carries over from one step to the next: every draw is keyed by
(seed, step, rank).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMPLETE = "COMPLETE"
PREFIX = "step_"


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{PREFIX}{step:08d}"


def list_complete(run: Path) -> list[Path]:
    """The checkpoints that can be loaded, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.startswith(PREFIX) and (p / COMPLETE).is_file())


def last_complete(run: Path) -> Path | None:
    return next(reversed(list_complete(run)), None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def sweep(run: Path) -> None:
    """Removes what a kill left behind: unfinished checkpoints."""
    folder = run / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not (path / COMPLETE).is_file():
            shutil.rmtree(path)


def save(
    run: Path,
    *,
    step: int,
    meta: dict[str, Any],
    write_parts: Callable[[Path], None],
    is_main: bool,
    barrier: Callable[[], None],
    keep: int,
) -> Path:
    """Saves one checkpoint; every process calls it.

    Args:
        write_parts: writes this process's parts into the folder it is given.
        keep: how many of the newest complete checkpoints stay.
    """
    final = checkpoint_path(run, step)
    temp = final.with_name(f"{final.name}.tmp")
    if is_main:
        for stale in (temp, final):
            shutil.rmtree(stale, ignore_errors=True)
        temp.mkdir(parents=True)
    barrier()
    write_parts(temp)
    barrier()
    if is_main:
        (temp / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        _sync(temp)
        temp.replace(final)
        (final / COMPLETE).touch()
        _sync_folder(final)
        _sync_folder(final.parent)
        for old in list_complete(run)[:-keep]:
            # unmarked first: a kill in the middle of the removal leaves nothing that looks whole
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
    barrier()
    return final


def read_meta(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
