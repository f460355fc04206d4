"""Masked language modelling: BERT's 15 % with 80/10/10, and soft targets of a teacher.

Drawn as ALBEF draws: padding and [CLS] are never masked, [SEP] may be. The word predictor and the loss
run over the masked positions only, a sixth of the work and of the memory of running over all.

Shapes: B batch, T text tokens, X masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import StepContext
from models.objectives.gather import mean_over_ranks
from models.precision import upcast


@dataclass(frozen=True, kw_only=True)
class MaskedText:
    """Texts with holes.

    ids_BT: what the model reads.
    index_X: the positions to be predicted, counted through the rows of [B, T].
    target_X: the true ids there.
    """

    ids_BT: Tensor
    index_X: Tensor
    target_X: Tensor

    def pick(self, states_BTD: Tensor) -> Tensor:
        """The states [X, D] at the masked positions."""
        return states_BTD.flatten(0, 1).index_select(0, self.index_X)


def mask_tokens(
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    context: StepContext,
    row_B: Tensor,
    probability: float,
    mask_id: int,
    vocab_size: int,
    keep_ids: tuple[int, ...],
    continues_V: Tensor | None = None,
) -> MaskedText:
    """Chooses tokens with `probability`; of these 80 % become [MASK], 10 % a random id, 10 % stay.

    Padding and the ids in `keep_ids` are never chosen. Draws are keyed by `row_B`, the samples' rows in the
    global batch. With `continues_V`, True for ids that continue a word, whole words are chosen instead of
    tokens: all pieces of a word or none.
    """
    length = ids_BT.shape[1]
    chosen_BT = context.uniform("mlm choice", row_B, length) < probability
    if continues_V is not None:
        # the draw of a word is that of the place where it begins
        place_T = torch.arange(length, device=ids_BT.device)
        begin_BT = torch.where(continues_V[ids_BT], 0, place_T).cummax(dim=1).values
        chosen_BT = chosen_BT.gather(1, begin_BT)
    kind_BT = context.uniform("mlm kind", row_B, length)
    random_BT = (context.uniform("mlm word", row_B, length) * vocab_size).long()
    kept_BT = torch.isin(ids_BT, torch.tensor(keep_ids, dtype=ids_BT.dtype, device=ids_BT.device))
    masked_BT = chosen_BT & mask_BT.bool() & ~kept_BT
    read_BT = torch.where(masked_BT & (kind_BT < 0.8), mask_id, ids_BT)
    read_BT = torch.where(masked_BT & (kind_BT >= 0.9), random_BT, read_BT)
    index_X = masked_BT.flatten().nonzero().squeeze(1)  # the step's one wait for the device
    return MaskedText(ids_BT=read_BT, index_X=index_X, target_X=ids_BT.flatten()[index_X])


def mlm_loss(
    logits_XV: Tensor, target_X: Tensor, *, soft_XV: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy with the teacher's probabilities (ALBEF eq. 7).

    The mean over the masked tokens of all ranks; 0 (with a gradient of 0) when there are none.
    """
    log_XV = F.log_softmax(upcast(logits_XV), dim=1)
    loss_X = F.nll_loss(log_XV, target_X, reduction="none")
    if soft_XV is not None and alpha > 0:
        loss_X = torch.lerp(loss_X, -(log_XV * soft_XV.to(log_XV.dtype)).sum(dim=1), alpha)
    return mean_over_ranks(loss_X)
