"""Loads the model folder of a finished run: `load_exported("runs/albef/model")`."""

from __future__ import annotations

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
from models.recipes import RECIPES
from models.tokenizer import Tokenizer


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


def pick_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, else a GPU, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
