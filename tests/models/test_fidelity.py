"""Every comparison of `tests.fidelity`, in float32 and float64; `make fidelity` writes the figures down."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from models.recipes import RECIPES
from tests.fidelity.case import BOUNDS, KINDS, difference
from tests.fidelity.every import cases, is_small, largest, modules

ALL = cases()


@cache
def found(name: str, dtype: torch.dtype) -> dict[str, tuple[float, str]]:
    return largest(ALL[name], dtype)


def parameters() -> list[Any]:
    """Small cases run always; published sizes are proofs."""
    return [
        pytest.param(
            name, dtype, id=f"{name}, {str(dtype)[6:]}", marks=() if is_small(case) else pytest.mark.prove
        )
        for name, case in ALL.items()
        for dtype in BOUNDS
    ]


@pytest.mark.parametrize(("name", "dtype"), parameters())
def test_equals_the_other_implementation(name: str, dtype: torch.dtype) -> None:
    for kind, (far, what) in found(name, dtype).items():
        assert far <= BOUNDS[dtype], f"{kind}: {what} differs by {far:.1e}, allowed {BOUNDS[dtype]}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_compared_in_outputs_losses_and_gradients(recipe: str) -> None:
    here = {id(case) for case in modules()[recipe].CASES if is_small(case)}
    kinds = {kind for name in ALL if id(ALL[name]) in here for kind in found(name, torch.float32)}
    assert kinds == set(KINDS)


def test_a_difference_is_relative_to_the_largest_value_and_shapes_must_agree() -> None:
    reference = torch.tensor([4.0, -8.0, 0.0])
    assert difference(reference + torch.tensor([0.0, 0.0, 0.02]), reference) == pytest.approx(0.0025)
    assert not difference(torch.full((3,), float("nan")), reference) <= 1e9
    with pytest.raises(AssertionError, match=r"\(2,\) against \(3,\)"):
        difference(torch.zeros(2), reference)
