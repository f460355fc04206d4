"""Captions for pictures, by an exported model that writes (BLIP), or any captioner of transformers.

    captioner = load_captioner("runs/captioner/model")
    captioner.caption([Image.open("a.jpg")])                                       [["a red car"]]
    captioner.caption(pictures, how=Nucleus(candidates=4), keys=["00017", ...])    four different ones each
    load_captioner("hf:Salesforce/blip-image-captioning-base")                     the same, from the hub
    load_captioner("models/git-base-coco")                                         `models.inference.foreign`

A picture is encoded once for all its candidates. The prompt that the model was trained with is read first and
is no part of the caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from models.inference.folders import describe, local_folder
from models.inference.generation import Beam, Nucleus, generate
from models.inference.load import LoadedModel, load_model, trained_for

#: texts written at once
ROWS = 512


class Writer(Protocol):
    """What writes captions: `Captioner`, or `models.inference.foreign.ForeignCaptioner`.

    name: for people.
    """

    @property
    def name(self) -> str: ...

    def check(self, how: Beam | Nucleus) -> None:
        """Raises ValueError for texts that it cannot write."""
        ...

    def prepare(self, image: Image.Image) -> Any:
        """A picture as `write_prepared` takes it; safe to call from several threads."""
        ...

    def write_prepared(
        self, pictures: Sequence[Any], *, how: Beam | Nucleus, keys: Sequence[str], rows: int = ROWS
    ) -> list[list[str]]:
        """The captions of each picture. See `Captioner.write`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """A loaded model that writes.

    first_ids: what every text begins with, the opening token and the prompt.
    """

    loaded: LoadedModel
    first_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.loaded.exported.recipe}-{self.loaded.exported.size}"

    def check(self, how: Beam | Nucleus) -> None:
        """Raises ValueError for texts longer than the model has positions for, or without room for a word."""
        positions, first = self.loaded.config.text_positions, len(self.first_ids)
        if how.max_length > positions:
            raise ValueError(
                f"max_length {how.max_length} exceeds the model's {positions} positions; "
                "ask for shorter texts"
            )
        if how.max_length <= first:
            raise ValueError(
                f"max_length {how.max_length} leaves no room after {first} first tokens (the opening one and "
                "the prompt); raise it"
            )

    def prepare(self, image: Image.Image) -> Tensor:
        return self.loaded.preprocess(image)

    def write_prepared(
        self, pictures: Sequence[Tensor], *, how: Beam | Nucleus, keys: Sequence[str], rows: int = ROWS
    ) -> list[list[str]]:
        return self.write(torch.stack(list(pictures)), how=how, keys=keys, rows=rows)

    def caption(
        self, images: Sequence[Image.Image], *, how: Beam | Nucleus | None = None, keys: Sequence[str] = ()
    ) -> list[list[str]]:
        """The captions of each picture: one by a beam search (the default), `how.candidates` by sampling.

        See `write`; pictures are prepared here, which callers with many may do in threads of their own
        (`prepare`).
        """
        return self.write(torch.stack([self.prepare(image) for image in images]), how=how, keys=keys)

    @torch.inference_mode()
    def write(
        self,
        image_BCHW: Tensor,
        *,
        how: Beam | Nucleus | None = None,
        keys: Sequence[str] = (),
        rows: int = ROWS,
    ) -> list[list[str]]:
        """`caption` for prepared pictures, which are encoded in one batch.

        Args:
            keys: names of the pictures, which key the draws: the same key and seed give the same captions
                in any batch.
            rows: texts written at once, which bounds memory: pictures, and at need the candidates of one,
                are written a part after the other.

        Raises:
            ValueError: sampling without a key for each picture; as `check`.
        """
        how = how or Beam()
        self.check(how)
        if isinstance(how, Nucleus) and len(keys) != len(image_BCHW):
            raise ValueError(
                f"{len(keys)} keys for {len(image_BCHW)} pictures; sampling needs the name of each picture"
            )
        model: Any = self.loaded.model
        place = self.loaded.device
        tokens_BND = model.encode_image(image_BCHW.to(place)).tokens_BND
        image_id_B = torch.tensor([draw_key(k) for k in keys] or [0] * len(image_BCHW), device=place)
        texts: list[list[str]] = [[] for _ in range(len(image_BCHW))]
        for pictures, part in parts(len(image_BCHW), how, rows):
            found = generate(
                model.decoder(tokens_BND[pictures]), self.first_ids, image_id_B[pictures], how=how,
                end_id=self.loaded.config.sep_id, part=part,
            )  # fmt: skip
            for own, new in zip(texts[pictures], found, strict=True):
                own += [self.loaded.tokenizer.decode(ids).strip() for ids in new]
        return texts


def parts(pictures: int, how: Beam | Nucleus, rows: int) -> list[tuple[slice, slice]]:
    """Which pictures, and which of their candidates, are written at once: at most `rows` texts (one beam
    search at least)."""
    each = how.candidates if isinstance(how, Nucleus) else how.beams
    if isinstance(how, Nucleus) and each > rows:
        cuts = [slice(first, min(first + rows, each)) for first in range(0, each, rows)]
        return [(slice(at, at + 1), cut) for at in range(pictures) for cut in cuts]
    step = max(1, rows // each)
    return [(slice(at, at + step), slice(0, each)) for at in range(0, pictures, step)]


def load_captioner(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prompt: str | None = None,
) -> Captioner:
    """The captioner of a BLIP: a model folder of ours, or one of transformers, or the hub's (hf:OWNER/NAME).

    Args:
        dtype: what it computes in; by default bfloat16 on a GPU and float32 elsewhere.
        prompt: what every text begins with, in place of what the model was trained with.

    Raises:
        ValueError: no such folder, or a model that does not write.
    """
    place = local_folder(str(folder))
    loaded = load_model(place, device=device)
    captioner = captioner_of(loaded, prompt=prompt)
    if captioner is None:
        raise ValueError(
            f"{folder} is a {loaded.exported.recipe} that was not trained to write; give a blip with "
            "objective lm"
        )
    if dtype is None:
        dtype = torch.bfloat16 if loaded.device.type == "cuda" else torch.float32
    loaded.model.to(dtype)
    return captioner


def load_writer(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prompt: str | None = None,
) -> Writer:
    """`load_captioner` for a BLIP; any other captioner of transformers through its own code.

    Raises:
        ValueError: as `load_captioner`.
    """
    place = local_folder(str(folder))
    known = describe(place)
    if known.ours or known.kind == "blip":
        return load_captioner(place, device=device, dtype=dtype, prompt=prompt)
    from models.inference.foreign import load_foreign

    return load_foreign(place, device=device, dtype=dtype, prompt=prompt)


def captioner_of(loaded: LoadedModel, *, prompt: str | None = None) -> Captioner | None:
    """The captioner that a loaded model is; None for one that does not write."""
    if not hasattr(loaded.model, "decoder") or not trained_for(loaded, "lm"):
        return None
    ids = loaded.config.prompt_ids
    if prompt is not None:
        ids = tuple(loaded.tokenizer.backend(prompt, add_special_tokens=False)["input_ids"])
    return Captioner(loaded=loaded, first_ids=(loaded.config.dec_id, *ids))


def draw_key(name: str) -> int:
    """The int64 that stands for a picture's name in random draws."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
