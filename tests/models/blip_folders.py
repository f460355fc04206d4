"""Model folders of tiny models with random weights: a BLIP of ours that writes and matches, a CLIP."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from models.exported import ExportedConfig, write_exported
from models.published.formats import CLIP_MEAN, CLIP_STD
from models.recipes import RECIPES, blip
from models.tokenizer import Tokenizer, train_wordpiece

WORDS = (
    "picture", "of", "shard", "a", "red", "car", "and", "the", "green", "house", "by", "river", "with", "two",
    "dogs", "in", "old", "town",
)  # fmt: skip


def tokenizer_at(folder: Path) -> Tokenizer:
    lines = [f"{a} {b} {n}" for n, a in enumerate(WORDS) for b in WORDS]
    return train_wordpiece(lines, vocab_size=120, folder=folder)


def write_blip(
    folder: Path,
    *,
    objectives: tuple[str, ...] = blip.OBJECTIVES,
    seed: int = 0,
    image_size: int = 32,
    prompt: str = "",
    lively: bool = True,
) -> Path:
    """A model/ folder as training exports it. lively: its texts differ from picture to picture, and end."""
    tokenizer = tokenizer_at(folder.with_name(f"{folder.name}-tokenizer"))
    config = tokenizer.fit(
        blip.Config(
            image_size=image_size, patch_size=8, vision_width=32, vision_depth=2, vision_heads=4,
            text_width=32, text_depth=2, text_heads=4, embed_dim=16, max_text_length=24, text_positions=40,
            queue_size=16, dropout=0.0, objectives=objectives, prompt=prompt,
        )
    )  # fmt: skip
    torch.manual_seed(seed)
    model = blip.build(config).model
    if lively:
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim > 1:
                    value.mul_(4.0 if "text" in name or "vision" in name else 1.0)
            model.lm_head.bias[config.sep_id] += 1.0
    exported = ExportedConfig(
        recipe="blip", size="tiny", model=dataclasses.asdict(config), image_mean=CLIP_MEAN,
        image_std=CLIP_STD, max_text_tokens=config.max_text_length, training={},
    )  # fmt: skip
    write_exported(folder, model=model, config=exported, tokenizer=tokenizer)
    return folder


def write_clip(folder: Path, *, seed: int = 0) -> Path:
    """The model/ folder of a CLIP of ours."""
    tokenizer = tokenizer_at(folder.with_name(f"{folder.name}-tokenizer"))
    recipe = RECIPES["clip"]
    config = dataclasses.replace(
        recipe.SIZES["tiny"], image_size=32, vision_depth=1, text_depth=1, vocab_size=tokenizer.vocab_size
    )
    torch.manual_seed(seed)
    exported = ExportedConfig(
        recipe="clip", size="tiny", model=dataclasses.asdict(config), image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5), max_text_tokens=16, training={},
    )  # fmt: skip
    write_exported(folder, model=recipe.build(config).model, config=exported, tokenizer=tokenizer)
    return folder
