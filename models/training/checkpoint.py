"""Checkpoints: a folder per step that appears whole or not at all, and is never written twice.

    checkpoints/step_00000500/
        engine/         DeepSpeed: weights, optimizer state, each process its own part
        system.pt       momentum teacher and queues
        meta.json       step, number of processes, ZeRO stage, corrupt samples seen, versions, sizes of files
        COMPLETE        written last
        universal/      the same state for any number of processes, once it was needed (universal.py)

No random state is saved, because none carries over from one step to the next: every draw is keyed by
(seed, step, row of the sample), dropout by (seed, step, rank). Nor is a position of the loader: the global
batch is a function of (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.training.stopping import LocalError

#: in torch's errors when it cannot write a file; those of the connections are of the same type
FROM_WRITING = ("inline_container", "PytorchStreamWriter", "Parent directory")
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
    """Removes what a kill left behind: unfinished checkpoints, and unfinished conversions of whole ones."""
    folder = run / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not (path / COMPLETE).is_file():
            shutil.rmtree(path)
        for temp in path.glob(".*.tmp"):
            shutil.rmtree(temp)


def damage(checkpoint: Path) -> str:
    """What is missing from a complete checkpoint, or an empty text. DeepSpeed itself goes on without the
    optimizer's state when a file of it is not there."""
    try:
        sizes: dict[str, int] = read_meta(checkpoint).get("files", {})
    except (OSError, json.JSONDecodeError) as error:
        return f"meta.json cannot be read ({error})"
    for name, size in sizes.items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} should have {size} bytes and " + (
                "is missing" if found is None else f"has {found}"
            )
    return ""


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

    Raises:
        LocalError: this process could not write its part (a full disk); the checkpoints before it stand.
    """
    try:
        return _save(run, step, meta, write_parts, is_main, barrier, keep)
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(word in str(error) for word in FROM_WRITING):
            raise  # a lost connection to another process: nothing is wrong with the disk
        raise LocalError(
            f"step {step} could not be saved into {run}: {error}; the checkpoints before it stand: make "
            "room and start again to go on"
        ) from error


def _save(
    run: Path,
    step: int,
    meta: dict[str, Any],
    write_parts: Callable[[Path], None],
    is_main: bool,
    barrier: Callable[[], None],
    keep: int,
) -> Path:
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
        files = {str(p.relative_to(temp)): p.stat().st_size for p in sorted(temp.rglob("*")) if p.is_file()}
        text = json.dumps({**meta, "files": files}, indent=1) + "\n"
        (temp / "meta.json").write_text(text, encoding="utf-8")
        sync(temp)
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


def sync(folder: Path) -> None:
    """Brings all files of a folder to the disk."""
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
