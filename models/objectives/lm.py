"""Language modelling: each token of a caption from the picture and the tokens before it.

BLIP (arXiv 2201.12086, section 3.2): label smoothing 0.1, padding is no target, the closing [SEP] is one. A
prompt in front of the caption is read and not predicted. The word predictor and the loss run over
the targets only.

Shapes: B batch, T text tokens, X targets, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.objectives.gather import mean_over_ranks
from models.precision import upcast


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Texts to be continued.

    ids_BT: what the decoder reads. mask_BT: 1 for a token, 0 for padding.
    index_X: the positions whose next token is to be predicted, counted through the rows of [B, T].
    target_X: the next tokens.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    index_X: Tensor
    target_X: Tensor

    def pick(self, states_BTD: Tensor) -> Tensor:
        """The states [X, D] that predict; columns beyond T (padding of another text) may follow."""
        length = self.ids_BT.shape[1]
        return states_BTD[:, :length].flatten(0, 1).index_select(0, self.index_X)


def continuation(
    ids_BT: Tensor, mask_BT: Tensor, *, first_id: int, prompt_ids: tuple[int, ...] = ()
) -> Continuation:
    """`first_id` in the place of the opening token, then the prompt, then the caption to be predicted."""
    prompt = torch.tensor([first_id, *prompt_ids], dtype=ids_BT.dtype, device=ids_BT.device)
    ids_BT = torch.cat([prompt.expand(len(ids_BT), -1), ids_BT[:, 1:]], dim=1)
    mask_BT = torch.cat([torch.ones_like(ids_BT[:, : len(prompt)]), mask_BT[:, 1:]], dim=1)
    due_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
    due_BT[:, len(prompt) - 1 : -1] = mask_BT[:, len(prompt) :].bool()
    index_X = due_BT.flatten().nonzero().squeeze(1)  # the step's one wait for the device
    target_X = ids_BT.roll(-1, dims=1).flatten()[index_X]
    return Continuation(ids_BT=ids_BT, mask_BT=mask_BT, index_X=index_X, target_X=target_X)


def lm_loss(logits_XV: Tensor, target_X: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with label smoothing, the mean over the targets of all ranks; 0 when there are none.

    With smoothing s the target is 1 - s on the token and s spread evenly over the whole vocabulary.
    """
    loss_X = F.cross_entropy(upcast(logits_XV), target_X, reduction="none", label_smoothing=smoothing)
    return mean_over_ranks(loss_X)
