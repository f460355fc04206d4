"""What SLURM gave this job, from its environment variables; nothing is asked of the scheduler."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

#: a run folder where no chain names one, below the folder from which the job was submitted
DEFAULT_RUN = "pairmill-jobs"


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The job, and the share of each of its nodes.

    Attributes:
        job: id of this very job; for a task of an array its own one, which scontrol takes.
        name: `17`, or `17_3` for task 3 of array 17: what people and squeue call it.
        task: (i, n) in an array.
        restart: how often the job was requeued.
        nodes: how many.
        node: number of this node in the job.
        cpus: of each node.
        gpus: of each node.
        memory: bytes of each node; 0: not limited by SLURM.
        run: the run folder (`jobs.slurm.books`), on a disk that all nodes see.
    """

    job: int
    name: str
    task: tuple[int, int] | None
    restart: int
    nodes: int
    node: int
    cpus: int
    gpus: int
    memory: int
    run: Path

    @property
    def folder(self) -> Path:
        """Of this job in the run folder."""
        from jobs.slurm.books import job_folder

        return job_folder(self.run, self.name)


def read_allocation(environment: Mapping[str, str] | None = None) -> Allocation:
    """The allocation of this process.

    Raises:
        ConfigError: not inside a job of SLURM, an array whose tasks are not 0, 1, ... n - 1, or nodes with
            different numbers of GPUs.
    """
    given = os.environ if environment is None else environment
    if not given.get("SLURM_JOB_ID"):
        raise ConfigError(
            "no SLURM_JOB_ID: this command is what the batch scripts of slurm/ end in; submit one of them "
            "with sbatch, or a chain with `pairmill submit`"
        )
    job, nodes = int(given["SLURM_JOB_ID"]), int(given.get("SLURM_JOB_NUM_NODES") or 1)
    task = _task(given)
    cpus, gpus = _cpus(given), _gpus(given)
    _check_even(given, nodes, gpus)
    return Allocation(
        job=job,
        name=f"{given['SLURM_ARRAY_JOB_ID']}_{given['SLURM_ARRAY_TASK_ID']}" if task else str(job),
        task=task,
        restart=int(given.get("SLURM_RESTART_COUNT") or 0),
        nodes=nodes,
        node=int(given.get("SLURM_NODEID") or 0),
        cpus=cpus,
        gpus=gpus,
        memory=_megabytes(given, cpus, gpus) << 20,
        run=Path(given.get("PAIRMILL_RUN_DIR") or Path(given.get("SLURM_SUBMIT_DIR", ".")) / DEFAULT_RUN),
    )


def _task(given: Mapping[str, str]) -> tuple[int, int] | None:
    if not given.get("SLURM_ARRAY_TASK_COUNT"):
        return None
    index, count = int(given["SLURM_ARRAY_TASK_ID"]), int(given["SLURM_ARRAY_TASK_COUNT"])
    first, last = int(given.get("SLURM_ARRAY_TASK_MIN", 0)), int(given.get("SLURM_ARRAY_TASK_MAX", count - 1))
    if (first, last) != (0, count - 1):
        raise ConfigError(
            f"the array's tasks are {count} of {first} to {last}: a task does every n-th unit, so they must "
            f"be 0 to n - 1; use --array=0-{count - 1}"
        )
    return index, count


def _cpus(given: Mapping[str, str]) -> int:
    """A task has so many; a job that asked for none by task has what SLURM gave it on the node."""
    text = given.get("SLURM_CPUS_PER_TASK") or given.get("SLURM_CPUS_ON_NODE") or ""
    return int(text) if text else len(os.sched_getaffinity(0))


def _gpus(given: Mapping[str, str]) -> int:
    """All that SLURM gave on this node: with --exclusive more than were asked for.
    `SLURM_GPUS_ON_NODE` is a number; the other may be `a100:8`."""
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        if text := given.get(name):
            return _count(text)
    devices = given.get("SLURM_JOB_GPUS", "")
    return len(devices.split(",")) if devices else 0


def _count(text: str) -> int:
    """Of `8`, `a100:8`, `a100:2,v100:2`."""
    return sum(int(part.rpartition(":")[2]) for part in text.split(","))


def _check_even(given: Mapping[str, str], nodes: int, gpus: int) -> None:
    """`--gpus` is a number for the whole job, and SLURM may spread 4 over two nodes as 3 and 1."""
    if nodes > 1 and (text := given.get("SLURM_GPUS")) and _count(text) != gpus * nodes:
        raise ConfigError(
            f"--gpus={text} over {nodes} nodes gave {gpus} GPUs on this one: every node must have as many; "
            f"use --gpus-per-node={max(1, _count(text) // nodes)} instead"
        )


def _megabytes(given: Mapping[str, str], cpus: int, gpus: int) -> int:
    """SLURM sets the one of the three that was asked for, or none."""
    if text := given.get("SLURM_MEM_PER_NODE"):
        return int(text)
    return int(given.get("SLURM_MEM_PER_CPU") or 0) * cpus + int(given.get("SLURM_MEM_PER_GPU") or 0) * gpus


def own_address() -> str:
    """Where other nodes reach this one.

    `PAIRMILL_INTERFACE` wins, for nodes with several networks: the name of an interface, such as `ib0`, since
    site.sh is read on the first node alone, and what it exports reaches the others.

    Raises:
        ConfigError: this node has no address of its name, or on that interface.
    """
    if interface := os.environ.get("PAIRMILL_INTERFACE"):
        return _address_on(interface)
    name = socket.gethostname()
    try:
        found = socket.gethostbyname(name)
    except OSError as error:
        raise ConfigError(
            f"the name of this node, {name!r}, has no address ({error}); set "
            "PAIRMILL_INTERFACE in slurm/site.sh"
        ) from error
    alone = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1) == 1
    return found if alone or not found.startswith("127.") else _routed_address() or found


def _address_on(interface: str) -> str:
    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), siocgifaddr, struct.pack("256s", interface.encode()[:15]))
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise ConfigError(
                f"PAIRMILL_INTERFACE {interface!r} has no IPv4 address on {socket.gethostname()} "
                f"({error.strerror}); its interfaces: {known}"
            ) from error
    return socket.inet_ntoa(answer[20:24])


def _routed_address() -> str:
    """The address from which this node talks to others, where its name means itself alone, as /etc/hosts of
    Debian has it; empty without a network. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("198.51.100.1", 9)
            )  # kept for examples, so it is everywhere beyond the own network
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def free_port() -> int:
    """A port of this node that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
