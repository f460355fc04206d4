"""Parts of a job that run on its nodes: one task a node by srun, and the command of this installation."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.slurm.allocation import Allocation
from pipeline.errors import ConfigError

#: variable of site.sh: the program by which this command is entered on a node, where it lives in a container
ENTRY = "PAIRMILL_COMMAND"
#: tells the tasks of a step to end: srun passes it on; at SIGTERM it kills them before they can clean up
STOP = signal.SIGUSR2
#: seconds that they have for it
PATIENCE = 30.0


def command(name: str = "pairmill") -> str:
    """The path of a command of this installation.

    By its path, so that neither `PATH` nor a folder `jobs` where the job was submitted can take its place.

    Raises:
        ConfigError: it is not installed.
    """
    ours = Path(sysconfig.get_path("scripts")) / name
    found = str(ours) if ours.is_file() else shutil.which(name)
    if not found:
        raise ConfigError(
            f"the command {name!r} is not installed in {ours.parent}; pip install pairmill there"
        )
    return found


def names(folder: Path) -> set[str]:
    """What lies in a folder; reading it makes network disks look anew."""
    return {path.name for path in folder.iterdir()}


def fresh(folder: Path) -> None:
    """Makes the folder of an attempt, empty: another cluster may have had a job of this number."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()


def on_every_node(
    allocation: Allocation,
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    options: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Starts `pairmill WORDS` once on each node; it sees its node's number as SLURM_NODEID."""
    return subprocess.Popen(
        [
            "srun", f"--nodes={allocation.nodes}", f"--ntasks={allocation.nodes}", "--ntasks-per-node=1",
            # since SLURM 22.05 srun does not take this from the job
            f"--cpus-per-task={allocation.cpus}",
            # nor, of a node that the job has for itself, GPUs that were not asked for
            *([f"--gpus-per-node={allocation.gpus}"] if allocation.gpus else []),
            *options, "--", os.environ.get(ENTRY) or command(), *words,
        ],
        # environment.sh has unset SLURM_EXPORT_ENV, so all of this reaches the nodes
        env={**os.environ, **environment},
        # its own group: what a terminal or a batch system sends to ours is not meant for it
        start_new_session=True,
    )  # fmt: skip


def end(step: subprocess.Popen[bytes]) -> int:
    """Ends a step on all nodes; returns srun's exit code."""
    for number in (STOP, signal.SIGTERM, signal.SIGKILL):
        if step.poll() is None:
            step.send_signal(number)
            try:
                return step.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                continue
    return step.wait()
