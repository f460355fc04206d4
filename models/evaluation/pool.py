"""A fixed pool of pictures and captions, and the states that a model gives them, computed once.

Shapes: M pictures, P captions, N image tokens, T text tokens, D width, E joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    captions: the captions as they were written, where a test needs them; else empty.
    """

    images: Iterable[Tensor]
    pictures: int
    text_ids_PT: Tensor
    text_mask_PT: Tensor
    text_image_P: Tensor
    captions: Sequence[str] = ()

    def first(self, pictures: int) -> Pool:
        """The first pictures alone, with their captions; the whole pool where it has no more."""
        if pictures >= self.pictures:
            return self
        batches, left = [], pictures
        for image_BCHW in self.images:
            batches.append(image_BCHW[:left])
            left -= len(batches[-1])
            if left == 0:
                break
        kept = (self.text_image_P < pictures).nonzero()[:, 0]
        return Pool(
            images=batches,
            pictures=pictures,
            text_ids_PT=self.text_ids_PT[kept],
            text_mask_PT=self.text_mask_PT[kept],
            text_image_P=self.text_image_P[kept],
            captions=[self.captions[p] for p in kept.tolist()] if self.captions else (),
        )

    def references(self) -> list[list[str]]:
        """For each picture, its captions as they were written."""
        found: list[list[str]] = [[] for _ in range(self.pictures)]
        for caption, picture in zip(self.captions, self.text_image_P.tolist(), strict=True):
            found[picture].append(caption)
        return found


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


@dataclass(frozen=True, kw_only=True)
class EncodedPool:
    """All states of a pool under one model; `blank` are those of the mean picture alone (M = 1)."""

    images: EncodedImages
    texts: EncodedTexts
    blank: EncodedImages

    @property
    def fuses(self) -> bool:
        """Whether the model looks at a picture token by token."""
        return self.images.tokens_MND is not None and self.texts.states_PTD is not None


def encode_pool(
    model: Model, pool: Pool, *, device: torch.device, report: Report | None = None
) -> EncodedPool:
    """Everything that the tests of one model share, computed once."""
    return EncodedPool(
        images=encode_images(model, pool, device=device, report=report),
        texts=encode_texts(model, pool, device=device, report=report),
        blank=encode_blank(model, pool, device=device),
    )


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
def encode_blank(model: Model, pool: Pool, *, device: torch.device) -> EncodedImages:
    """The mean picture (zeros after normalisation): what a model is shown when its picture is withheld."""
    first_BCHW = next(iter(pool.images))
    out = model.encode_image(torch.zeros_like(first_BCHW[:1]).to(device))
    tokens_1ND = None if out.tokens_BND is None else out.tokens_BND.cpu()
    return EncodedImages(image_ME=out.feature_BE.float().cpu(), tokens_MND=tokens_1ND)


def derangement(picture_P: Tensor, generator: torch.Generator) -> Tensor:
    """Another caption's picture for each caption: the captions are put in random order and each takes the
    picture of the next one that shows something else.

    Raises:
        ValueError: there is one picture only.
    """
    order = torch.randperm(len(picture_P), generator=generator)
    shuffled = picture_P[order]
    if (shuffled == shuffled[0]).all():
        raise ValueError("all captions belong to one picture; a wrong picture needs two")
    taken = shuffled.roll(-1)
    for shift in range(2, len(picture_P)):
        same = taken == shuffled
        if not same.any():
            break
        taken = torch.where(same, shuffled.roll(-shift), taken)
    other_P = torch.empty_like(picture_P)
    other_P[order] = taken
    return other_P


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
