"""Collecting features and counts from all ranks, with and without gradient.

A loss over the global batch is computed in parts: each rank scores its own rows against the features of
all. The trainer averages parameter gradients over ranks, so the gradient that reaches a rank's features
must be the sum of what every rank's loss asks of them; a gather without gradient would shrink the towers'
gradient by the world size. All ranks must bring equally many rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
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


def longest(length: int, device: torch.device) -> int:
    """The largest of all ranks' lengths: what texts are padded to before they are gathered."""
    if world()[1] == 1:
        return length
    most = torch.tensor(length, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def pad_columns(x_BTX: Tensor, length: int) -> Tensor:
    """[B, T, ...] with zeros appended to T = `length`."""
    missing = length - x_BTX.shape[1]
    return F.pad(x_BTX, [0, 0] * (x_BTX.ndim - 2) + [0, missing]) if missing else x_BTX


def mean_over_ranks(values_X: Tensor, weight_X: Tensor | None = None) -> Tensor:
    """A local loss whose average over ranks is the mean of all ranks' values.

    Ranks hold different numbers of masked tokens or valid rows; the mean of their means would weight the
    tokens of a rank with few more than those of one with many. Here every value counts alike (`weight_X`
    times, without gradient): the sum over this rank times the world size over the count of all. 0, with a
    gradient of 0, where no rank has any.
    """
    if weight_X is None:
        weight_X = torch.ones_like(values_X)
    count = weight_X.detach().sum()
    _, world_size = world()
    if world_size > 1:
        count = count.clone()
        dist.all_reduce(count)
    return (values_X * weight_X).sum() * world_size / count.clamp(min=1.0)
