"""Collecting features from all ranks, with and without gradient.

A contrastive loss over the global batch is computed in parts: each rank scores its own rows against the
features of all. The trainer averages parameter gradients over ranks, so the gradient that reaches a
rank's features must be the sum of what every rank's loss asks of them; a gather without gradient would
shrink the towers' gradient by the world size. All ranks must bring equally many rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) where torch.distributed is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(x_BX: Tensor) -> Tensor:
    """[B, ...] of every rank, stacked in rank order to [B * world, ...]; no gradient."""
    _, world_size = world()
    if world_size == 1:
        return x_BX.detach()
    parts = [torch.empty_like(x_BX) for _ in range(world_size)]
    dist.all_gather(parts, x_BX.detach().contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BX: Tensor) -> Tensor:
        return gather(x_BX)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        rank, world_size = world()
        # An all-reduce works on every backend; the gradient of features is small beside the towers'.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size)[rank]


def gather_with_grad(x_BX: Tensor) -> Tensor:
    """Like `gather`; in the backward pass each rank receives the sum of all ranks' gradients."""
    if world()[1] == 1:
        return x_BX
    return _Gather.apply(x_BX)
