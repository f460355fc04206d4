"""Captions for pictures, by an exported model that writes (BLIP).

    captioner = load_captioner("runs/captioner/model")
    captioner.caption([Image.open("a.jpg")])                                       [["a red car"]]
    captioner.caption(pictures, how=Nucleus(candidates=4), keys=["00017", ...])    four different ones each

A picture is encoded once for all its candidates. The prompt that the model was trained with is read first and
is no part of the caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from models.inference.generation import Beam, Nucleus, generate
from models.inference.load import LoadedModel, load_exported


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """A loaded model that writes.

    first_ids: what every text begins with, the opening token and the prompt.
    """

    loaded: LoadedModel
    first_ids: tuple[int, ...]

    def caption(
        self, images: Sequence[Image.Image], *, how: Beam | Nucleus | None = None, keys: Sequence[str] = ()
    ) -> list[list[str]]:
        """The captions of each picture: one by a beam search (the default), `how.candidates` by sampling.

        See `write`; pictures are prepared here, which callers with many may do in threads of their own
        (`loaded.preprocess`).
        """
        return self.write(
            torch.stack([self.loaded.preprocess(image) for image in images]), how=how, keys=keys
        )

    @torch.inference_mode()
    def write(
        self, image_BCHW: Tensor, *, how: Beam | Nucleus | None = None, keys: Sequence[str] = ()
    ) -> list[list[str]]:
        """`caption` for prepared pictures, all in one batch.

        Args:
            keys: names of the pictures, which key the draws: the same key and seed give the same captions
                in any batch.

        Raises:
            ValueError: sampling without a key for each picture, or longer texts than the model has
                positions for.
        """
        how = how or Beam()
        positions = self.loaded.config.text_positions
        if how.max_length > positions:
            raise ValueError(
                f"max_length {how.max_length} exceeds the model's {positions} positions; "
                "ask for shorter texts"
            )
        if isinstance(how, Nucleus) and len(keys) != len(image_BCHW):
            raise ValueError(
                f"{len(keys)} keys for {len(image_BCHW)} pictures; sampling needs the name of each picture"
            )
        model: Any = self.loaded.model
        place = self.loaded.device
        tokens_BND = model.encode_image(image_BCHW.to(place)).tokens_BND
        image_id_B = torch.tensor([draw_key(k) for k in keys] or [0] * len(image_BCHW), device=place)
        found = generate(
            model.decoder(tokens_BND), self.first_ids, image_id_B, how=how, end_id=self.loaded.config.sep_id
        )
        return [[self.loaded.tokenizer.decode(ids).strip() for ids in texts] for texts in found]


def load_captioner(
    folder: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Captioner:
    """The captioner of a model folder.

    Args:
        dtype: what it computes in; by default bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ValueError: no such folder, or a model that does not write.
    """
    loaded = load_exported(folder, device=device)
    captioner = captioner_of(loaded)
    if captioner is None:
        raise ValueError(
            f"{folder} is a {loaded.exported.recipe} that was not trained to write; give a blip with "
            "objective lm"
        )
    if dtype is None:
        dtype = torch.bfloat16 if loaded.device.type == "cuda" else torch.float32
    loaded.model.to(dtype)
    return captioner


def captioner_of(loaded: LoadedModel) -> Captioner | None:
    """The captioner that a loaded model is; None for one that does not write."""
    if not hasattr(loaded.model, "decoder") or "lm" not in loaded.config.objectives:
        return None
    return Captioner(loaded=loaded, first_ids=(loaded.config.dec_id, *loaded.config.prompt_ids))


def draw_key(name: str) -> int:
    """The int64 that stands for a picture's name in random draws."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
