"""What a comparison with another implementation is: the same weights, the same input, two answers.

Each module of this package lists its `CASES`. `tests/models/test_fidelity.py` asserts every one;
`python -m tests.fidelity` runs them and writes docs/fidelity.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.recipes.renames import KeyMap

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


def load(model: nn.Module, keys: KeyMap, state: Mapping[str, Tensor]) -> None:
    """Copies published weights into a model; every one of its weights must be among them."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        place = keys.ours(name)
        if place is not None and place.split(".")[0] not in ("teacher", "queue"):
            change = keys.change(name)
            ours[place] = value if change is None else change.to_ours(value)
    model.load_state_dict(ours, strict=True)


def gradients(
    model: nn.Module, keys: KeyMap, reference: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(ours, reference) of every weight that has a gradient in the reference, in the reference's shape.

    A weight of ours without a counterpart there would be a gradient that nothing is compared with: an
    assertion. Weight and bias of a module are one affine map and compared as one: what a contrast asks of a
    bias cancels over the batch, down to rounding, and the bias of a key has no gradient at all (a softmax
    does not see what all keys have in common).
    """
    weights = dict(model.named_parameters())
    pairs, seen = {}, set()
    for name, value in reference.items():
        place = keys.ours(name)
        assert place is not None, name
        grad, change = weights[place].grad, keys.change(name)
        assert grad is not None, place
        pairs[name] = (grad if change is None else change.to_published(grad), value)
        seen.add(place)
    for name in [n for n in pairs if n.endswith("bias") and n[:-4] + "weight" in pairs]:
        bias, weight = pairs.pop(name), pairs[name[:-4] + "weight"]
        ours, theirs = (torch.cat([w.flatten(), b]) for w, b in zip(weight, bias, strict=True))
        pairs[name[:-4] + "weight"] = (ours, theirs)
    left = {name for name, weight in weights.items() if weight.grad is not None} - seen
    assert not left, f"no gradient in the reference for {sorted(left)}"
    return pairs


def shake(module: nn.Module, *, by: float = 0.1) -> None:
    """Random values everywhere, so that no bias of 0 or gain of 1 hides a missing part."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim:
                weight.add_(torch.randn_like(weight) * by)
