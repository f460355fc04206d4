"""A fixed pool of pictures and captions, and the states that a model gives them, computed once.

Shapes: M pictures, P captions, N image tokens, T text tokens, D width, E joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.recipes.base import Model

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What is evaluated.

    images: the pictures in order, as batches [B, 3, H, W] of normalised floats; a list, or a loader, which
        is gone through more than once.
    text_ids_PT, text_mask_PT: the captions, padded to one length.
    text_image_P: int64, which picture (0..M-1) a caption belongs to.
    pictures: M.
    """

    images: Iterable[Tensor]
    pictures: int
    text_ids_PT: Tensor
    text_mask_PT: Tensor
    text_image_P: Tensor


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """image_ME: unit features. tokens_MND: what fusion attends to, or None."""

    image_ME: Tensor
    tokens_MND: Tensor | None


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """text_PE: unit features. states_PTD: what fusion continues from, or None."""

    text_PE: Tensor
    states_PTD: Tensor | None


@torch.inference_mode()
def encode_images(
    model: Model, pool: Pool, *, device: torch.device, report: Report | None = None
) -> EncodedImages:
    """Features and tokens of all pictures, on the CPU.

    Raises:
        ValueError: the pool holds another number of pictures than it says.
    """
    features, tokens, done = [], [], 0
    for image_BCHW in pool.images:
        out = model.encode_image(image_BCHW.to(device))
        features.append(out.feature_BE.float().cpu())
        if out.tokens_BND is not None:
            tokens.append(out.tokens_BND.cpu())
        done += len(image_BCHW)
        if report:
            report("pictures", done, pool.pictures)
    if done != pool.pictures:
        raise ValueError(f"the pool says {pool.pictures} pictures and gave {done}")
    return EncodedImages(image_ME=torch.cat(features), tokens_MND=torch.cat(tokens) if tokens else None)


@torch.inference_mode()
def encode_texts(
    model: Model, pool: Pool, *, device: torch.device, batch_size: int = 256, report: Report | None = None
) -> EncodedTexts:
    """Features and states of all captions, on the CPU."""
    features, states = [], []
    for start in range(0, len(pool.text_ids_PT), batch_size):
        part = slice(start, start + batch_size)
        out = model.encode_text(pool.text_ids_PT[part].to(device), pool.text_mask_PT[part].to(device))
        features.append(out.feature_BE.float().cpu())
        if out.states_BTD is not None:
            states.append(out.states_BTD.cpu())
        if report:
            report("captions", min(start + batch_size, len(pool.text_ids_PT)), len(pool.text_ids_PT))
    return EncodedTexts(text_PE=torch.cat(features), states_PTD=torch.cat(states) if states else None)
