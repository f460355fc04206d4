"""Does a text fit a picture? The matching head's probability and the similarity, by an exported model.

    matcher = load_matcher("runs/filter/model")
    scores = matcher.score(pictures, texts)                            one text per picture
    scores = matcher.score(pictures, texts, picture=[0, 0, 1, 1, 1])   texts of few pictures
    scores.matched_P, scores.similarity_P                              float32 [P]
    load_matcher("hf:Salesforce/blip-itm-base-coco")                   a BlipForImageTextRetrieval

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

from models.inference.folders import local_folder
from models.inference.load import LoadedModel, load_model, trained_for

#: texts judged at once
ROWS = 256


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
        picture_P = torch.tensor(list(picture), device=self.loaded.device)
        ids_PT, mask_PT = self._encode(texts)
        image = model.encode_image(image_MCHW.to(self.loaded.device))
        text = model.encode_text(ids_PT, mask_PT)
        logits_P2 = model.match(image.tokens_BND, text.states_BTD, mask_PT, rows_B=picture_P)
        return MatchScores(
            matched_P=logits_P2.float().softmax(-1)[:, 1].cpu(),
            similarity_P=(image.feature_BE[picture_P] * text.feature_BE).sum(-1).float().cpu(),
        )

    @torch.inference_mode()
    def matched(
        self, image_MCHW: Tensor, texts: Sequence[str], *, picture: Sequence[int], rows: int = ROWS
    ) -> list[float]:
        """The matching head's probability alone, for texts[i] with the prepared picture picture[i].

        Args:
            rows: texts judged at once, which bounds memory.
        """
        model: Any = self.loaded.model
        tokens_MND = model.encode_image(image_MCHW.to(self.loaded.device)).tokens_BND
        found: list[float] = []
        for first in range(0, len(texts), rows):
            ids_PT, mask_PT = self._encode(texts[first : first + rows])
            picture_P = torch.tensor(list(picture[first : first + rows]), device=self.loaded.device)
            if hasattr(model, "ground"):  # of BLIP, which needs no text mode for it
                states_PTD = model.ground(ids_PT)
            else:
                states_PTD = model.encode_text(ids_PT, mask_PT).states_BTD
            logits_P2 = model.match(tokens_MND, states_PTD, mask_PT, rows_B=picture_P)
            found += logits_P2.float().softmax(-1)[:, 1].tolist()
        return found

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids_PT, mask_PT = self.loaded.tokenizer.encode(list(texts), self.loaded.exported.max_text_tokens)
        return ids_PT.to(self.loaded.device), mask_PT.to(self.loaded.device)


def load_matcher(
    folder: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Matcher:
    """The matcher of a model folder: of ours, or of transformers' BLIP, or the hub's (hf:OWNER/NAME).

    Args:
        dtype: what it computes in; by default bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ValueError: no such folder, or a model without a trained matching head.
    """
    loaded = load_model(local_folder(str(folder)), device=device)
    if not hasattr(loaded.model, "match") or not trained_for(loaded, "itm"):
        raise ValueError(
            f"{folder} is a {loaded.exported.recipe} that was not trained to match; "
            "give one with objective itm"
        )
    if dtype is None:
        dtype = torch.bfloat16 if loaded.device.type == "cuda" else torch.float32
    loaded.model.to(dtype)
    return Matcher(loaded=loaded)
