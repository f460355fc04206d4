"""Recall at K from a matrix of scores, in a way that ties cannot flatter.

A query counts as found at K when one of its positives stands among the first K candidates. Candidates of
equal score stand in random order, and what is returned is the expectation over that order, exactly. So a
model that gives everything the same score gets chance, K / candidates, and neither 0 nor 1.

Shapes: Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at(score_QC: Tensor, positive_QC: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Expected recall at each K, in 0..1.

    Args:
        score_QC: the higher, the better.
        positive_QC: bool; each query has at least one positive.

    Raises:
        ValueError: a query without a positive, or a score that is no number.
    """
    found = sum_found(score_QC, positive_QC, ks)
    return {k: total / len(score_QC) for k, total in found.items()}


def sum_found(score_QC: Tensor, positive_QC: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """As `recall_at`, summed over the queries, for callers that go through them in pieces."""
    if not positive_QC.any(dim=1).all():
        missing = int((~positive_QC.any(dim=1)).nonzero()[0])
        raise ValueError(
            f"query {missing} of {len(score_QC)} has no positive among the {score_QC.shape[1]} candidates"
        )
    if torch.isnan(score_QC).any():
        raise ValueError("a score is NaN; the model's weights are damaged")
    best_Q1 = score_QC.masked_fill(~positive_QC, -torch.inf).amax(dim=1, keepdim=True)
    better_Q = (score_QC > best_Q1).sum(dim=1)
    tied_QC = score_QC == best_Q1
    tied_Q = tied_QC.sum(dim=1)
    wrong_Q = (tied_QC & ~positive_QC).sum(dim=1)
    return {k: float(_chance_of_hit(tied_Q, wrong_Q, k - better_Q).sum()) for k in ks}


def _chance_of_hit(tied_Q: Tensor, wrong_Q: Tensor, places_Q: Tensor) -> Tensor:
    """Chance that the first `places` of `tied` candidates in random order hold one that is not wrong:
    1 - C(wrong, places) / C(tied, places)."""
    tied_Q, wrong_Q = tied_Q.double(), wrong_Q.double()
    places_Q = places_Q.clamp(min=0).double().minimum(tied_Q)

    def log_choose(n_Q: Tensor) -> Tensor:
        return torch.lgamma(n_Q + 1) - torch.lgamma((n_Q - places_Q).clamp(min=0) + 1)

    miss_Q = torch.exp(log_choose(wrong_Q) - log_choose(tied_Q))
    miss_Q = torch.where(places_Q > wrong_Q, torch.zeros_like(miss_Q), miss_Q)
    return 1.0 - miss_Q
