"""Image-text matching with hard negatives (ALBEF, arXiv 2107.07651, section 3.2).

For each picture a wrong caption of the batch is drawn, and for each caption a wrong picture, the more
often the more alike they are; a binary head then tells pairs from mismatches.

Three traps are closed here. A small constant is added *after* the softmax, so that no negative has
probability zero when one column takes it all. Every positive is excluded by image id, not only the
diagonal. A row with no negative left (a batch of captions of one picture) is marked invalid and left out
of the loss instead of failing in the draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.objectives.itc import positives

#: Keeps every negative reachable; far below 1/B for any batch that fits.
FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """One drawn column per row; `valid_B` is False where the row had no negative (index is then itself)."""

    index_B: Tensor
    valid_B: Tensor


def draw_negatives(similarity_BB: Tensor, image_id_B: Tensor, *, generator: torch.Generator) -> Negatives:
    """Draws one negative per row with probability softmax(similarity) over the columns that are no positive.

    `similarity_BB` holds logits (temperature applied), rows and columns in the order of `image_id_B`. One
    uniform number per row from the CPU `generator` is carried through the row's cumulative weights: no
    loop, and no wait for the device.
    """
    probability_BB = F.softmax(similarity_BB.detach().float(), dim=1) + FLOOR
    weight_BB = probability_BB.masked_fill(positives(image_id_B, image_id_B), 0.0).double()
    cumulative_BB = weight_BB.cumsum(dim=1)
    total_B1 = cumulative_BB[:, -1:]
    uniform_B1 = torch.rand(len(weight_BB), 1, generator=generator, dtype=torch.float64)
    # right=True finds the first column whose cumulative weight exceeds the point: never one of weight 0.
    point_B1 = uniform_B1.to(weight_BB.device) * total_B1
    drawn_B = torch.searchsorted(cumulative_BB, point_B1, right=True).squeeze(1)
    valid_B = total_B1.squeeze(1) > 0
    own_B = torch.arange(len(weight_BB), device=weight_BB.device)
    return Negatives(index_B=torch.where(valid_B, drawn_B, own_B), valid_B=valid_B)


def itm_loss(logits_3B2: Tensor, *, no_image_B: Tensor, no_text_B: Tensor) -> Tensor:
    """Cross-entropy of [B matched | B with a negative picture | B with a negative text] pairs.

    Index 1 of the logits is `matched`. `no_image_B` and `no_text_B` are True where there was no such
    negative: those rows have no part in the mean.
    """
    matched_B = torch.ones_like(no_image_B)
    label_3B = torch.cat([matched_B, ~matched_B, ~matched_B]).long()
    weight_3B = torch.cat([matched_B, ~no_image_B, ~no_text_B]).float()
    loss_3B = F.cross_entropy(logits_3B2.float(), label_3B, reduction="none")
    return (loss_3B * weight_3B).sum() / weight_3B.sum()
