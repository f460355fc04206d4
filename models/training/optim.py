"""AdamW's parameter groups and the learning rate of a step: pure functions, nothing to save or resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

#: key of a parameter group: factor on the step's learning rate
SCALE = "lr_scale"


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay: str = "matrices", multipliers: Mapping[str, float] = {}
) -> list[dict[str, Any]]:
    """AdamW's groups: frozen parameters in none, the others by decay and by their factor on the rate. Names
    that a model lists as `undecayed` never decay.

    Args:
        decay: `matrices` spares norms, biases, temperatures and everything else of less than two dimensions
            (ALBEF, CLIP); `all` spares nothing (BLIP's code).
        multipliers: factor on the learning rate by the beginning of a parameter's name; the longest that
            fits counts (VLMo's and METER's heads).

    Raises:
        ValueError: a beginning that fits no trained parameter; names those there are.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = getattr(model, "undecayed", ())
    for prefix in multipliers:
        if not any(_begins(name, prefix) for name in trained):
            tops = sorted({name.partition(".")[0] for name in trained})
            raise ValueError(
                f"lr_multipliers: no trained parameter begins with {prefix!r}; there are {', '.join(tops)}"
            )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trained.items():
        fitting = [prefix for prefix in multipliers if _begins(name, prefix)]
        factor = multipliers[max(fitting, key=len)] if fitting else 1.0
        decays = (decay == "all" or p.ndim >= 2) and name not in spared
        groups.setdefault((factor, weight_decay if decays else 0.0), []).append(p)
    return [{"params": ps, "weight_decay": wd, SCALE: factor} for (factor, wd), ps in groups.items()]


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix if prefix.endswith(".") else f"{prefix}.")


def build_optimizer(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float = 1e-8, fused: bool
) -> torch.optim.AdamW:
    """torch's AdamW over `parameter_groups`; `fused` is one kernel, on GPUs and on CPUs."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def learning_rate(
    step: int,
    *,
    steps: int,
    lr: float,
    min_lr: float,
    warmup_steps: int,
    schedule: str = "cosine",
    epoch_steps: int = 1,
    decay: float = 0.9,
) -> float:
    """The rate of optimizer step `step` (from 0): linear from lr/warmup_steps to lr, then the schedule.

    `cosine` and `linear` reach min_lr with the last step; `exponential` multiplies by `decay` after every
    epoch, counted from the first step (BLIP), and stays above min_lr.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "exponential":
        return max(min_lr, lr * decay ** (step // epoch_steps))
    share = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    left = 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
    return min_lr + (lr - min_lr) * left
