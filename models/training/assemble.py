"""What a run is put together from before its first step: the model's dimensions and the tokenizer."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.exported import model_config, read_exported_config, read_exported_tokenizer
from models.published.starting import check_pictures
from models.recipes import RECIPES
from models.tokenizer import Tokenizer, clean_all, load_tokenizer, train_wordpiece
from models.training.catalogue import TrainingData
from models.training.combinations import TEACHERS
from models.training.config import TrainConfig

#: captions that a trained tokenizer sees at most
TOKENIZER_CAPTIONS = 2_000_000


def resolve_model_config(config: TrainConfig, tokenizer: Tokenizer) -> Any:
    """The recipe's Config: a size, the overrides, the tokenizer's vocabulary; or that of `init_from`.

    Raises:
        ValueError: unknown recipe, size or dimension; names the valid ones.
    """
    if config.recipe not in RECIPES:
        raise ValueError(f"recipe {config.recipe!r} is unknown; there are {', '.join(sorted(RECIPES))}")
    recipe = RECIPES[config.recipe]
    if config.size not in recipe.SIZES:
        raise ValueError(f"{config.recipe} has no size {config.size!r}; there are {', '.join(recipe.SIZES)}")
    valid = {f.name for f in dataclasses.fields(recipe.Config)}
    unknown = sorted(config.model.keys() - valid)
    if unknown:
        raise ValueError(
            f"model: {config.recipe} has no {', '.join(unknown)}; valid: {', '.join(sorted(valid))}"
        )
    if config.init_from:
        start = read_exported_config(config.init_from)
        if start.recipe != config.recipe:
            raise ValueError(
                f"init_from {config.init_from} is a {start.recipe}, the recipe is {config.recipe}"
            )
        check_pictures(start, config.init_from, mean=config.image_mean, std=config.image_std)
        base = model_config(start)
    else:
        base = recipe.SIZES[config.size]
    # one construction: values that only fit together (a vocabulary and its special ids) change together
    changes = {name: tuple(v) if isinstance(v, list) else v for name, v in config.model.items()}
    if config.recompute:
        changes["gradient_checkpointing"] = True
    fitted = tokenizer.fit(replace(base, **changes))
    check_model(config, fitted)
    return fitted


def check_model(config: TrainConfig, model: Any) -> None:
    """Refuses options that do not go with the model's dimensions.

    Raises:
        ValueError: names the option and what would work.
    """
    longest = model.max_text_length
    if config.max_text_tokens > longest:
        raise ValueError(
            f"max_text_tokens {config.max_text_tokens} exceeds the {longest} positions of the model; "
            "lower it, or raise the model's max_text_length"
        )
    # drop-path of vlmo is drawn by sample, the same both times
    random = [name for name in ("dropout",) if getattr(model, name, 0)]
    if config.contrast == "step" and config.recipe not in TEACHERS and random:
        fix = f"--model '{{\"{random[0]}\": 0}}'"
        raise ValueError(
            f"contrast step computes features twice, which must be the same, but {config.recipe} has "
            f"{random[0]} {getattr(model, random[0])}; set it to 0 ({fix}), or use contrast micro"
        )


def make_tokenizer(config: TrainConfig, data: TrainingData, folder: Path) -> None:
    """Trains or copies the tokenizer into the run folder; appears whole or not at all."""
    temp = folder.with_name(f".{folder.name}.tmp")
    temp.mkdir(parents=True, exist_ok=True)
    if config.tokenizer == "train" and config.init_from:
        read_exported_tokenizer(config.init_from).save(temp)  # a new one would not fit the embedding
    elif config.tokenizer == "train":
        train_wordpiece(
            clean_all(data.captions(TOKENIZER_CAPTIONS), config.clean_captions),
            vocab_size=config.vocab_size,
            folder=temp,
        )
    else:
        load_tokenizer(config.tokenizer).save(temp)
    temp.replace(folder)


def versions() -> dict[str, str]:
    packages = ("torch", "deepspeed", "accelerate", "transformers")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": sys.version.split()[0], **found}
