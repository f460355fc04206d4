"""What a run saves and how it goes on: on as many processes as before, or on others.

A checkpoint of another number of processes, or of another ZeRO stage, goes through DeepSpeed's universal form
(`models.training.universal`), made once by the main process. Teacher and queues are one file, the same for
all. Stage 0 keeps one whole state, which any number of processes loads as it is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from models.recipes.base import System
from models.training import checkpoint
from models.training.assemble import versions
from models.training.config import TrainConfig, shareable
from models.training.engine import TAG, Engine, Processes
from models.training.stopping import TrainingError
from models.training.universal import FOLDER as UNIVERSAL
from models.training.universal import convert

log = logging.getLogger(__name__)

SYSTEM = "system.pt"


class Checkpoints:
    """The checkpoints of one run, as one of its processes sees them."""

    def __init__(self, config: TrainConfig, processes: Processes, engine: Engine, system: System) -> None:
        self.config, self.processes, self.engine, self.system = config, processes, engine, system
        self.folder = Path(config.output)

    def save(self, step: int, *, corrupt: set[tuple[str, str]]) -> None:
        """Every process calls it.

        Raises:
            LocalError: this process could not write its part.
        """
        meta = {
            "step": step,
            "processes": self.processes.world_size,
            "zero_stage": self.config.zero.stage,
            "bf16": self.processes.bf16,
            "config": shareable(self.config),
            "corrupt": sorted(corrupt),
            "versions": versions(),
        }

        def write_parts(folder: Path) -> None:
            self.engine.save(folder)
            if self.processes.is_main:
                torch.save(self.system.state_dict(), folder / SYSTEM)

        checkpoint.save(
            self.folder, step=step, meta=meta, write_parts=write_parts, is_main=self.processes.is_main,
            barrier=self.processes.barrier, keep=self.config.keep_checkpoints,
        )  # fmt: skip

    def load_last(self) -> tuple[int, set[tuple[str, str]]]:
        """Loads the newest whole checkpoint; returns the steps done and the corrupt samples known by then.

        Without any checkpoint: 0 and none.

        Raises:
            TrainingError: there are checkpoints, and none is whole.
            ValueError: the checkpoint's ZeRO stage cannot become this run's.
        """
        name, problem = self.processes.broadcast(self._newest() if self.processes.is_main else None)
        if problem:
            raise TrainingError(problem)
        if name is None:
            return 0, set()
        path = self.folder / "checkpoints" / name
        meta = checkpoint.read_meta(path)
        step = int(meta["step"])
        universal = self._needs_universal(path, meta)
        self.engine.load(self._universal(path) if universal else path, step=step, universal=universal)
        self.system.load_state_dict(torch.load(path / SYSTEM, map_location="cpu", weights_only=True))
        self.system.to(self.processes.device)
        log.info("going on from step %d (%s)", step, path)
        return step, {(shard, key) for shard, key in meta["corrupt"]}

    def _newest(self) -> tuple[str | None, str]:
        """The name of the newest whole checkpoint (None where there is none), and what is wrong."""
        damaged = []
        for path in reversed(checkpoint.list_complete(self.folder)):
            why = checkpoint.damage(path)
            if not why:
                return path.name, ""
            damaged.append(f"{path.name}: {why}")
            log.warning("%s is damaged (%s); looking for one before it", path, why)
        if not damaged:
            return None, ""
        return None, (
            f"no checkpoint of {self.folder} is whole ({'; '.join(damaged)}); bring them back, or delete "
            "the folder checkpoints/ to begin anew"
        )

    def _needs_universal(self, path: Path, meta: dict[str, Any]) -> bool:
        """Whether the parts in a checkpoint fit other processes than these.

        Raises:
            ValueError: between these ZeRO stages there is no way.
        """
        before, now = meta["zero_stage"], self.config.zero.stage
        if {before, now} not in ({before}, {1, 2}):
            raise ValueError(
                f"{path} was saved with zero.stage {before}, which DeepSpeed cannot bring to stage {now}; "
                f"pass --zero.stage {before}{' (or 1 or 2)' if before in (1, 2) else ''}"
            )
        changed = (meta["processes"], before) != (self.processes.world_size, now)
        if changed:
            log.info(
                "checkpoint of %d processes at ZeRO %d goes on with %d at ZeRO %d",
                meta["processes"], before, self.processes.world_size, now,
            )  # fmt: skip
        return changed and now != 0

    def _universal(self, path: Path) -> Path:
        """The universal form of a checkpoint; the main process makes it, the others wait.

        Raises:
            TrainingError: it cannot be made, in every process.
        """
        problem = ""
        if self.processes.is_main:
            try:
                convert(path, tag=TAG, scalars=self.engine.scalars)
            except (TrainingError, OSError) as error:
                problem = str(error)
        if problem := self.processes.broadcast(problem):
            raise TrainingError(problem)
        return path / UNIVERSAL
