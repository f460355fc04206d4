"""The momentum teacher: an exponential moving average of the student, kept in float32 (float64 of float64).

At a momentum of 0.995 an update moves a weight by half a percent of the difference, which bfloat16
rounds to nothing: the average would stand still. So the teacher is float32 whatever the student is, and
computes in the student's precision by autocast. It lives outside the trained module: no optimizer, no
gradient, no ZeRO partition; the trainer saves it through the system's `state_dict`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from models.precision import upcast

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class MomentumTeacher(Generic[ModuleT]):
    """A float32 average of a student module.

    `module` is the averaged network, ready to be called inside `inference()`.
    """

    def __init__(self, student: ModuleT) -> None:
        module = copy.deepcopy(student).eval().requires_grad_(False)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = upcast(tensor.data)
        self.module: ModuleT = module

    @torch.no_grad()
    def update(self, student: nn.Module, *, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, once per optimizer step.

        Raises ValueError when the student's weights are partitioned (ZeRO stage 3) or of another model.
        """
        teacher, online = self._pairs(student)
        torch._foreach_lerp_(teacher, online, 1.0 - momentum)

    @torch.no_grad()
    def reset(self, student: nn.Module) -> None:
        """Copies the student: after weights were loaded into it."""
        teacher, online = self._pairs(student)
        torch._foreach_copy_(teacher, online)

    @contextmanager
    def inference(self, dtype: torch.dtype) -> Iterator[ModuleT]:
        """The module without gradient, its matrix products in `dtype`."""
        device = next(self.module.parameters()).device
        lower = dtype in (torch.bfloat16, torch.float16)
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype if lower else None, enabled=lower):
            yield self.module

    def to(self, device: Any) -> None:
        self.module.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state, strict=True)

    def _pairs(self, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Teacher and student weights in one order, the student's as float32 on the teacher's device."""
        theirs = dict(student.named_parameters())
        teacher: list[Tensor] = []
        online: list[Tensor] = []
        for name, weight in self.module.named_parameters():
            if name not in theirs:
                raise ValueError(
                    f"the student has no weight {name}; pass the module the teacher was copied from"
                )
            other = theirs[name]
            if other.shape != weight.shape:
                raise ValueError(
                    f"student weight {name} has shape {tuple(other.shape)}, "
                    f"the teacher's {tuple(weight.shape)}; "
                    "a momentum teacher needs whole weights: use zero.stage 0, 1 or 2"
                )
            teacher.append(weight)
            online.append(other.detach().to(weight.device, weight.dtype))
        return teacher, online
