"""Ray over the nodes of a job, from its start to its end.

    with RayNodes(allocation, folder) as nodes:      # in the batch script, on the first node
        ...  --ray.address nodes.address, with nodes.environment

`ray symmetric-run` is not used: it exits with 0 when its head does not start, leaves Ray's servers alive
after SIGTERM, ends with a `ray stop` that hits every Ray of the user on the node, and takes two slurmds of
one host for one. Here one srun starts `pairmill batch node ray` on each node (`jobs.slurm.node`). The first
becomes the head and writes its address into `folder`, which belongs to this attempt alone, so that nobody
joins the cluster of an earlier one; the others join it; each says when it is ready. Only when all are does
the driver start.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from jobs.slurm import steps
from jobs.slurm.allocation import Allocation
from pipeline import storage
from pipeline.errors import ConfigError, RunError

ADDRESS, TOKEN, SIZES, READY, LOST = "address", "token", "sizes.json", "ready-", "lost-"
#: Ray's store holds paths and counts, never pictures: this share of the memory, within these bounds
STORE_SHARE, STORE_LEAST, STORE_MOST = 0.1, 100 << 20, 2 << 30
#: seconds that all nodes have to start Ray, unless the variable says otherwise; the first start on a node
#: reads Python from a cold network disk
START, START_VARIABLE = 600.0, "PAIRMILL_START_SECONDS"
#: seconds that the nodes have to tell that they lost Ray, once the driver has failed
LOSS = 5.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What each node gives Ray; `memory` and `store` in bytes, memory 0: Ray looks itself."""

    cpus: int
    gpus: int
    memory: int
    store: int


def sizes(allocation: Allocation) -> Sizes:
    store = int(allocation.memory * STORE_SHARE) if allocation.memory else STORE_LEAST
    store = min(max(store, STORE_LEAST), STORE_MOST)
    memory = max(allocation.memory - store, 0)
    return Sizes(cpus=allocation.cpus, gpus=allocation.gpus, memory=memory, store=store)


def start_seconds(text: str) -> float:
    """Raises ConfigError when it is no number above 0."""
    try:
        seconds = float(text or START)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{START_VARIABLE} {text!r} must be a number of seconds, such as {START:g}")
    return seconds


class RayNodes:
    """Ray on all nodes for the time of a block."""

    def __init__(
        self, allocation: Allocation, folder: Path, *, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """`stopping` tells whether the job was asked to stop, so that nobody waits for a start in vain.

        Raises:
            ConfigError: the time to start in is no number.
        """
        self.allocation, self.folder, self.stopping = allocation, folder, stopping
        self.seconds = start_seconds(os.environ.get(START_VARIABLE, ""))
        self.step: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def environment(self) -> dict[str, str]:
        """What Ray's processes and the driver need to know. The token itself is in no environment."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / TOKEN),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def __enter__(self) -> RayNodes:
        """Raises RunError when Ray does not start, or the job is to stop."""
        self._prepare()
        words = ["batch", "node", "ray", str(self.folder)]
        self.step = steps.on_every_node(
            self.allocation, words, environment=self.environment, options=["--kill-on-bad-exit=1"]
        )
        try:
            self._await_all()
        except BaseException:
            self._end()
            raise
        self.address = (self.folder / ADDRESS).read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Ends Ray on all nodes; its token is worth nothing then, and no secret has to stay."""
        assert self.step is not None
        steps.end(self.step)
        (self.folder / TOKEN).unlink(missing_ok=True)

    @property
    def is_lost(self) -> bool:
        """Whether Ray has ended on a node, which nobody asked for."""
        return self.step is not None and self.step.poll() is not None

    def await_loss(self) -> bool:
        """Whether Ray is lost, asked after the driver has failed: it may have seen that before srun did."""
        limit = time.monotonic() + LOSS
        while time.monotonic() < limit:
            if self.is_lost or any(name.startswith(LOST) for name in steps.names(self.folder)):
                return True
            time.sleep(0.2)
        return False

    def _prepare(self) -> None:
        for left in self.folder.parent.glob(f"*/{TOKEN}"):  # by an attempt that was killed
            left.unlink(missing_ok=True)
        steps.fresh(self.folder)
        values: dict[str, Any] = vars(sizes(self.allocation))
        storage.write_bytes(str(self.folder / SIZES), json.dumps(values).encode())
        token = os.open(self.folder / TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(token, "w") as stream:
            stream.write(secrets.token_hex(32))

    def _await_all(self) -> None:
        """Raises RunError when a node does not come, or the job is to stop."""
        limit = time.monotonic() + self.seconds
        wanted = {f"{READY}{number}" for number in range(self.allocation.nodes)}
        while missing := wanted - steps.names(self.folder):
            if self.is_lost:
                raise RunError("Ray did not start on every node; the lines above say why")
            if self.stopping():
                raise RunError("asked to stop before Ray had started")
            if time.monotonic() > limit:
                numbers = ", ".join(sorted(name.removeprefix(READY) for name in missing))
                raise RunError(
                    f"Ray has not started within {self.seconds:g} s on {len(missing)} of "
                    f"{self.allocation.nodes} nodes (of {os.environ.get('SLURM_JOB_NODELIST', 'the job')}, "
                    f"counted from 0: {numbers}); slow nodes need more: {START_VARIABLE}"
                )
            time.sleep(0.2)
