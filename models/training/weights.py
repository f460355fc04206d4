"""Whole float32 weights of a model that DeepSpeed has spread: for the export and for a momentum teacher.

In bfloat16 the model's own weights are rounded copies of float32 masters in the optimizer, which are sharded
from stage 1 on; at stage 3 the model holds no weights of its own between two uses.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def masters(model: nn.Module, engine: Any) -> dict[nn.Parameter, Tensor]:
    """Parameter -> whole float32 master (a copy, on the device) of what is trained; every process calls it.

    At stages 1 and 2 one gather a parameter group, at stage 3 one a parameter. Where DeepSpeed keeps no
    masters (float32 below stage 3) the parameters themselves.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "round_robin_bit16_groups"):  # stages 1 and 2
        found: dict[nn.Parameter, Tensor] = {}
        for group, part in zip(
            optimizer.round_robin_bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True
        ):
            device = group[0].device
            flat = torch.empty(part.numel() * dist.get_world_size(), dtype=torch.float32, device=device)
            dist.all_gather_into_tensor(flat, part.detach().to(device))
            found |= _cut(flat, group)
        return found
    trained = [p for p in model.parameters() if p.requires_grad]
    if hasattr(trained[0], "ds_id"):  # stage 3
        return {p: optimizer.get_full_hp_param(p) for p in trained}
    if hasattr(optimizer, "fp32_groups"):  # stage 0 in bfloat16
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        return {p: m for low, high in pairs for p, m in zip(low, high, strict=True)}
    return {p: p for p in trained}


def set_masters(model: nn.Module, engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Gives the masters the float32 weights that the model had before it was rounded to bfloat16."""
    optimizer = engine.optimizer
    names = {p: name for name, p in model.named_parameters()}
    if hasattr(optimizer, "round_robin_bit16_groups"):
        for group, part in zip(
            optimizer.round_robin_bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True
        ):
            part.data.copy_(_own_part(torch.cat([weights[names[p]].flatten() for p in group]), part.numel()))
    elif hasattr(optimizer, "fp32_groups"):
        # to make its state, DeepSpeed took a step with gradients of zero here: decay, and a wrong count
        optimizer.optimizer.state.clear()
        for p, master in masters(model, engine).items():
            master.data.copy_(weights[names[p]])
    else:
        for p, name in names.items():
            if p.requires_grad:
                # not by safe_set_full_fp32_param, which cannot cut what the processes do not divide
                part, _ = optimizer._get_fp32_opt_state_partition(p, release_swap_buffers=False)
                part.data.copy_(_own_part(weights[name].flatten(), part.numel()))


def _own_part(flat: Tensor, length: int) -> Tensor:
    """This process's part of a flat tensor that is cut into parts of `length`, the last ones padded."""
    padded = nn.functional.pad(flat, (0, max(0, length * dist.get_world_size() - len(flat))))
    return padded[length * dist.get_rank() :][:length]


def _cut(flat: Tensor, group: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """The parameters of a flat buffer, in order."""
    parts = flat[: sum(p.numel() for p in group)].split([p.numel() for p in group])
    return {p: part.view(p.shape) for p, part in zip(group, parts, strict=True)}


class WholeModel:
    """A model of the same class whose weights are filled in: whole float32 ones for rounded shards."""

    def __init__(self, model: nn.Module) -> None:
        """Made before DeepSpeed takes the model over; holds no memory until it is filled."""
        memo: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
            for p in model.parameters()
        }
        memo |= {id(b): b for b in model.buffers()}
        self.module = copy.deepcopy(model, memo)

    @contextlib.contextmanager
    def filled(self, model: nn.Module, weights: Mapping[nn.Parameter, Tensor]) -> Iterator[nn.Module]:
        """The copy with `weights` (and float32 copies of what is frozen) for the time of the block."""
        theirs = dict(model.named_modules())
        made: dict[nn.Parameter, nn.Parameter] = {}
        for name, owner in self.module.named_modules():
            for leaf, p in theirs[name]._parameters.items():
                if p is None:
                    continue
                if p not in made:
                    value = weights[p] if p in weights else _whole(p)
                    made[p] = nn.Parameter(value.detach().float(), requires_grad=False)
                owner._parameters[leaf] = made[p]
            owner._buffers.update(theirs[name]._buffers)
        try:
            yield self.module
        finally:
            for owner in self.module.modules():
                for leaf, p in owner._parameters.items():
                    if p is not None:
                        owner._parameters[leaf] = nn.Parameter(p.to("meta"), requires_grad=False)


def _whole(p: nn.Parameter) -> Tensor:
    """A parameter without a master: it is frozen, and whole but at stage 3."""
    if not hasattr(p, "ds_id"):
        return p
    from deepspeed.zero import GatheredParameters

    with GatheredParameters([p]):
        return p.detach().clone()
