"""Validation during training: losses and retrieval on held-out pairs, which change nothing in the run.

Losses are those of training, as of its first step (targets as hard as the recipe has them then), without
dropout and augmentation, over batches as large as training's micro batches; every draw is keyed by
`validate.seed`, so that two validations differ by the weights alone. Teacher and queue are read and left
alone. Retrieval ranks a pool of pairs by the features of the contrast; pairs of the same picture are each
other's matches.

Shapes: P pairs of the pool, E joint embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.batch import Batch, StepContext
from models.evaluation.ranking import recall_at
from models.exported import read_exported_config
from models.images import ImageTransform
from models.recipes.base import System
from models.tokenizer import Tokenizer
from models.training.catalogue import open_data
from models.training.config import TrainConfig
from models.training.data import PairDataset, RankSampler, training_loader
from models.training.engine import Engine, Processes

FOLDER, BEST = "validation", "model_best"
KS = (1, 5)


class Validation:
    """The held-out pairs of a run, and what a model makes of them. Every process calls everything."""

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes,
        *,
        tokenizer: Tokenizer,
        transform: ImageTransform,
        max_text_tokens: int,
    ) -> None:
        """Raises ValueError: fewer held-out pairs than one batch takes."""
        self.options = config.validate
        self.processes = processes
        self.config = dataclasses.replace(
            config, shards=self.options.shards, mix=[], seed=self.options.seed,
            batch_size=config.batch_size // config.accumulation,
        )  # fmt: skip
        folder = Path(config.output) / FOLDER
        self.data = open_data(self.config, folder, is_main=processes.is_main, barrier=processes.barrier)
        plain = ImageTransform(size=transform.size, mean=transform.mean, std=transform.std)
        self.dataset = PairDataset(
            self.data.reader, plain, tokenizer, max_text_tokens=max_text_tokens, seed=self.options.seed
        )

    @property
    def loss_batches(self) -> int:
        wanted = min(self.options.samples, len(self.data))
        return max(1, wanted // self.config.batch_size)

    @property
    def pool_batches(self) -> int:
        wanted = min(self.options.pool, len(self.data))
        return -(-wanted // self.config.batch_size) if wanted else 0

    @torch.no_grad()
    def run(self, system: System, engine: Engine) -> dict[str, float]:
        """`val_loss` and the other losses, `val_tr_r1` (picture to text), `val_ir_r1` ... in 0..1."""
        sums: dict[str, Tensor] = {}
        features: list[tuple[Tensor, ...]] = []
        device = self.processes.device
        low = torch.bfloat16 if self.processes.bf16 else None
        with engine.whole_model() as model, torch.autocast(device.type, dtype=low, enabled=low is not None):
            modes = [(module, module.training) for module in model.modules()]
            model.eval()
            try:
                for number, batch in enumerate(self._batches()):
                    if number < self.loss_batches:
                        for name, value in self._losses(system, model, batch).items():
                            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.double()
                    if number < self.pool_batches:
                        features.append(_features(model, batch))
            finally:
                for module, mode in modes:
                    module.training = mode
        names = sorted(sums)
        totals = self.processes.sum([float(sums[n]) for n in names])
        count = self.loss_batches * self.processes.world_size
        row = {f"val_{n}": total / count for n, total in zip(names, totals, strict=True)}
        return row | self._recalls(features)

    def _batches(self) -> Iterator[Batch]:
        """This process's part of each batch, in order; rows count through all batches."""
        config, processes = self.config, self.processes
        count = max(self.loss_batches, self.pool_batches)
        sampler = RankSampler(self.data.plan, 0, count, processes.rank, processes.world_size, 1)
        loader = training_loader(
            self.dataset, sampler, workers=config.workers, pin=processes.device.type == "cuda"
        )
        for number, loaded in enumerate(loader):
            batch = loaded.to(processes.device)
            yield dataclasses.replace(batch, row_B=batch.row_B + number * config.batch_size)

    def _losses(self, system: System, model: Any, batch: Batch) -> dict[str, Tensor]:
        context = StepContext(
            seed=self.options.seed, step=0, epoch_steps=1,
            rank=self.processes.rank, world_size=self.processes.world_size,
        )  # fmt: skip
        [extras] = system.prepare([batch], context)
        return model(batch, context, extras)

    def _recalls(self, features: list[tuple[Tensor, ...]]) -> dict[str, float]:
        """Recall of the first `pool` pairs, over the features of all processes."""
        if not features:
            return {}
        parts = self.processes.gather([torch.cat(column) for column in zip(*features, strict=True)])
        row_P, id_P, image_PE, text_PE = (torch.cat(column) for column in zip(*parts, strict=True))
        order_P = row_P.argsort()[: min(self.options.pool, len(self.data))]
        id_P, image_PE, text_PE = id_P[order_P], image_PE[order_P], text_PE[order_P]
        score_PP, same_PP = image_PE @ text_PE.T, id_P[:, None] == id_P[None, :]
        found: dict[str, float] = {}
        for name, scores in (("tr", score_PP), ("ir", score_PP.T)):
            recalls = recall_at(scores, same_PP, KS)
            found |= {f"val_{name}_r{k}": float(value) for k, value in recalls.items()}
        return found


def _features(model: Any, batch: Batch) -> tuple[Tensor, ...]:
    """Rows, picture ids, unit features of pictures and texts; on the CPU."""
    image = model.encode_image(batch.pictures)
    text = model.encode_text(batch.text_ids_BT, batch.text_mask_BT)
    features = (image.feature_BE.float(), text.feature_BE.float())
    return tuple(x.cpu() for x in (batch.row_B, batch.image_id_B, *features))


def check_metric(metric: str, losses: Iterable[str]) -> None:
    """Raises ValueError when `keep_best` names no figure of a run with these losses."""
    known = [f"val_{name}" for name in losses] + [f"val_{way}_r{k}" for way in ("tr", "ir") for k in KS]
    if metric and metric not in known:
        raise ValueError(f"validate.keep_best {metric!r} is no figure of this run; use {', '.join(known)}")


def is_better(folder: Path, metric: str, value: float) -> bool:
    """Whether a value beats that of the model kept in `folder`. Losses want to be low, recalls high."""
    if not (folder / "config.json").is_file():
        return True
    kept = read_exported_config(folder).training
    if kept.get("metric") != metric:
        return True
    return value > kept["value"] if metric.endswith(tuple(f"_r{k}" for k in KS)) else value < kept["value"]
