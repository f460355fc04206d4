"""What runs on each node of a job: `pairmill batch node ray FOLDER`, `pairmill batch node torch FILE`.

Started by srun, once a node. The first node of a Ray cluster is its head. Ray's servers are children of a
`ray start --block`, and the kernel ends them with it, as it ends that with this process: whatever is killed,
nothing of a job stays on a node.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from jobs.slurm import offspring, ray_nodes, steps, training
from jobs.slurm.allocation import free_port, own_address, read_allocation
from models.training.stopping import die_with_parent
from pipeline import scratch, storage

#: a socket's path may have 107 bytes: of 64 is what Ray puts after its folder, of 23 that folder's name
LONGEST_TEMPORARY = 20
#: where there is no short one
SHORT = "/tmp"
#: what `ray start` writes into its temporary folder when its servers stand
STANDS = "ray_current_cluster"
LOGS = "session_latest/logs"
#: without these a node is no part of a cluster
SERVERS = ("gcs_server", "raylet")
TRIES = 3
#: bytes on the disk without which there is no use in another try
NEEDED = 10 << 20
TICK = 0.2
EXIT_DONE, EXIT_FAILED = 0, 1


def main(argv: Sequence[str]) -> int:
    """Returns 0 when it was told to end, 1 when something else ended it."""
    kind, place = argv
    if kind == "torch":
        return training.on_node(Path(place))
    return ray_on_node(Path(place))


@dataclass(frozen=True)
class Started:
    """`ray start --block`, and what it says: kept in memory, since a full disk is what it may say."""

    process: subprocess.Popen[bytes]
    said: BinaryIO

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def tell(self, what: str, temporary: Path) -> None:
        """Tells the job's log; of what Ray said, the end, and of each server's last words the first."""
        self.said.seek(0)
        said = self.said.read()[-3000:]
        for name in SERVERS:
            with contextlib.suppress(OSError):
                said += (temporary / LOGS / f"{name}.err").read_bytes()[:500]
        text = said.decode(errors="replace").strip() or "nothing"
        node = os.environ.get("SLURMD_NODENAME", "this node")
        room = f"{shutil.disk_usage(temporary).free >> 20} MiB free in {temporary.parent.parent}"
        print(f"{what} on {node} ({room}); it said: {text}", file=sys.stderr, flush=True)


def ray_on_node(folder: Path) -> int:
    """Starts Ray's servers, says so, and watches them until SIGTERM; then ends them, and nothing else."""
    offspring.adopt()
    number, patience = read_allocation().node, offspring.PATIENCE
    with _told_to_end() as told, _temporary_folder() as temporary:
        try:
            ray = _head(folder, temporary, told) if number == 0 else _member(folder, temporary, told)
            if ray is None:
                patience = 0.0
                return EXIT_DONE if told else EXIT_FAILED
            storage.write_bytes(str(folder / f"{ray_nodes.READY}{number}"), b"")
            if (code := _watch(ray, temporary, told)) != EXIT_DONE:
                storage.write_bytes(str(folder / f"{ray_nodes.LOST}{number}"), b"")
                patience = 0.0  # workers without their servers have nothing to end in peace
            return code
        finally:
            offspring.end_all(seconds=patience)


@contextlib.contextmanager
def _told_to_end() -> Iterator[list[int]]:
    told: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, steps.STOP):
        signal.signal(number, note)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield told


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """For Ray's sockets and logs: of this attempt alone, on this node, with a short name. What killed ones
    have left on the node goes first."""
    base = SHORT if len(tempfile.gettempdir()) > LONGEST_TEMPORARY else None
    scratch.sweep(base=base)
    with scratch.folder(base=base) as folder:
        yield folder


def _head(folder: Path, temporary: Path, told: Sequence[int]) -> Started | None:
    """The head, once it stands; its address is in `folder` then."""
    for _ in _tries(temporary, told):
        address = f"{own_address()}:{free_port()}"
        # no dashboard: it would listen on one more port
        words = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        if find_spec("grpc"):
            # Ray then serves clients outside as well, on port 10001 unless told, which jobs of a node share
            words.append(f"--ray-client-server-port={free_port()}")
        if ray := _start(folder, temporary, words, told):
            storage.write_bytes(str(folder / ray_nodes.ADDRESS), address.encode())
            return ray
    return None


def _member(folder: Path, temporary: Path, told: Sequence[int]) -> Started | None:
    """Joins the head, once its address is there. Should it never come, the batch script ends this process."""
    while not (folder / ray_nodes.ADDRESS).exists():
        if told:
            return None
        time.sleep(TICK)
        steps.names(folder)  # network disks remember for a while that a file is not there
    for _ in _tries(temporary, told):
        address = (folder / ray_nodes.ADDRESS).read_text()
        if ray := _start(folder, temporary, [f"--address={address}"], told):
            return ray
    return None


def _tries(temporary: Path, told: Sequence[int]) -> Iterator[int]:
    """Somebody may take a port between the look and the start, and Ray gives a slow node half a minute; the
    next start finds Python in memory."""
    for number in range(TRIES):
        if number:
            offspring.end_all(seconds=0.0)
        if told or (number and shutil.disk_usage(temporary).free < NEEDED):
            return
        yield number


def _start(folder: Path, temporary: Path, role: Sequence[str], told: Sequence[int]) -> Started | None:
    """`ray start`, once its servers stand; None when they do not come, or this process was told to end."""
    given = json.loads((folder / ray_nodes.SIZES).read_text())
    words = [
        f"--node-ip-address={own_address()}", f"--num-cpus={given['cpus']}", f"--num-gpus={given['gpus']}",
        f"--object-store-memory={given['store']}", "--disable-usage-stats", f"--temp-dir={temporary}",
        # from the system, so that no two jobs on a node, and no two nodes on a machine, meet
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    memory = [f"--memory={given['memory']}"] if given["memory"] else []
    said = os.fdopen(os.memfd_create("ray start"), "w+b")
    process = subprocess.Popen(
        [steps.command("ray"), "start", "--block", *role, *words, *memory],
        stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    ray, seen = Started(process, said), set[str]()
    while not (temporary / STANDS).exists():
        if told:
            return None
        living = set(offspring.below().values())
        seen |= living.intersection(SERVERS)
        # `ray start` waits on where a server has ended that it has just started
        if ray.has_ended or not seen <= living:
            ray.tell("Ray did not start", temporary)
            return None
        time.sleep(TICK)
    return ray


def _watch(ray: Started, temporary: Path, told: Sequence[int]) -> int:
    """Until this process is told to end (0), or one of Ray's servers has ended, and so `ray start` (1)."""
    while not told:
        offspring.reap()
        if ray.has_ended and not told:
            ray.tell("Ray has ended", temporary)
            return EXIT_FAILED
        time.sleep(TICK)
    return EXIT_DONE
