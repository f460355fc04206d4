"""What runs on each node of a job: `pairmill batch node ray FOLDER`, `pairmill batch node torch FILE`.

Started by srun, once a node. The first node of a Ray cluster is its head.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from jobs.slurm import offspring, ray_nodes, steps, training
from jobs.slurm.allocation import free_port, own_address, read_allocation
from pipeline import scratch, storage

#: servers without which a node is no part of a cluster
SERVERS = frozenset(("raylet", "gcs_server"))
#: a socket's path may have 107 bytes, of which Ray takes some 70
LONGEST_TEMPORARY = 30
PORTS_TRIED = 3
EXIT_DONE, EXIT_FAILED = 0, 1


def main(argv: Sequence[str]) -> int:
    """Returns 0 when it was told to end, 1 when something else ended it."""
    kind, place = argv
    if kind == "torch":
        return training.on_node(Path(place))
    return ray_on_node(Path(place))


def ray_on_node(folder: Path) -> int:
    """Starts Ray's servers, says so, and watches them until SIGTERM; then ends them, and nothing else."""
    offspring.adopt()
    number = read_allocation().node
    with _told_to_end() as told:
        try:
            with _temporary_folder() as temporary:
                started = _start_head(folder, temporary) if number == 0 else _join(folder, told)
                if not started:
                    return EXIT_DONE if told else EXIT_FAILED
                storage.write_bytes(str(folder / f"ready-{number}"), b"")
                return _watch(told)
        finally:
            offspring.end_all()


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
    """For Ray's sockets and logs: of this job alone, on this node, with a short name."""
    base = "/tmp" if len(tempfile.gettempdir()) > LONGEST_TEMPORARY else None
    with scratch.folder(base=base) as folder:
        try:
            yield folder
        finally:
            offspring.end_all()


def _start_head(folder: Path, temporary: Path) -> bool:
    """Whether the head stands; its address is in `folder` then."""
    for _ in range(PORTS_TRIED):  # somebody may take the port between the look and the start
        address = f"{own_address()}:{free_port()}"
        words = ["--head", f"--port={address.rpartition(':')[2]}", f"--temp-dir={temporary}"]
        # no dashboard, and no server for clients outside: each would listen on one more port
        if _ray_start(folder, [*words, "--include-dashboard=false"]):
            storage.write_bytes(str(folder / ray_nodes.ADDRESS), address.encode())
            return True
        offspring.end_all()
    return False


def _join(folder: Path, told: Sequence[int]) -> bool:
    """Waits for the head's address. Should it never come, the batch script ends this process."""
    while not (folder / ray_nodes.ADDRESS).exists():
        if told:
            return False
        time.sleep(0.2)
        steps.names(folder)  # network disks remember for a while that a file is not there
    return _ray_start(folder, [f"--address={(folder / ray_nodes.ADDRESS).read_text()}"])


def _ray_start(folder: Path, role: Sequence[str]) -> bool:
    given = json.loads((folder / ray_nodes.SIZES).read_text())
    words = [
        f"--node-ip-address={own_address()}", f"--num-cpus={given['cpus']}", f"--num-gpus={given['gpus']}",
        f"--object-store-memory={given['store']}", "--disable-usage-stats",
        # from the system, so that no two jobs on a node, and no two nodes on a machine, meet
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    memory = [f"--memory={given['memory']}"] if given["memory"] else []
    done = subprocess.run(
        [steps.command("ray"), "start", *role, *words, *memory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(f"ray start ended with {done.returncode}:\n{done.stdout[-4000:]}", file=sys.stderr, flush=True)
    return done.returncode == 0


def _watch(told: Sequence[int]) -> int:
    """Until this process is told to end (0), or one of Ray's servers has ended (1)."""
    servers = {pid: name for pid, name in offspring.below().items() if name in SERVERS}
    assert servers, offspring.below()
    while not told:
        offspring.reap()
        for pid, name in servers.items():
            if not Path(f"/proc/{pid}").exists() and not told:
                print(f"Ray's {name} has ended on this node", file=sys.stderr, flush=True)
                return EXIT_FAILED
        time.sleep(0.5)
    return EXIT_DONE
