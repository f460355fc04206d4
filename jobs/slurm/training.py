"""Training over the nodes of a job: srun starts torchrun on each, torchrun the processes.

torchrun's own exit code is 1 whatever its processes return, and srun kills the other nodes when one has ended
badly. So each process writes how it ended into a folder (`models.training.verdicts`), and the batch script
reads from there whether the run is done, was stopped and saved, told an error, or crashed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.slurm import steps
from jobs.slurm.allocation import Allocation, free_port, own_address
from models.training import verdicts
from models.training.config import TrainConfig
from pipeline import storage
from pipeline.errors import ConfigError

PLAN = "torchrun.json"


def processes_per_node(config: TrainConfig, allocation: Allocation) -> int:
    """One for each GPU of a node; on nodes without, the run's `processes` spread over them.

    Raises:
        ConfigError: they cannot be spread evenly.
    """
    if allocation.gpus:
        return allocation.gpus
    if config.processes % allocation.nodes:
        raise ConfigError(
            f"processes {config.processes} cannot be spread over {allocation.nodes} nodes; use a multiple of "
            f"{allocation.nodes}, or another number of nodes"
        )
    return config.processes // allocation.nodes


def start(
    config: TrainConfig, arguments: Sequence[str], allocation: Allocation, folder: Path
) -> subprocess.Popen[bytes]:
    """Starts the run on all nodes. `arguments` are those of `pairmill train`, `folder` is this attempt's."""
    steps.fresh(folder)
    plan = {
        "nodes": allocation.nodes,
        "processes": processes_per_node(config, allocation),
        "endpoint": f"{own_address()}:{free_port()}",
        "id": f"{allocation.name}.{allocation.restart}",
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
    """Becomes torchrun on this node; does not return."""
    plan: dict[str, Any] = json.loads(path.read_text())
    threads = max(1, plan["cpus"] // plan["processes"])
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # waiting threads that spin make a busy machine several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    program = steps.command("torchrun")
    words = [
        f"--nnodes={plan['nodes']}", f"--nproc-per-node={plan['processes']}", "--rdzv-backend=c10d",
        f"--rdzv-endpoint={plan['endpoint']}", f"--rdzv-id={plan['id']}", f"--local-addr={own_address()}",
        # a process that has ended badly takes the run with it: what follows is the batch script's to say
        "--max-restarts=0", "--no-python", steps.command(), "train", *plan["arguments"],
    ]  # fmt: skip
    os.execv(program, [program, *words])


def outcome(folder: Path, config: TrainConfig, allocation: Allocation) -> int:
    """0, 1, 2, 75 or `again.CRASHED`, from what the processes have told."""
    return verdicts.read(folder, processes=processes_per_node(config, allocation) * allocation.nodes)
