"""The training loop: shards, a recipe and a configuration in; checkpoints, logs and a model folder out.

One optimizer step is `models.training.step`, what is told of it `models.training.journal`, what is saved and
how a run goes on `models.training.resume`. Whatever is random in a step is a function of the seed, the step
and the sample's row (dropout: the process), so a run that was interrupted computes the losses of a run that
was not.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

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
from models.training.journal import Journal
from models.training.metrics import Clock
from models.training.optim import learning_rate, parameter_groups
from models.training.resume import Checkpoints
from models.training.step import optimizer_step
from models.training.stopping import EXIT_DONE, EXIT_STOPPED, StopRequest, TrainingError
from models.training.validate import BEST, Validation, check_metric, is_better

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
        if processes.is_main:
            rundir.note_steps(self.folder, self.steps)
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
        self.validation = self._validation()
        self.clock = Clock()

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
        config = self.config
        batches = iter(self._loader())
        detail = f"{len(self.data)} samples, {self.processes.world_size} processes, ZeRO {config.zero.stage}"
        journal = self.journal = Journal(
            config, self.processes, self.engine, self.clock,
            first_step=self.first_step, steps=self.steps, detail=detail,
        )  # fmt: skip
        self._catch_up(journal)
        step = saved = self.first_step
        while step < self.steps:
            values, corrupt = self.step(step, batches)
            step += 1
            check_metric(config.validate.keep_best, values)
            journal.after_step(step, values)
            stopping = self._agree(step, corrupt) and step < self.steps
            with self.clock.pausing():
                figures = {} if stopping else self._validate(step)
            if figures or stopping or step % config.log_every == 0 or step == self.steps:
                journal.write(values, lr=self._rate(step - 1), more=figures)
            journal.show()
            due = config.checkpoint_every and step % config.checkpoint_every == 0 and step < self.steps
            if stopping or due:
                journal.check()
                with self.clock.pausing():
                    self.checkpoints.save(step, corrupt=self.corrupt)
                saved = step
            if stopping:
                break
        journal.close()
        if step < self.steps:
            if self.processes.is_main:
                log.warning("stopped at step %d, saved; start the same command again to go on", saved)
            return EXIT_STOPPED
        self._finish(step)
        return EXIT_DONE

    def _validation(self) -> Validation | None:
        if not self.config.validate.every:
            return None
        return Validation(
            self.config, self.processes, tokenizer=self.tokenizer, transform=self.transform,
            max_text_tokens=self.max_text_tokens,
        )  # fmt: skip

    def _validate(self, step: int) -> dict[str, float]:
        """Figures of the held-out pairs after a step, where they are due; the best model is kept."""
        every = self.config.validate.every
        if self.validation is None or (step % every and step < self.steps):
            return {}
        self.journal.check()
        figures = self.validation.run(self.system, self.engine)
        metric = self.config.validate.keep_best
        better = metric and self.processes.is_main and is_better(self.folder / BEST, metric, figures[metric])
        if self.processes.broadcast(better):
            self._export(BEST, step, metric=metric, value=figures[metric])
        return figures

    def _catch_up(self, journal: Journal) -> None:
        """A stop does not wait for a validation: what was due then is done before going on."""
        step = self.first_step
        row = journal.metrics.last() if journal.metrics else {}
        missing = row.get("step") == step and "val_loss" not in row
        if step and self.processes.broadcast(missing) and (figures := self._validate(step)):
            journal.amend(figures)

    def step(self, step: int, batches: Any) -> tuple[dict[str, torch.Tensor], list[tuple[str, str, str]]]:
        """One optimizer step. Returns its values, averaged over the micro batches, and the corrupt samples
        met."""
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
                with self.clock.waiting():
                    loaded: LoadedBatch = next(batches)
                corrupt.extend(loaded.corrupt)
                yield loaded.to(processes.device, image_dtype=dtype)

        values = optimizer_step(self.system, self.engine, micro_batches(), context, contrast=config.contrast)
        return values, corrupt

    def _rate(self, step: int) -> float:
        c = self.config
        return learning_rate(
            step, steps=self.steps, lr=c.lr, min_lr=c.min_lr, warmup_steps=c.warmup_steps,
            schedule=c.schedule, epoch_steps=self.plan.epoch_steps, decay=c.lr_decay,
        )  # fmt: skip

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

    def _finish(self, step: int) -> None:
        self._export("model", step)
        if self.processes.is_main:
            rundir.finish_run(self.folder)
        self.processes.barrier()

    def _export(self, name: str, step: int, **more: str | float) -> None:
        """Writes the model into a folder of the run; every process takes part where weights are sharded.
        `more` is kept with it."""
        done = {"step": step, "samples": step * self.config.batch_size, "versions": versions()}
        config = ExportedConfig(
            recipe=self.config.recipe,
            size=self.config.size,
            model=to_dict(self.system.config) | {"gradient_checkpointing": False},
            image_mean=self.config.image_mean,
            image_std=self.config.image_std,
            max_text_tokens=self.max_text_tokens,
            clean_captions=self.config.clean_captions,
            training=done | more,
        )
        with self.engine.whole_model() as whole:
            if self.processes.is_main:
                write_exported(self.folder / name, model=whole, config=config, tokenizer=self.tokenizer)
        self.processes.barrier()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Torch's global state (dropout) as a function of the step: nothing to save, nothing to resume."""
    torch.manual_seed(zlib.crc32(f"{seed}:{step}:{rank}".encode()) + (seed << 32))
