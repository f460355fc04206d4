"""The two sides of `pairmill bench caption`: one BLIP of random weights, held by us and by transformers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.exported import ExportedConfig, write_exported
from models.inference.captioner import Captioner, load_captioner
from models.inference.generation import Nucleus
from models.published.formats import CLIP_MEAN, CLIP_STD
from models.published.writing import write
from models.recipes import blip
from models.tokenizer import Tokenizer, load_tokenizer

WORDS = 30522
P, TOP_K, PENALTY = 0.9, 50, 1.1


@dataclass(frozen=True, kw_only=True)
class Sides:
    """captioner: ours. model, tokenizer: theirs. picture_BCHW: what both caption."""

    captioner: Captioner
    model: Any
    tokenizer: Any
    picture_BCHW: Tensor
    tokens: int

    @property
    def image_size(self) -> int:
        return self.picture_BCHW.shape[-1]

    def ours(self, candidates: int, *, batch_size: int, rows: int) -> list[list[str]]:
        """All pictures as the stage takes them: batch by batch."""
        how = Nucleus(
            candidates=candidates, p=P, top_k=TOP_K, repetition_penalty=PENALTY, min_length=self.tokens,
            max_length=self.tokens,
        )  # fmt: skip
        found: list[list[str]] = []
        for first in range(0, len(self.picture_BCHW), batch_size):
            part = self.picture_BCHW[first : first + batch_size]
            keys = [f"{first + at:012d}" for at in range(len(part))]
            found += self.captioner.write(part, how=how, keys=keys, rows=rows)
        return found

    @torch.inference_mode()
    def theirs(self, candidates: int) -> list[list[str]]:
        """One picture after the other."""
        found = []
        for picture_CHW in self.picture_BCHW:
            ids = self.model.generate(
                pixel_values=picture_CHW[None].to(self.model.device), do_sample=True, top_p=P, top_k=TOP_K,
                repetition_penalty=PENALTY, num_return_sequences=candidates, min_length=self.tokens,
                max_length=self.tokens,
            )  # fmt: skip
            if tuple(ids.shape) != (candidates, self.tokens):
                raise RuntimeError(f"transformers wrote {tuple(ids.shape)}, not {candidates} x {self.tokens}")
            found.append(self.tokenizer.batch_decode(ids, skip_special_tokens=True))
        return found


def make_sides(
    folder: Path, *, size: str, image_size: int | None, pictures: int, tokens: int, threads: int, device: str
) -> Sides:
    """Writes the model into `folder` and loads it on both sides, float32."""
    from transformers import BlipForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()  # of the matching head, which its captioner leaves in the folder
    torch.set_num_threads(threads)
    tokenizer = _tokenizer(folder / "words")
    config = blip.SIZES[size]
    positions = max(config.text_positions, tokens)
    config = dataclasses.replace(config, objectives=("lm",), text_positions=positions)
    config = tokenizer.fit(dataclasses.replace(config, image_size=image_size or config.image_size))
    torch.manual_seed(0)
    exported = ExportedConfig(
        recipe="blip", size=size, model=dataclasses.asdict(config), image_mean=CLIP_MEAN,
        image_std=CLIP_STD, max_text_tokens=config.max_text_length, training={},
    )  # fmt: skip
    write_exported(folder / "model", model=blip.build(config).model, config=exported, tokenizer=tokenizer)
    write(folder / "model", folder / "transformers", "transformers")
    model = BlipForConditionalGeneration.from_pretrained(folder / "transformers").eval().to(device)
    side = config.image_size
    return Sides(
        captioner=load_captioner(folder / "model", device=device, dtype=torch.float32),
        model=model,
        tokenizer=tokenizer.backend,
        picture_BCHW=torch.randn(pictures, 3, side, side, generator=torch.Generator().manual_seed(1)),
        tokens=tokens,
    )


def _tokenizer(folder: Path) -> Tokenizer:
    """As many made-up words as BERT's vocabulary has."""
    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{n}" for n in range(WORDS - len(special))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    return load_tokenizer(folder)
