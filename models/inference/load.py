"""Loads the model folder of a finished run: `load_exported("runs/albef/model")`.

`load_model` also takes a BLIP in transformers' files, whose weights become a model of ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from models.exported import (
    ExportedConfig,
    load_weights,
    model_config,
    read_exported_config,
    read_exported_tokenizer,
)
from models.inference.folders import describe
from models.published.reading import Reading, convert
from models.recipes import RECIPES
from models.tokenizer import Tokenizer

#: objective -> a weight without which a model cannot do what it trains
_NEEDS = {"itm": "itm_head.weight", "lm": "lm_head.dense.weight"}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained system, ready to be asked.

    model: in evaluation mode, without gradients.
    config: the recipe's Config.
    exported: what the folder says about itself.
    preprocess: picture -> float32 [3, H, W]; safe to call from several threads.
    """

    model: nn.Module
    config: Any
    exported: ExportedConfig
    tokenizer: Tokenizer
    preprocess: Callable[[Image.Image], Tensor]
    device: torch.device


def load_exported(folder: str | Path, *, device: torch.device | str | None = None) -> LoadedModel:
    """Loads weights strictly, on `device` (a GPU where there is one).

    Raises:
        ValueError: no such folder, unknown recipe, weights that do not fit.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            f"model folder {str(folder)!r} does not exist; give the model/ folder of a finished run"
        )
    exported = read_exported_config(folder)
    config = model_config(exported)
    model = RECIPES[exported.recipe].build(config).model
    load_weights(model, folder)
    place = pick_device(device)
    return LoadedModel(
        model=model.eval().requires_grad_(False).to(place),
        config=config,
        exported=exported,
        tokenizer=read_exported_tokenizer(folder),
        preprocess=exported.transform,
        device=place,
    )


def load_model(folder: str | Path, *, device: torch.device | str | None = None) -> LoadedModel:
    """`load_exported`, or the same of a BLIP in transformers' files: BlipForConditionalGeneration,
    BlipForImageTextRetrieval, or both in one folder.

    Raises:
        ValueError: no such folder, another model of transformers, weights that do not fit.
    """
    if not Path(folder).is_dir() or describe(folder).ours:
        return load_exported(folder, device=device)
    with tempfile.TemporaryDirectory(prefix="pairmill-model-") as scratch:
        convert(folder, Path(scratch) / "model", Reading(source="transformers"))
        return load_exported(Path(scratch) / "model", device=device)


def trained_for(loaded: LoadedModel, objective: str) -> bool:
    """Whether a model was trained with `itm` or `lm`, as far as its configuration says, and its weights for
    it are not the random ones that stand where a converted checkpoint had none."""
    asked = objective in getattr(loaded.config, "objectives", (objective,))
    return asked and _NEEDS[objective] not in loaded.exported.training.get("fresh", ())


def pick_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, else a GPU, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
