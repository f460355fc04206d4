"""The model folder that training writes and everything else reads.

    model.safetensors   the weights (float32), each once: tied weights are listed in config.json
    config.json         recipe, size, every dimension, picture normalisation, text length, training step
    tokenizer/          a tokenizer folder
    state.safetensors   teacher and queue of a published checkpoint, where it has them

Nothing in it is a pickle.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.images import ImageTransform
from models.recipes import RECIPES
from models.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer"
STATE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportedConfig:
    """What config.json says. `model` holds the recipe's whole Config as JSON values; `clean_captions` is the
    words at which texts are cleaned and cut (0: they are left alone)."""

    recipe: str
    size: str
    model: dict[str, Any]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    max_text_tokens: int
    training: dict[str, Any]
    clean_captions: int = 0

    @property
    def transform(self) -> ImageTransform:
        """How a picture is prepared outside training."""
        return ImageTransform(size=self.model["image_size"], mean=self.image_mean, std=self.image_std)


def write_exported(folder: Path, *, model: nn.Module, config: ExportedConfig, tokenizer: Tokenizer) -> None:
    """Writes the folder atomically; an older one is replaced."""
    weights, tied = unique_weights(model)
    write_folder(folder, weights=weights, tied=tied, config=config, tokenizer=tokenizer)


def write_folder(
    folder: Path,
    *,
    weights: dict[str, Tensor],
    tied: dict[str, str],
    config: ExportedConfig,
    tokenizer: Tokenizer,
    state: dict[str, Tensor] | None = None,
) -> None:
    """The same from tensors; `tied` names what is left out of `weights`, `state` is the system's beside the
    model."""
    temp = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    save_file(weights, temp / WEIGHTS)
    if state:
        save_file(state, temp / STATE)
    facts = {"format": FORMAT, **dataclasses.asdict(config), "tied": tied}
    (temp / CONFIG).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    tokenizer.save(temp / TOKENIZER)
    for path in temp.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temp.replace(folder)


def unique_weights(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights as float32 on the CPU (integers stay), and what was left out as tied: name -> kept name."""
    weights: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride())
        if value.numel() and place in seen:
            tied[name] = seen[place]
            continue
        seen[place] = name
        kept = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
        weights[name] = kept.clone(memory_format=torch.contiguous_format)
    return weights, tied


def read_exported_config(folder: str | Path) -> ExportedConfig:
    """Raises ValueError when `folder` is no model folder, or of a newer format or an unknown recipe."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{folder} is no exported model: it has no {CONFIG}; give the model/ folder of a run"
        )
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {facts.get('format')!r}, this version reads {FORMAT}; train or export anew"
        )
    if facts["recipe"] not in RECIPES:
        raise ValueError(
            f"{path}: unknown recipe {facts['recipe']!r}; there are {', '.join(sorted(RECIPES))}"
        )
    for name in ("image_mean", "image_std"):
        facts[name] = tuple(facts[name])
    known = {f.name for f in dataclasses.fields(ExportedConfig)}
    return ExportedConfig(**{k: v for k, v in facts.items() if k in known})


def model_config(exported: ExportedConfig) -> Any:
    """The recipe's Config that config.json describes.

    Raises:
        ValueError: dimensions that this version of the recipe does not have.
    """
    kind = RECIPES[exported.recipe].Config
    valid = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(exported.model.keys() - valid)
    if unknown:
        raise ValueError(f"{exported.recipe} has no {', '.join(unknown)}; the model is of another version")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in exported.model.items()})


def read_exported_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer, which cleans texts as the training did."""
    return load_tokenizer(Path(folder) / TOKENIZER, clean_words=read_exported_config(folder).clean_captions)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """All weights by name, the tied ones too; raises ValueError for a missing or damaged file."""
    path = Path(folder) / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); export the model anew") from error
    tied = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")).get("tied", {})
    return weights | {name: weights[kept] for name, kept in tied.items()}


def read_state(folder: str | Path) -> dict[str, Tensor]:
    """Teacher and queue; empty where the folder has none. Raises ValueError for a damaged file."""
    path = Path(folder) / STATE
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); convert the checkpoint anew") from error


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Loads strictly, in place, in the model's own precision.

    Raises:
        ValueError: missing or damaged file; names or shapes differ from the model's.
    """
    load_strictly(model, read_weights(folder), source=Path(folder) / WEIGHTS)


def load_strictly(model: nn.Module, weights: dict[str, Tensor], *, source: Path) -> None:
    """Raises ValueError when names or shapes differ from the model's."""
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = [
        f"{n}: {tuple(weights[n].shape)} in the file, {tuple(expected[n].shape)} in the model"
        for n in sorted(expected.keys() & weights.keys())
        if weights[n].shape != expected[n].shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"{source} does not fit the model: missing {missing[:3]} ({len(missing)}), unknown {unknown[:3]} "
            f"({len(unknown)}), shapes {shapes[:3]} ({len(shapes)}); recipe, size and overrides must agree"
        )
    model.load_state_dict(weights, strict=True)
