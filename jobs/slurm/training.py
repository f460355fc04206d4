"""Training over the nodes of a job: srun starts torchrun on each, torchrun the processes.

torchrun's own exit code is 1 whatever its processes return, and srun kills the other nodes when one has ended
badly. So each process writes how it ended into a folder (`models.training.verdicts`), and the batch script
reads from there whether the run is done, was stopped and saved, told an error, or crashed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.slurm import again, steps
from jobs.slurm.allocation import Allocation, free_port, own_address, read_allocation
from models.training import verdicts
from models.training.config import TrainConfig, local_batch
from pipeline import storage
from pipeline.errors import ConfigError

PLAN = "torchrun.json"
#: seconds between the first node and the last one: hundreds of them read torch from one disk
START_SECONDS = 900
#: seconds that a network disk may take to show what another node has written
SHOWN_WITHIN = 60.0
TICK = 0.5


def processes_per_node(config: TrainConfig, allocation: Allocation) -> int:
    """One for each GPU of a node; on nodes without, the run's `processes` spread over them.

    Raises:
        ConfigError: they cannot be spread evenly, or the batch cannot be spread over them.
    """
    if not allocation.gpus and config.processes % allocation.nodes:
        raise ConfigError(
            f"processes {config.processes} cannot be spread over {allocation.nodes} nodes; use a multiple "
            f"such as --processes {allocation.nodes}, or another number of nodes"
        )
    each = allocation.gpus or config.processes // allocation.nodes
    try:
        local_batch(config, each * allocation.nodes)
    except ValueError as error:
        raise ConfigError(f"{allocation.nodes} nodes of {each} processes: {error}") from error
    return each


def start(
    config: TrainConfig, arguments: Sequence[str], allocation: Allocation, folder: Path
) -> subprocess.Popen[bytes]:
    """Starts the run on all nodes. `arguments` are those of `pairmill train`, `folder` is this attempt's.

    Raises:
        ConfigError: as `processes_per_node`.
    """
    steps.fresh(folder)
    plan = {
        "nodes": allocation.nodes,
        "processes": processes_per_node(config, allocation),
        "address": own_address(),
        "port": free_port(),
        "arguments": list(arguments),
        "cpus": allocation.cpus,
    }
    path = folder / PLAN
    storage.write_bytes(str(path), json.dumps(plan).encode())
    return steps.on_every_node(
        allocation,
        ["batch", "node", "torch", str(path)],
        environment={verdicts.VARIABLE: str(folder)},
        # a process that waits for a dead one waits for a long time
        options=["--kill-on-bad-exit=1"],
    )


def on_node(path: Path) -> int:
    """Runs torchrun on this node; returns 0 where all its processes ended well, else 1.

    In this process rather than by its command, which ends in pages of Python's tracebacks whenever one of its
    processes has failed.
    """
    plan: dict[str, Any] = json.loads(path.read_text())
    node, name = read_allocation().node, os.environ.get("SLURMD_NODENAME", "")
    storage.write_bytes(str(path.parent / f"node-{node}"), name.encode())
    for variable, value in defaults(plan).items():
        os.environ.setdefault(variable, value)

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(words(plan, node))
    except SignalException:  # srun ends this node: it was told to, or another one has ended badly
        return 1
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:
                why = f"ended by {failure.signal_name()}"
                verdicts.tell_of(rank, why)
                print(f"process {rank} on {name} was {why}", file=sys.stderr, flush=True)
        return 1
    return 0


def defaults(plan: dict[str, Any]) -> dict[str, str]:
    """Variables of each process, where the site has not set them."""
    return {
        "OMP_NUM_THREADS": str(max(1, plan["cpus"] // plan["processes"])),
        # waiting threads that spin make a busy machine several times slower
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def words(plan: dict[str, Any], node: int) -> list[str]:
    """The arguments of torchrun on a node.

    The static rendezvous rather than c10d's: process 0 is then on the node of the batch script, so that it
    sees at once when that puts STOP on a network disk; nobody guesses from names and addresses who the host
    is; and a rank says which node it was.
    """
    return [
        f"--nnodes={plan['nodes']}", f"--node-rank={node}", f"--nproc-per-node={plan['processes']}",
        "--rdzv-backend=static", f"--master-addr={plan['address']}", f"--master-port={plan['port']}",
        f"--rdzv-conf=timeout={START_SECONDS}",
        # a process that has ended badly takes the run with it: what follows is the batch script's to say
        "--max-restarts=0", "--no-python", steps.command(), "train", *plan["arguments"],
    ]  # fmt: skip


def outcome(folder: Path, config: TrainConfig, allocation: Allocation, *, ended: int) -> tuple[int, str]:
    """0, 1, 2, 75 or `again.CRASHED`, and why, from what the processes have told; `ended` is srun's code."""
    each = processes_per_node(config, allocation)
    limit = time.monotonic() + SHOWN_WITHIN
    found = verdicts.read(folder, processes=each * allocation.nodes)
    # all have ended well, so each has told
    while found.silent and not ended and time.monotonic() < limit:
        time.sleep(TICK)
        steps.names(folder)
        found = verdicts.read(folder, processes=each * allocation.nodes)
    if found.code != again.CRASHED:
        return found.code, found.why
    told = [f"{_named(found.ranks, folder, each)}: {found.why}"] if found.ranks else []
    if found.silent:  # who was killed by us says nothing either, so there may be a cause in both
        told.append(f"{_named(found.silent, folder, each)} ended without a word: killed, or never begun")
    return found.code, "; ".join(told)


def _named(ranks: Sequence[int], folder: Path, each: int) -> str:
    """`processes 2, 3 (n1)`; of many the first few."""
    nodes = dict.fromkeys(_node_name(folder, rank // each) for rank in ranks)
    shown = [str(rank) for rank in ranks[:8]] + ["..."] * (len(ranks) > 8)
    where = [*list(nodes)[:4], *["..."] * (len(nodes) > 4)]
    return f"process{'es' * (len(ranks) > 1)} {', '.join(shown)} ({', '.join(where)})"


def _node_name(folder: Path, node: int) -> str:
    path = folder / f"node-{node}"
    return (path.read_text() if path.is_file() else "") or f"node {node}"
