"""Contrast over several micro batches: the loss and gradients of one large batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.batch import Batch, StepContext
from models.objectives.cached import cache, surrogate
from models.recipes import albef, clip
from tests.fidelity.case import in_precision
from tests.models.test_recipes import SMALL, make_batch

CONTEXT = StepContext(seed=1, step=3, epoch_steps=4)
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-9}


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    return [
        Batch(
            image_BCHW=image, text_ids_BT=ids, text_mask_BT=mask, image_id_B=image_id, row_B=row,
        )
        for image, ids, mask, image_id, row in zip(
            *(x.split(sizes) for x in (batch.pictures, batch.text_ids_BT, batch.text_mask_BT)),
            batch.image_id_B.split(sizes), batch.row_B.split(sizes), strict=True,
        )
    ]  # fmt: skip


def step(
    system: Any, groups: list[list[Batch]], loss: str, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """(mean over the micro batches of a named loss, its gradients), as the trainer accumulates."""
    count, total = sum(len(group) for group in groups), torch.zeros((), dtype=dtype)
    for group in groups:
        with torch.no_grad():
            prepared = system.prepare(group, CONTEXT)
        for batch, extras in zip(group, prepared, strict=True):
            value = system.model(batch, CONTEXT, extras)[loss] / count
            value.backward()
            total += value.detach()
    return total, {n: p.grad for n, p in system.model.named_parameters() if p.grad is not None}


def fresh(name: str, dtype: torch.dtype, **changes: Any) -> Any:
    torch.manual_seed(0)
    recipe: Any = {"clip": clip, "albef": albef}[name]
    system = in_precision(recipe.build(replace(SMALL[name], **changes)), dtype)
    with torch.no_grad():
        for weight in system.model.parameters():
            if weight.ndim:
                weight.add_(0.1 * torch.randn_like(weight))
    return system


def batch_of(dtype: torch.dtype) -> Batch:
    batch = make_batch(size=8).to("cpu", image_dtype=dtype)
    return replace(batch, image_id_B=torch.tensor([0, 1, 2, 3, 1, 5, 6, 0]))  # positives across the parts


def assert_equal(
    ours: tuple[Tensor, dict[str, Tensor]], one: tuple[Tensor, dict[str, Tensor]], bound: float
) -> None:
    assert (ours[0] - one[0]).abs() <= bound * one[0].abs()
    assert ours[1].keys() == one[1].keys()
    largest = max(g.abs().max() for g in one[1].values())
    for name, value in one[1].items():
        scale = value.abs().max().clamp(min=1e-3 * largest)  # some have no gradient but rounding
        assert (ours[1][name] - value).abs().max() <= bound * scale, name


@pytest.mark.parametrize("dropped", [0.0, 0.5])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_clip_a_group_of_micro_batches_equals_one_batch(dtype: torch.dtype, dropped: float) -> None:
    batch = batch_of(dtype)
    one = step(fresh("clip", dtype, patch_dropout=dropped), [[batch]], "loss", dtype)
    grouped = step(fresh("clip", dtype, patch_dropout=dropped), [split(batch, [2, 2, 2, 2])], "loss", dtype)
    assert len(one[1]) > 20
    assert_equal(grouped, one, BOUNDS[dtype])
    alone = step(
        fresh("clip", dtype, patch_dropout=dropped), [[part] for part in split(batch, [4, 4])], "loss", dtype
    )
    assert (alone[0] - one[0]).abs() > 0.05  # without the group, half of the negatives are missing


def test_clip_beyond_its_bound_the_scale_keeps_its_one_sided_gradient() -> None:
    """The surrogate goes through `bounded` as the loss does."""
    found = []
    for sizes in ([8], [4, 4]):
        system = fresh("clip", torch.float64)
        with torch.no_grad():
            system.model.logit_scale.fill_(5.0)  # above ln 100
        parts = split(batch_of(torch.float64), sizes)
        found.append(step(system, [parts], "loss", torch.float64)[1]["logit_scale"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    assert found[0] != 0


@pytest.mark.parametrize("dtype", BOUNDS)
def test_albef_a_group_of_micro_batches_has_the_contrast_of_one_batch(dtype: torch.dtype) -> None:
    found = []
    for sizes in ([8], [2, 2, 2, 2]):
        system = fresh("albef", dtype, mlm_probability=0.3)
        past = make_batch(size=6, seed=1).to("cpu", image_dtype=dtype)
        [extras] = system.prepare([past], CONTEXT)
        system.after_micro_step(past, extras)  # something in the queue
        # ITC alone: put in the place of the sum
        plain = system.model.forward
        caught: list[Any] = []
        system.model.forward = lambda *a, _p=plain, _c=caught: itc_of(_p, a, _c)
        found.append(step(system, [split(batch_of(dtype), sizes)], "itc only", dtype))
    assert_equal(found[1], found[0], BOUNDS[dtype])
    assert "temperature" in found[0][1]


def itc_of(forward: Any, arguments: tuple[Any, ...], caught: list[Any]) -> dict[str, Tensor]:
    """The contrast of a forward pass with its gradient, which the result has for the log only."""
    original = albef.queue_itc

    def catch(*a: Any, **k: Any) -> Tensor:
        caught.append(original(*a, **k))
        return caught[-1]

    albef.queue_itc = catch  # type: ignore[assignment]
    try:
        forward(*arguments)
    finally:
        albef.queue_itc = original
    return {"itc only": caught[-1]}


def test_the_parts_of_a_cached_loss_may_be_of_different_sizes() -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    shared = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x_BD = torch.randn(7, 3, generator=g, dtype=torch.float64)

    def loss(y_BE: Tensor, z_BE: Tensor, scale: Tensor) -> Tensor:
        return torch.logsumexp(scale * y_BE @ z_BE.T, dim=1).mean() + scale**2

    def features(part_BD: Tensor) -> tuple[Tensor, Tensor]:
        return part_BD @ weight, (part_BD @ weight).sin()

    whole = loss(*features(x_BD), shared)
    expected = torch.autograd.grad(whole, [weight, shared])
    parts = x_BD.split([1, 4, 2])
    with torch.no_grad():
        cached = cache([features(part) for part in parts], [shared], loss)
    for part, one in zip(parts, cached, strict=True):
        value = surrogate(one, features(part), [shared])
        torch.testing.assert_close(value, whole)
        (value / len(parts)).backward()
    torch.testing.assert_close(weight.grad, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.grad, expected[1], rtol=1e-12, atol=1e-12)
