"""What a comparison with another implementation is: the same weights, the same input, two answers.

Each module of this package lists its `CASES`. `tests/models/test_fidelity.py` asserts every one;
`python -m tests.fidelity` runs them and writes docs/fidelity.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: kind -> name -> (ours, reference); kinds are outputs, losses, gradients
Answers = Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]
KINDS = ("outputs", "losses", "gradients")
#: largest difference allowed, relative to the largest value of the reference
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-9}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        system: recipe, and which part of it.
        oracle: whose implementation the reference is, with its package (the version is looked up).
        package: distribution name of the oracle; empty for a reference written here from the paper.
        size: `small`, or the size in the papers' words.
        run: both answers in a precision.
    """

    system: str
    oracle: str
    package: str
    run: Callable[[torch.dtype], Answers]
    size: str = "small"


def difference(ours: Tensor, reference: Tensor) -> float:
    """max |a - b| / max |reference|."""
    assert ours.shape == reference.shape, f"{tuple(ours.shape)} against {tuple(reference.shape)}"
    scale = reference.detach().abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((ours.detach().to(reference.dtype) - reference.detach()).abs().max() / scale)


def in_precision(system: Any, dtype: torch.dtype) -> Any:
    """A system, its teacher and its queue in `dtype`, for a comparison in float64."""
    system.model.to(dtype)
    if hasattr(system, "teacher"):
        system.teacher.module.to(dtype)
        system.queue.image_QE, system.queue.text_QE = (
            system.queue.image_QE.to(dtype), system.queue.text_QE.to(dtype),
        )  # fmt: skip
    return system
