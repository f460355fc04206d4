"""AdamW's parameter groups and the learning rate of a step: pure functions, nothing to save or resume."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], fused: bool
) -> torch.optim.AdamW:
    """AdamW; norms, biases, temperatures and everything else of less than two dimensions do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=betas, weight_decay=weight_decay, fused=fused
    )


def learning_rate(step: int, *, steps: int, lr: float, min_lr: float, warmup_steps: int) -> float:
    """The rate of optimizer step `step` (from 0): linear from lr/warmup_steps to lr, then a cosine that
    reaches min_lr with the last step."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
