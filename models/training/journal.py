"""What a run tells: metrics.jsonl, trackers, the progress line; and whether its figures are still numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.training.config import TrainConfig
from models.training.engine import Engine, Processes
from models.training.metrics import Clock, FirstBad, Metrics
from models.training.stopping import TrainingError
from pipeline.progress import Progress


class Journal:
    """Every process holds one and calls everything; the main process writes."""

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes,
        engine: Engine,
        clock: Clock,
        *,
        first_step: int,
        steps: int,
        detail: str,
    ) -> None:
        self.config, self.processes, self.engine = config, processes, engine
        self.clock, self.bad = clock, FirstBad()
        self.step = self.logged = first_step
        self.detail = detail
        processes.start_trackers(first_step=first_step)
        self.metrics: Metrics | None = None
        self.progress: Progress | None = None
        if processes.is_main:
            self.metrics = Metrics(Path(config.output) / "metrics.jsonl", first_step=first_step)
            self.progress = Progress(f"train {config.recipe}", steps, first=first_step, unit="steps")
            self.progress.update(first_step, detail, force=True)
        clock.start()

    def after_step(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Notes a step, counted from 1, without waiting for the device."""
        self.step = step
        self.bad.look(step, values)

    def check(self) -> None:
        """Before what was computed is written or saved.

        Raises:
            TrainingError: a loss or the gradient was no number, in any process; names the first.
        """
        found = [bad for bad in self.processes.gather(self.bad.found()) if bad is not None]
        norm = self.engine.gradient_norm()
        if not found and (norm is None or math.isfinite(norm)):
            return
        step, name = min(found, default=(self.step, "gradient norm"))
        raise TrainingError(
            f"step {step}: {name} is no number; nothing of this was saved. Lower lr ({self.config.lr}), "
            f"raise warmup_steps ({self.config.warmup_steps}), or look at the data of this step"
        )

    def write(self, values: Mapping[str, Tensor], *, lr: float, more: Mapping[str, float]) -> None:
        """A row of the last step: losses averaged over the processes, `more`, and where the time went."""
        self.check()
        names = sorted(values)
        clock = self.clock.row((self.step - self.logged) * self.config.batch_size)
        shared = self.processes.sum([*(float(values[n]) for n in names), clock["data_wait"]])
        means = [total / self.processes.world_size for total in shared]
        row: dict[str, Any] = dict(zip(names, means, strict=False))
        if (norm := self.engine.gradient_norm()) is not None:
            row["grad_norm"] = norm
        row |= {"lr": lr, **clock, "data_wait": round(means[-1], 4), **more}
        self.logged = self.step
        self.detail = f"loss {row['loss']:.3f} {row['samples_per_s']:.0f} samples/s"
        if self.metrics:
            self.metrics.write({"step": self.step, **row})
        self.processes.log(row, step=self.step)

    def amend(self, more: Mapping[str, float]) -> None:
        """Adds to the row of the step that the run went on from."""
        if self.metrics:
            self.metrics.amend(more)
        self.processes.log(dict(more), step=self.step)

    def show(self) -> None:
        if self.progress:
            self.progress.update(self.step, self.detail)

    def close(self) -> None:
        if self.progress:
            self.progress.close(self.step, self.detail)
        if self.metrics:
            self.metrics.close()
