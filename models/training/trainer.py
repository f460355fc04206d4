"""The training loop: shards, a recipe and a configuration in; checkpoints, logs and a model folder out.

One optimizer step is written out in `Trainer.step`, in the order that `models.recipes.base.System` states.
Whatever is random in a step depends on (seed, step, rank) alone, so a run that was interrupted and goes on
computes the losses of a run that was not.
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.batch import Batch, StepContext
from models.exported import ExportedConfig, write_exported
from models.images import ImageTransform
from models.published.starting import start_from
from models.recipes import RECIPES
from models.tokenizer import Tokenizer, load_tokenizer
from models.training import checkpoint, rundir
from models.training.assemble import make_tokenizer, resolve_model_config, versions
from models.training.catalogue import open_data
from models.training.compiling import compile_system
from models.training.config import TrainConfig, local_batch, to_dict
from models.training.data import LoadedBatch, PairDataset, RankSampler, training_loader
from models.training.engine import Engine, Processes
from models.training.metrics import Metrics
from models.training.optim import learning_rate, parameter_groups
from models.training.resume import Checkpoints
from models.training.step import optimizer_step
from models.training.stopping import EXIT_DONE, EXIT_STOPPED, StopRequest, TrainingError
from pipeline.progress import Progress

log = logging.getLogger(__name__)


def run(config: TrainConfig, stop: StopRequest) -> int:
    """Trains in this process, one of WORLD_SIZE; returns the exit code, 0 or 75.

    Raises:
        ValueError: the configuration does not fit the recipe, the shards or the last checkpoint.
        TrainingError: too many corrupt samples, or a loss that is no number.
    """
    processes = Processes(config)
    try:
        trainer = Trainer(config, processes, stop)
        return trainer.train()
    finally:
        processes.close()


class Trainer:
    """Everything that one process of a run holds."""

    def __init__(self, config: TrainConfig, processes: Processes, stop: StopRequest) -> None:
        self.config, self.processes, self.stop = config, processes, stop
        self.folder = Path(config.output)
        if processes.is_main:
            checkpoint.sweep(self.folder)
        local_batch(config, processes.world_size)
        self.data = open_data(config, self.folder, is_main=processes.is_main, barrier=processes.barrier)
        self.plan = self.data.plan
        self.steps = config.steps or self.plan.steps(config.epochs or 0)
        self.tokenizer = self._tokenizer()
        resolved = resolve_model_config(config, self.tokenizer)
        torch.manual_seed(config.seed)  # the same initial weights in every process
        self.system = RECIPES[config.recipe].build(resolved)
        if hasattr(self.system, "learn_words"):
            self.system.learn_words(self.tokenizer.continues())
        if config.init_from:
            for remark in start_from(self.system, config.init_from, self.tokenizer):
                if processes.is_main:
                    log.warning("%s", remark)
        groups = parameter_groups(
            self.system.model, weight_decay=config.weight_decay, decay=config.decay,
            multipliers=config.lr_multipliers,
        )  # fmt: skip
        self.engine = Engine(processes, self.system.model, groups)
        compile_system(self.system, config, processes.device)
        self.system.to(processes.device)
        self.checkpoints = Checkpoints(config, processes, self.engine, self.system)
        self.first_step, self.corrupt = self.checkpoints.load_last()

    @property
    def max_text_tokens(self) -> int:
        return self.config.max_text_tokens or self.system.config.max_text_length

    @property
    def transform(self) -> ImageTransform:
        config = self.config
        return ImageTransform(
            size=self.system.config.image_size,
            mean=config.image_mean,
            std=config.image_std,
            crop_scale=config.augment.crop_scale,
            flip=config.augment.flip,
            rand_ops=config.augment.rand_ops,
            rand_magnitude=config.augment.rand_magnitude,
        )

    def train(self) -> int:
        """All remaining steps; then the exported model. Returns the exit code."""
        config, main = self.config, self.processes.is_main
        batches = iter(self._loader())
        self.processes.start_tensorboard(first_step=self.first_step)
        metrics = Metrics(self.folder / "metrics.jsonl", first_step=self.first_step) if main else None
        progress = Progress(f"train {config.recipe}", self.steps, first=self.first_step, unit="steps")
        began, last_time, last_step = time.monotonic(), time.monotonic(), self.first_step
        detail = f"{len(self.data)} samples, {self.processes.world_size} processes, ZeRO {config.zero.stage}"
        if main:
            progress.update(self.first_step, detail, force=True)
        step, saved = self.first_step, self.first_step
        while step < self.steps:
            values, corrupt = self.step(step, batches)
            step += 1
            stopping = self._agree(step, corrupt)
            due = step % config.log_every == 0 or step == self.steps or stopping
            if due:
                row = self._log_row(values)
                now = time.monotonic()
                speed = (step - last_step) * config.batch_size / max(now - last_time, 1e-9)
                last_time, last_step = now, step
                row |= {"lr": self._rate(step - 1), "samples_per_s": round(speed, 2)}
                detail = f"loss {row['loss']:.3f} {speed:.0f} samples/s"
                if metrics is not None:
                    metrics.write({"step": step, **row, "seconds": round(now - began, 3)})
                self.processes.log(row, step=step)
            if main:
                progress.update(step, detail)
            if stopping or (
                config.checkpoint_every and step % config.checkpoint_every == 0 and step < self.steps
            ):
                self.checkpoints.save(step, corrupt=self.corrupt)
                saved = step
            if stopping and step < self.steps:
                break
        if main:
            progress.close(step, detail)
        if metrics is not None:
            metrics.close()
        if step < self.steps:
            if main:
                log.warning("stopped at step %d, saved; start the same command again to go on", saved)
            return EXIT_STOPPED
        self._finish(step, time.monotonic() - began)
        return EXIT_DONE

    def step(
        self, step: int, batches: Any
    ) -> tuple[dict[str, float | torch.Tensor], list[tuple[str, str, str]]]:
        """One optimizer step. Returns the values of its last micro batch, averaged over the micro batches,
        and the corrupt samples met."""
        config, processes = self.config, self.processes
        context = StepContext(
            seed=config.seed, step=step, epoch_steps=self.plan.epoch_steps,
            rank=processes.rank, world_size=processes.world_size,
        )  # fmt: skip
        seed_step(config.seed, step, processes.rank)
        self.engine.set_learning_rate(self._rate(step))
        corrupt: list[tuple[str, str, str]] = []
        dtype = torch.bfloat16 if processes.bf16 else None

        def micro_batches() -> Iterator[Batch]:
            for _ in range(config.accumulation):
                loaded: LoadedBatch = next(batches)
                corrupt.extend(loaded.corrupt)
                yield loaded.to(processes.device, image_dtype=dtype)

        values: dict[str, Any] = optimizer_step(
            self.system, self.engine, micro_batches(), context, contrast=config.contrast
        )
        return values, corrupt

    def _rate(self, step: int) -> float:
        c = self.config
        return learning_rate(
            step, steps=self.steps, lr=c.lr, min_lr=c.min_lr, warmup_steps=c.warmup_steps,
            schedule=c.schedule, epoch_steps=self.plan.epoch_steps, decay=c.lr_decay,
        )  # fmt: skip

    def _log_row(self, values: dict[str, Any]) -> dict[str, float]:
        names = sorted(values)
        sums = self.processes.sum([float(values[n]) for n in names])
        row = {n: s / self.processes.world_size for n, s in zip(names, sums, strict=True)}
        if not math.isfinite(row["loss"]):
            raise TrainingError(
                f"the loss is {row['loss']}; lower lr ({self.config.lr}) or raise warmup_steps"
            )
        norm = self.engine.gradient_norm()
        return row if norm is None else row | {"grad_norm": norm}

    def _agree(self, step: int, corrupt: list[tuple[str, str, str]]) -> bool:
        """Whether to stop after this step, the same answer in every process; counts corrupt samples."""
        wanted, found = self.processes.sum([float(bool(self.stop)), float(len(corrupt))])
        if found:
            for shard, key, why in sorted({c for part in self.processes.gather(corrupt) for c in part}):
                if (shard, key) not in self.corrupt and self.processes.is_main:
                    log.warning(
                        "%s: sample %s cannot be read (%s); the next one takes its place", shard, key, why
                    )
                self.corrupt.add((shard, key))
            if len(self.corrupt) > self.config.max_corrupt * len(self.data):
                listed = ", ".join(f"{s} {k}" for s, k in sorted(self.corrupt)[:5])
                raise TrainingError(
                    f"{len(self.corrupt)} of {len(self.data)} samples cannot be read, more than max_corrupt "
                    f"{self.config.max_corrupt} allows: {listed}. Verify these shards, or raise max_corrupt"
                )
        return wanted > 0

    def _loader(self) -> Any:
        config, processes = self.config, self.processes
        sampler = RankSampler(
            self.plan, self.first_step, self.steps, processes.rank, processes.world_size, config.accumulation
        )
        return training_loader(
            PairDataset(
                self.data.reader,
                self.transform,
                self.tokenizer,
                max_text_tokens=self.max_text_tokens,
                seed=config.seed,
            ),
            sampler,
            workers=config.workers,
            pin=processes.device.type == "cuda",
        )

    def _tokenizer(self) -> Tokenizer:
        """The run's tokenizer; the main process makes it, once."""
        folder = self.folder / "tokenizer"
        if self.processes.is_main and not folder.is_dir():
            make_tokenizer(self.config, self.data, folder)
        self.processes.barrier()
        return load_tokenizer(folder, clean_words=self.config.clean_captions)

    def _finish(self, step: int, seconds: float) -> None:
        with self.engine.whole_model() as whole:  # every process takes part where weights are sharded
            if self.processes.is_main:
                self._export(step, whole)
        self.processes.barrier()

    def _export(self, step: int, model: nn.Module) -> None:
        config = ExportedConfig(
            recipe=self.config.recipe,
            size=self.config.size,
            model=to_dict(self.system.config) | {"gradient_checkpointing": False},
            image_mean=self.config.image_mean,
            image_std=self.config.image_std,
            max_text_tokens=self.max_text_tokens,
            clean_captions=self.config.clean_captions,
            training={"step": step, "samples": step * self.config.batch_size, "versions": versions()},
        )
        write_exported(self.folder / "model", model=model, config=config, tokenizer=self.tokenizer)
        rundir.finish_run(self.folder)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Torch's global state (dropout) as a function of the step: nothing to save, nothing to resume."""
    torch.manual_seed(zlib.crc32(f"{seed}:{step}:{rank}".encode()) + (seed << 32))
