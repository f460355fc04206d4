"""A learnt scalar that stays within bounds: the temperatures of the contrastive losses.

Clamping a parameter in place fights an optimizer that keeps its own float32 copy (ZeRO); a plain clamp
in the forward pass has no gradient beyond the bound, so a value that once stepped over never returns.
`bounded` clamps the value and lets through the gradients that lead back inside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.precision import upcast


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high), grad = ctx.saved_tensors, ctx.bounds, grads[0]
        outward = ((x > high) & (grad < 0)) | ((x < low) & (grad > 0))  # descent moves against the gradient
        return grad.masked_fill(outward, 0.0), None, None


def bounded(x: Tensor, *, low: float = -float("inf"), high: float = float("inf")) -> Tensor:
    """`x` clamped to [low, high], float32; outside, only the gradient that leads back inside passes."""
    return _Bounded.apply(upcast(x), low, high)
