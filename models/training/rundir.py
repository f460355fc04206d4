"""The run folder: what it holds, whether it may go on, and whether it is finished already.

    run.json        semantic config, digest, fingerprints of the shards, state, number of steps
    config.yaml     the resolved configuration, every option
    counts.json     the shards and how many samples each holds
    indexes/        where the samples lie in the shards read last; may be deleted
    tokenizer/      the tokenizer of the run
    checkpoints/    step_00000500/ ... with a COMPLETE marker
    metrics.jsonl   one row per logged step
    tensorboard/    the same for TensorBoard
    wandb/ wandb.json   the same for Weights & Biases, and the id of the run there
    validation/     where the held-out pairs lie in their shards
    model_best/     the exported model of the best validation
    model/          the exported model (models/exported.py), when the run is finished
    STOP            put there by anybody: the run saves and stops
    _pairmill/running/  that the run is under way just now (pipeline.pulse)

This module imports no torch, so that a finished run is recognised at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from models.training.config import TrainConfig, digest, shareable
from models.training.stopping import STOP
from pipeline import storage
from pipeline.settings import differences, semantic_config

FINISHED, RUNNING = "finished", "running"
#: seconds that a run which was just killed may take to let go of its folder: its data workers hold it too
PATIENCE = 3.0
VALIDATED = ("validation", "model_best")


def prepare_run(config: TrainConfig, *, inputs: Sequence[str], overwrite: bool = False) -> bool:
    """Opens a run folder for this configuration. Returns whether the run is finished already.

    Args:
        inputs: fingerprints of the shards' content, in order.
        overwrite: where the folder holds a run of another configuration, throw that away.

    Raises:
        ValueError: the folder holds a run of another configuration; says what differs.
    """
    folder = Path(config.output)
    (folder / STOP).unlink(missing_ok=True)
    if refuse_another(config, inputs=inputs, overwrite=overwrite):
        clear_run(folder)
    if is_finished(config, inputs=inputs):
        return True
    now = _facts(config, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, {**now, "zero_stage": config.zero.stage, "state": RUNNING})
    storage.write_bytes(
        str(folder / "config.yaml"), (yaml.safe_dump(shareable(config), sort_keys=False)).encode()
    )
    return False


def refuse_another(config: TrainConfig, *, inputs: Sequence[str], overwrite: bool) -> bool:
    """Whether the run folder holds a run of another configuration, which `overwrite` allows to throw away.

    Raises:
        ValueError: it does, and `overwrite` is off; says what differs.
    """
    record, now = read_record(Path(config.output)), _facts(config, inputs)
    if record is None or record["digest"] == now["digest"]:
        return False
    if not overwrite:
        differences = "; ".join(compare(record, now)) or "the digest alone differs"
        raise ValueError(
            f"{config.output} holds a run that was made differently: {differences}. "
            "Pass --overwrite to start it anew, or choose another --output"
        )
    return True


def _facts(config: TrainConfig, inputs: Sequence[str]) -> dict[str, Any]:
    return {"semantic": semantic_config(config), "inputs": list(inputs), "digest": digest(config, inputs)}


def is_finished(config: TrainConfig, *, inputs: Sequence[str]) -> bool:
    """Whether the run folder holds this very run, finished; changes nothing."""
    record = read_record(Path(config.output))
    if record is None or record["state"] != FINISHED or record["digest"] != digest(config, inputs):
        return False
    return (Path(config.output) / "model" / "config.json").is_file()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run folder; the lock goes with the process, however that ends.

    Raises:
        ValueError: another process is training into this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as stream:
        patience = time.monotonic() + PATIENCE
        while not _lock(stream):
            if time.monotonic() > patience:
                raise ValueError(
                    f"another process is training into {folder}; wait for it, or choose another --output"
                )
            time.sleep(0.1)
        yield


def _lock(stream: TextIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def finish_run(folder: Path) -> None:
    record = read_record(folder)
    assert record is not None, f"{folder} has no run.json"
    write_record(folder, {**record, "state": FINISHED})


def note_steps(folder: Path, steps: int) -> None:
    """Notes how many steps the run comes to, for `pairmill status`: epochs alone do not tell it without data.
    No part of the digest."""
    record = read_record(folder)
    if record is not None and record.get("steps") != steps:
        write_record(folder, {**record, "steps": steps})


def clear_run(folder: Path) -> None:
    """Removes what a run wrote, and nothing else."""
    for name in ("checkpoints", "tokenizer", "tensorboard", "model", "eval", "indexes", *VALIDATED, "wandb"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "config.yaml", "counts.json", "run.json", "wandb.json", STOP):
        (folder / name).unlink(missing_ok=True)


def read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    storage.write_bytes(str(folder / "run.json"), (json.dumps(record, indent=1) + "\n").encode())


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, as `name old -> new`."""
    found = differences(before["semantic"], now["semantic"])
    if before["inputs"] != now["inputs"]:
        changed = len(set(before["inputs"]) ^ set(now["inputs"]))
        found.append(f"the shards ({len(before['inputs'])} -> {len(now['inputs'])}, {changed} differ)")
    return found
