"""Image-text matching with hard negatives (ALBEF, arXiv 2107.07651, section 3.2).

For each picture a wrong caption of the batch is drawn, and for each caption a wrong picture, the more
often the more alike they are; a binary head then tells pairs from mismatches. The candidates are the rows
of all ranks (`negatives="global"`, VLMo and BLIP's fine-tuning) or of this rank (ALBEF's and BLIP's
pre-training code). Only the former gives the same loss for every number of ranks.

Three traps are closed here. A small constant is added *after* the softmax, so that no negative has
probability zero when one column takes it all. Every positive is excluded by image id, not only the
diagonal. A row with no negative left (a batch of captions of one picture) is marked invalid and left out
of the loss instead of failing in the draw.

Shapes: B local batch, G candidates (global batch, or B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import Batch, StepContext
from models.objectives.gather import (
    gather,
    gather_with_grad,
    longest,
    mean_over_ranks,
    pad_columns,
    world,
)
from models.objectives.itc import positives
from models.precision import upcast

#: Keeps every negative reachable; far below 1/G for any batch that fits.
FLOOR = 1e-4
#: Where negatives come from: values of a recipe's `itm_negatives`.
SCOPES = ("global", "local")


def check_scope(scope: str) -> None:
    """Raises ValueError unless `scope` is one of SCOPES."""
    if scope not in SCOPES:
        raise ValueError(f"itm_negatives {scope!r} is unknown; use global (all processes) or local")


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """One drawn column per row; `valid_B` is False where the row had no negative (index is then 0)."""

    index_B: Tensor
    valid_B: Tensor


def draw_negatives(
    similarity_BG: Tensor, row_id_B: Tensor, column_id_G: Tensor, *, uniform_B: Tensor
) -> Negatives:
    """Draws one negative per row with probability softmax(similarity) over the columns that are no positive.

    `similarity_BG` holds logits (temperature applied) and the ids those of the pictures of rows and columns.
    One uniform number per row (`StepContext.uniform`) is carried through the row's cumulative weights: no
    loop, and no wait for the device.
    """
    probability_BG = F.softmax(upcast(similarity_BG.detach()), dim=1) + FLOOR
    weight_BG = probability_BG.masked_fill(positives(row_id_B, column_id_G), 0.0).double()
    cumulative_BG = weight_BG.cumsum(dim=1)
    total_B1 = cumulative_BG[:, -1:]
    # right=True finds the first column whose cumulative weight exceeds the point: never one of weight 0.
    point_B1 = uniform_B.double().reshape(-1, 1) * total_B1
    drawn_B = torch.searchsorted(cumulative_BG, point_B1, right=True).squeeze(1)
    valid_B = total_B1.squeeze(1) > 0
    return Negatives(index_B=torch.where(valid_B, drawn_B, 0), valid_B=valid_B)


@torch.no_grad()
def draw_both(
    batch: Batch,
    context: StepContext,
    image_BE: Tensor,
    text_BE: Tensor,
    *,
    keys: tuple[Tensor, Tensor, Tensor],
    logits: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Negatives, Negatives]:
    """A wrong text for each picture of the batch, and a wrong picture for each text.

    Args:
        keys: features of the pictures and texts that may be drawn, and the ids of their pictures [G].
        logits: similarities [B, G] of own features and keys, temperature applied.
    """
    key_image_GE, key_text_GE, id_G = keys

    def draw(own_BE: Tensor, key_GE: Tensor, purpose: str) -> Negatives:
        uniform_B = context.uniform(purpose, batch.row_B)
        return draw_negatives(logits(own_BE, key_GE), batch.image_id_B, id_G, uniform_B=uniform_B)

    return draw(image_BE, key_text_GE, "itm text"), draw(text_BE, key_image_GE, "itm image")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that negatives are picked from: those of all ranks, or of this one."""

    everywhere: bool

    @staticmethod
    def of(scope: str) -> Rows:
        """For a recipe's `itm_negatives`; one process has no others."""
        return Rows(everywhere=scope == "global" and world()[1] > 1)

    def own(self, x_GX: Tensor, local: int) -> Tensor:
        """Of something gathered from all ranks, the rows to pick from."""
        if self.everywhere or len(x_GX) == local:
            return x_GX
        return x_GX[world()[0] * local :][:local]

    def memories(self, image_BND: Tensor, picked_B: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [M, N, D] that begin with the own ones, and where among them the picked ones lie.

        Alone, a picked picture is one of the own, and nothing is copied. Otherwise the picked ones are
        appended: keys and values are then projected for 2B pictures, not for those of all ranks.
        """
        if not self.everywhere:
            return image_BND, picked_B
        picked_BND = gather_with_grad(image_BND).index_select(0, picked_B)
        appended_B = torch.arange(len(image_BND), device=image_BND.device) + len(image_BND)
        return torch.cat([image_BND, picked_BND]), appended_B

    def texts(self, states_BTD: Tensor, mask_BT: Tensor, picked_B: Tensor) -> tuple[Tensor, Tensor]:
        """States and masks of the picked texts, padded to the longest of all ranks."""
        if self.everywhere:
            length = longest(states_BTD.shape[1], states_BTD.device)
            states_BTD = gather_with_grad(pad_columns(states_BTD, length))
            mask_BT = gather(pad_columns(mask_BT, length))
        return states_BTD.index_select(0, picked_B), mask_BT.index_select(0, picked_B)


def itm_loss(logits_3B2: Tensor, *, no_image_B: Tensor, no_text_B: Tensor) -> Tensor:
    """Cross-entropy of [B matched | B with a negative picture | B with a negative text] pairs.

    Index 1 of the logits is `matched`. `no_image_B` and `no_text_B` are True where there was no such
    negative: those rows have no part in the mean over all ranks.
    """
    matched_B = torch.ones_like(no_image_B)
    label_3B = torch.cat([matched_B, ~matched_B, ~matched_B]).long()
    weight_3B = torch.cat([matched_B, ~no_image_B, ~no_text_B])
    loss_3B = F.cross_entropy(upcast(logits_3B2), label_3B, reduction="none")
    return mean_over_ranks(loss_3B, weight_3B.to(loss_3B.dtype))
