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
    generator: torch.Generator,
    probability: float,
    mask_id: int,
    vocab_size: int,
    keep_ids: tuple[int, ...],
) -> MaskedText:
    """Chooses tokens with `probability`; of these 80 % become [MASK], 10 % a random id, 10 % stay.

    Padding and the ids in `keep_ids` are never chosen. Draws come from the CPU `generator`.
    """
    device = ids_BT.device
    chosen_BT = torch.rand(ids_BT.shape, generator=generator) < probability
    kind_BT = torch.rand(ids_BT.shape, generator=generator).to(device)
    random_BT = torch.randint(vocab_size, ids_BT.shape, generator=generator).to(device)
    kept_BT = torch.isin(ids_BT, torch.tensor(keep_ids, dtype=ids_BT.dtype, device=device))
    masked_BT = chosen_BT.to(device) & mask_BT.bool() & ~kept_BT
    read_BT = torch.where(masked_BT & (kind_BT < 0.8), mask_id, ids_BT)
    read_BT = torch.where(masked_BT & (kind_BT >= 0.9), random_BT, read_BT)
    index_X = masked_BT.flatten().nonzero().squeeze(1)  # the step's one wait for the device
    return MaskedText(ids_BT=read_BT, index_X=index_X, target_X=ids_BT.flatten()[index_X])


def mlm_loss(
    logits_XV: Tensor, target_X: Tensor, *, soft_XV: Tensor | None = None, alpha: float = 0.0
) -> Tensor:
    """(1 - alpha) * cross-entropy + alpha * cross-entropy with the teacher's probabilities (ALBEF eq. 7).

    The mean over masked tokens; 0 (with a gradient of 0) when the batch has none.
    """
    log_XV = F.log_softmax(logits_XV.float(), dim=1)
    loss_X = F.nll_loss(log_XV, target_X, reduction="none")
    if soft_XV is not None and alpha > 0:
        loss_X = torch.lerp(loss_X, -(log_XV * soft_XV.float()).sum(dim=1), alpha)
    return loss_X.sum() / max(1, len(target_X))
