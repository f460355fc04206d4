"""Losses, softmaxes and unit features are computed in float32 at least, whatever the weights are in."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """float32 for bfloat16 and float16; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
