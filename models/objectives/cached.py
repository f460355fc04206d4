"""Contrast over several micro batches as if they were one: feature caching (GradCache, arXiv 2101.06983).

Accumulation alone does not enlarge the set of negatives: each micro batch is contrasted with itself. Feature
caching does, at the price of a second forward pass and none of memory:

1. the features of all micro batches, without gradient;
2. the loss over all of them, and its gradient with respect to the features and to what all share (the scale);
3. each micro batch again, with gradient, its loss the inner product of its features with that gradient.

The derivative of step 3 is that of the whole loss by the chain rule. It needs the same features in 1 and 3:
no dropout from a generator's state (draws from `StepContext.uniform` are the same twice).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Cached:
    """What one of `parts` micro batches needs to know about the loss over all of them; no gradient.

    Attributes:
        loss: The loss over all micro batches.
        gradients: Its gradient with respect to each of this micro batch's features.
        shared_gradients: Its gradient with respect to what all micro batches share.
        parts: Micro batches in the group.
    """

    loss: Tensor
    gradients: Sequence[Tensor]
    shared_gradients: Sequence[Tensor]
    parts: int


def cache(
    features: Sequence[Sequence[Tensor]], shared: Sequence[Tensor], loss: Callable[..., Tensor]
) -> list[Cached]:
    """Steps 1 and 2 for micro batches whose features [B, E] are given, one `Cached` for each.

    `loss` takes the features of all micro batches, stacked in order, and then `shared`. It may gather over
    ranks, like `in_batch_itc`: then the group is that of all ranks.
    """
    sizes = [len(part[0]) for part in features]
    stacked = [torch.cat(list(column)) for column in zip(*features, strict=True)]
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (*stacked, *shared)]
        value = loss(*leaves)
        gradients = torch.autograd.grad(value, leaves)
    of_features, of_shared = gradients[: len(stacked)], gradients[len(stacked) :]
    by_part = zip(*(g.split(sizes) for g in of_features), strict=True)
    return [
        Cached(loss=value.detach(), gradients=part, shared_gradients=of_shared, parts=len(sizes))
        for part in by_part
    ]


def surrogate(cached: Cached, features: Sequence[Tensor], shared: Sequence[Tensor]) -> Tensor:
    """Step 3: has the value of the whole loss, and this micro batch's part of its gradient.

    The caller averages over the micro batches of the group (as accumulation does), therefore the features'
    part counts `parts` times; the shared part is in each of them.
    """
    inner = [
        (x * g.to(x.dtype)).sum() * cached.parts for x, g in zip(features, cached.gradients, strict=True)
    ]
    inner += [(x * g.to(x.dtype)).sum() for x, g in zip(shared, cached.shared_gradients, strict=True)]
    total = torch.stack(inner).sum()
    return cached.loss + (total - total.detach())
