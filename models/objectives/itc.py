"""Image-text contrast: a caption is closer to its picture than to others, and the reverse.

Two forms: in-batch (CLIP), where the other pairs of the global batch are the negatives, and with a queue
(MoCo, ALBEF eq. 1 and 6), where a momentum teacher's features of this batch and of recent batches are the
keys and the teacher's own opinion softens the targets.

Positives go by image id, not by the diagonal: a second caption of the same picture is no negative. Where
a row has several positives they share its probability evenly.

Shapes: B local batch, G global batch, K keys (global batch and queue), E joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.objectives.gather import gather, gather_with_grad
from models.precision import upcast


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What the rows are compared with: unit features and the id of the picture behind each.

    The global batch is among them, so that every row has a positive.
    """

    image_KE: Tensor
    text_KE: Tensor
    id_K: Tensor


def similarity(a_XE: Tensor, b_YE: Tensor) -> Tensor:
    """Inner products [X, Y] in float32, also where the caller runs under autocast."""
    with torch.autocast(device_type=a_XE.device.type, enabled=False):
        a_XE, b_YE = upcast(a_XE), upcast(b_YE)
        return a_XE @ b_YE.to(a_XE.dtype).T


def positives(row_id_B: Tensor, column_id_K: Tensor) -> Tensor:
    """Boolean [B, K]: row and column show the same picture."""
    return row_id_B[:, None] == column_id_K[None, :]


def even_targets(positive_BK: Tensor, dtype: torch.dtype) -> Tensor:
    """Each row's probability shared evenly by its positives; every row has at least one."""
    target_BK = positive_BK.to(dtype)
    return target_BK / target_BK.sum(dim=1, keepdim=True)


def in_batch_itc(image_BE: Tensor, text_BE: Tensor, image_id_B: Tensor, *, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss (arXiv 2103.00020, figure 3) over the pairs of all ranks.

    `image_BE` and `text_BE` are unit features, `scale` multiplies their inner products. Local rows, global
    columns: averaged over ranks it is the loss, and has the gradient, of one process with the whole batch.
    """
    target_BG = even_targets(positives(image_id_B, gather(image_id_B)), upcast(image_BE).dtype)
    image_to_text_BG = upcast(scale) * similarity(image_BE, gather_with_grad(text_BE))
    text_to_image_BG = upcast(scale) * similarity(text_BE, gather_with_grad(image_BE))
    return (F.cross_entropy(image_to_text_BG, target_BG) + F.cross_entropy(text_to_image_BG, target_BG)) / 2


def queue_itc(
    image_BE: Tensor,
    text_BE: Tensor,
    image_id_B: Tensor,
    *,
    teacher_image_BE: Tensor,
    teacher_text_BE: Tensor,
    keys: Keys,
    temperature: Tensor,
    alpha: float,
) -> Tensor:
    """ALBEF's contrast against the teacher's keys (eq. 1) with its soft targets (eq. 6).

    Targets are alpha * softmax(teacher) + (1 - alpha) * positives. Only the student's features and the
    temperature of its own logits receive gradient. Keys are the same on every rank, so the mean over
    ranks is again the loss of one process.
    """
    hard_BK = even_targets(positives(image_id_B, keys.id_K), upcast(image_BE).dtype)
    temperature = upcast(temperature)

    def direction(student_BE: Tensor, teacher_BE: Tensor, key_KE: Tensor) -> Tensor:
        target_BK = hard_BK
        if alpha > 0:
            with torch.no_grad():
                soft_BK = F.softmax(similarity(teacher_BE, key_KE) / temperature, dim=1)
                target_BK = torch.lerp(hard_BK, soft_BK, alpha)
        return F.cross_entropy(similarity(student_BE, key_KE) / temperature, target_BK)

    image_to_text = direction(image_BE, teacher_image_BE, keys.text_KE)
    text_to_image = direction(text_BE, teacher_text_BE, keys.image_KE)
    return (image_to_text + text_to_image) / 2
