"""The position-wise feed-forward network: widen, activate, narrow.

The activation decides whether published weights give the published outputs: `gelu` is the exact (erf)
one of ALBEF, BERT and most LAION models; `quick_gelu`, x * sigmoid(1.702 x), is that of OpenAI's CLIP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class FeedForward(nn.Module):
    """Two linear layers with an activation between them; raises ValueError for an unknown one."""

    def __init__(self, width: int, hidden: int, *, activation: str = "gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; use one of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x_BTD)))
