"""Run as a program by test_training_zero.py, in two connected processes: steps of the trainer on made-up
pairs, once for each way to spread the training state.

    python -m tests.models.zero_check FOLDER CASE ...

The case `toy` is `tests.models.accumulation_check`; the others are words, such as `clip 3 offloaded resumed`.
The main process writes FOLDER/curves.json, case -> [loss, gradient norm] of each step, and FOLDER/weights.pt,
the weights that would be exported.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from models.batch import Batch, StepContext
from models.exported import unique_weights
from models.recipes import RECIPES
from models.training.assemble import resolve_model_config
from models.training.config import TrainConfig, ZeroConfig, check
from models.training.engine import Engine, Processes
from models.training.optim import parameter_groups
from models.training.step import optimizer_step
from tests.models.accumulation_check import all_weights

STEPS, LOCAL = 3, 4
SMALL = {
    "image_size": 16, "patch_size": 8, "vision_width": 32, "vision_depth": 2, "vision_heads": 2,
    "text_width": 32, "text_depth": 2, "text_heads": 2, "embed_dim": 16, "max_text_length": 8,
}  # fmt: skip
VLMO = {
    "image_size": 16, "patch_size": 8, "width": 32, "depth": 3, "heads": 2, "joint_start": 2, "embed_dim": 16,
    "max_text_length": 8, "positions": "relative", "layer_scale": 0.1, "text_window": 8,
}  # fmt: skip
ALBEF = {"fusion_start": 1, "text_positions": 8, "queue_size": 16, "momentum": 0.5}


class Vocabulary:
    """In the place of a tokenizer."""

    def fit(self, config):  # type: ignore[no-untyped-def]
        special = {"cls_id": 2, "mask_id": 4} if hasattr(config, "mask_id") else {}
        return replace(config, vocab_size=64, **special)


def configure(recipe: str, output: str, **changes: object) -> TrainConfig:
    options = {
        "shards": "-", "output": output, "recipe": recipe, "steps": STEPS, "batch_size": 4 * LOCAL,
        "accumulation": 2, "processes": 2, "lr": 1e-3, "clip_grad": 0.5, "precision": "fp32",
        "model": {"clip": SMALL, "albef": SMALL | ALBEF, "vlmo": VLMO}[recipe],
    }  # fmt: skip
    config = TrainConfig(**{**options, **changes})  # type: ignore[arg-type]
    check(config)
    return config


def micro_batches(step: int, rank: int, accumulation: int, dtype: torch.dtype) -> list[Batch]:
    """The same pairs, as two micro batches or as one."""
    parts = []
    for micro in range(2):
        g = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
        row_B = torch.arange(LOCAL) + LOCAL * (2 * micro + rank)
        pixels = torch.randn(LOCAL, 3, 16, 16, generator=g).to(dtype)
        parts.append((pixels, torch.randint(5, 64, (LOCAL, 8), generator=g), row_B))
    if accumulation == 1:
        parts = [tuple(torch.cat(part) for part in zip(*parts, strict=True))]
    return [
        Batch(
            image_BCHW=pixels, text_ids_BT=ids, text_mask_BT=torch.ones_like(ids), image_id_B=row_B,
            row_B=row_B,
        )
        for pixels, ids, row_B in parts
    ]  # fmt: skip


class Run:
    """What the trainer holds, without shards."""

    def __init__(self, config: TrainConfig) -> None:
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
        self.config, self.processes = config, Processes(config)
        torch.manual_seed(0)
        self.system = RECIPES[config.recipe].build(resolve_model_config(config, Vocabulary()))  # type: ignore[arg-type]
        groups = parameter_groups(self.system.model, weight_decay=0.02)
        self.engine = Engine(self.processes, self.system.model, groups)

    def step(self, step: int) -> list[float]:
        rank, size = self.processes.rank, self.processes.world_size
        context = StepContext(seed=0, step=step, rank=rank, world_size=size)
        dtype = torch.bfloat16 if self.processes.bf16 else torch.float32
        batches = micro_batches(step, rank, self.config.accumulation, dtype)
        values = optimizer_step(self.system, self.engine, batches, context, contrast=self.config.contrast)
        loss = self.processes.sum([float(values["loss"]) / size])
        return [*loss, float(self.engine.gradient_norm() or 0.0)]

    def weights(self) -> dict[str, torch.Tensor]:
        with self.engine.whole_model() as whole:
            return {name: value.clone() for name, value in unique_weights(whole)[0].items()}


def train(config: TrainConfig) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    run = Run(config)
    return [run.step(step) for step in range(STEPS)], run.weights()


def interrupted(
    first: TrainConfig, then: TrainConfig, folder: Path
) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """Two steps, a checkpoint, and the rest by another engine that loads it."""
    run = Run(first)
    curve = [run.step(step) for step in range(2)]
    run.engine.save(folder)
    run.processes.barrier()
    state = run.system.state_dict()
    run = Run(then)
    run.engine.load(folder, step=2)
    run.system.load_state_dict(state)
    return curve + [run.step(step) for step in range(2, STEPS)], run.weights()


def find(case: str, output: str) -> TrainConfig:
    """The configuration that the words of a case's name describe."""
    recipe, stage, *words = case.split()
    zero = ZeroConfig(
        stage=int(stage),
        offload_optimizer="cpu" if "offloaded" in words else "none",
        offload_parameters="cpu" if "offloaded" in words and stage == "3" else "none",
    )
    return configure(
        recipe, output, zero=zero,
        precision="bf16" if "bf16" in words else "fp32",
        recompute="recomputed" in words,
        contrast="step" if "step" in words else "micro",
        accumulation=1 if "whole" in words else 2,
    )  # fmt: skip


def main(output: str, cases: list[str]) -> None:
    curves, weights = {}, {}
    for number, case in enumerate(cases):
        if case == "toy":
            weights[case] = all_weights(output)
            continue
        config = find(case, output)
        if "resumed" in case:
            first = (
                replace(config, zero=ZeroConfig(stage=config.zero.stage)) if "switched" in case else config
            )
            curves[case], weights[case] = interrupted(first, config, Path(output) / str(number))
        else:
            curves[case], weights[case] = train(config)
    if os.environ["RANK"] == "0":
        torch.save(weights, Path(output) / "weights.pt")
        (Path(output) / "curves.json").write_text(json.dumps(curves))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
