"""Does a text fit a picture? The matching head's probability and the similarity, by an exported model.

    matcher = load_matcher("runs/filter/model")
    scores = matcher.score(pictures, texts)                            one text per picture
    scores = matcher.score(pictures, texts, picture=[0, 0, 1, 1, 1])   texts of few pictures
    scores.matched_P, scores.similarity_P                              float32 [P]

CapFilt (arXiv 2201.12086) drops a text whose `matched` is below 0.5. Any model with a matching head will do
(BLIP, ALBEF). A picture is encoded once, however many texts it has.

Shapes: M pictures, P texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from models.inference.load import LoadedModel, load_exported


@dataclass(frozen=True, kw_only=True)
class MatchScores:
    """matched_P: probability in 0..1 that text and picture belong together. similarity_P: cosine of their
    features. float32, on the CPU."""

    matched_P: Tensor
    similarity_P: Tensor


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """A loaded model with a matching head."""

    loaded: LoadedModel

    def score(
        self, images: Sequence[Image.Image], texts: Sequence[str], *, picture: Sequence[int] | None = None
    ) -> MatchScores:
        """Scores of texts[i] with images[picture[i]] (with images[i] without `picture`)."""
        image_MCHW = torch.stack([self.loaded.preprocess(image) for image in images])
        return self.score_prepared(image_MCHW, texts, picture=picture)

    @torch.inference_mode()
    def score_prepared(
        self, image_MCHW: Tensor, texts: Sequence[str], *, picture: Sequence[int] | None = None
    ) -> MatchScores:
        """`score` for prepared pictures, all in one batch.

        Raises:
            ValueError: another number of texts than of pictures, and no word which belongs to which.
        """
        if picture is None:
            if len(texts) != len(image_MCHW):
                raise ValueError(
                    f"{len(texts)} texts for {len(image_MCHW)} pictures; "
                    "say in `picture` which belongs to which"
                )
            picture = range(len(texts))
        model: Any = self.loaded.model
        place = self.loaded.device
        picture_P = torch.tensor(list(picture), device=place)
        ids_PT, mask_PT = self.loaded.tokenizer.encode(list(texts), self.loaded.exported.max_text_tokens)
        ids_PT, mask_PT = ids_PT.to(place), mask_PT.to(place)
        image = model.encode_image(image_MCHW.to(place))
        text = model.encode_text(ids_PT, mask_PT)
        logits_P2 = model.match(image.tokens_BND, text.states_BTD, mask_PT, rows_B=picture_P)
        return MatchScores(
            matched_P=logits_P2.float().softmax(-1)[:, 1].cpu(),
            similarity_P=(image.feature_BE[picture_P] * text.feature_BE).sum(-1).float().cpu(),
        )


def load_matcher(
    folder: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Matcher:
    """The matcher of a model folder.

    Args:
        dtype: what it computes in; by default bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ValueError: no such folder, or a model without a trained matching head.
    """
    loaded = load_exported(folder, device=device)
    if not hasattr(loaded.model, "match") or "itm" not in getattr(loaded.config, "objectives", ("itm",)):
        raise ValueError(
            f"{folder} is a {loaded.exported.recipe} that was not trained to match; "
            "give one with objective itm"
        )
    if dtype is None:
        dtype = torch.bfloat16 if loaded.device.type == "cuda" else torch.float32
    loaded.model.to(dtype)
    return Matcher(loaded=loaded)
