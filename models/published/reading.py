"""A published file -> a model folder: `convert("ALBEF.pth", Path("albef"), source="albef", ...)`.

Everything is checked before anything is written. What the file lacks and the caller declared fresh begins
with the random weights of a new model, and config.json lists it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.exported import ExportedConfig, write_folder
from models.published import open_clip_folder, transformers_folder
from models.published.files import read_state_dict
from models.published.formats import FORMATS, Format
from models.published.placing import Skeleton, fit, fit_state, listed, place, skeleton
from models.published.sizes import config_of, plain
from models.published.tokenizers import tokenizer_for
from models.recipes import RECIPES
from models.recipes.renames import KeyMap
from models.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file is read.

    Attributes:
        source: Name in `FORMATS`.
        tokenizer: Tokenizer folder; None where the format brings its own.
        size: A recipe's size, or a file.
        overrides: Fields of the Config.
        ignore: Patterns of published names to leave out.
        fresh: Patterns of our names that may begin with random weights.
    """

    source: str
    tokenizer: str | None = None
    size: str | None = None
    overrides: Mapping[str, Any] | None = None
    ignore: Sequence[str] = ()
    fresh: Sequence[str] = ()


def convert(path: str | Path, out: Path, reading: Reading) -> list[str]:
    """Writes `out`; returns remarks on what was assumed, left out or begins fresh.

    Raises:
        ValueError: the file cannot be read or does not fit: names and shapes are listed, nothing is written.
    """
    if reading.source not in FORMATS:
        raise ValueError(f"format {reading.source!r} is unknown; there are {', '.join(FORMATS)}")
    known = FORMATS[reading.source]
    if reading.source == "transformers" and Path(path).is_dir():
        name = transformers_folder.recipe_of(Path(path))
        known = FORMATS["transformers-blip"] if name == "blip" else known
    path, facts = _located(Path(path), reading.source)
    published = read_state_dict(path)
    remarks: list[str] | None = None
    errors: list[tuple[bool, str]] = []
    for keys in known.variants:
        try:
            placed = place(known.prepare(published), keys, ignore=reading.ignore)
        except ValueError as error:
            errors.append((True, str(error)))
            continue
        try:
            remarks = _write(placed, out, reading, known, keys, facts, path)
            break
        except ValueError as error:
            errors.append((False, str(error)))
    if remarks is None:
        # the variant whose names are all known is what the file was meant to be
        named = [text for unknown, text in errors if not unknown] or [min((t for _, t in errors), key=len)]
        raise ValueError(f"{path} as {reading.source}: {named[0]}")
    return remarks


def _located(path: Path, source: str) -> tuple[Path, dict[str, Any]]:
    """The weights' file, and what a folder's configuration says of dimensions that shapes do not tell."""
    kinds = {"open_clip": open_clip_folder, "transformers": transformers_folder}
    if not path.is_dir():
        if source == "transformers":
            raise ValueError(f"{path}: give the folder, whose config.json says what shapes do not")
        return path, {}
    if source not in kinds:
        raise ValueError(f"{path} is a folder; give the checkpoint file in it")
    found = [path / name for name in kinds[source].FILES if (path / name).is_file()]
    if not found or not (path / kinds[source].CONFIG).is_file():
        raise ValueError(f"{path} holds no {kinds[source].CONFIG} with {' or '.join(kinds[source].FILES)}")
    return found[0], kinds[source].beside(path)


def _write(
    placed: dict[str, Tensor],
    out: Path,
    reading: Reading,
    known: Format,
    keys: KeyMap,
    facts: Mapping[str, Any],
    path: Path,
) -> list[str]:
    shapes = {name: value.shape for name, value in placed.items()}
    try:
        told = known.infer(shapes)
    except KeyError as error:
        raise ValueError(f"it has no {error}; is it another system, or part of one?") from error
    own = any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt")) if facts else False
    folder = reading.tokenizer or (str(path.parent) if own else None)
    tokenizer = tokenizer_for(known.recipe, folder, vocab_size=told.get("vocab_size", 0))
    config, remarks = config_of(
        known, shapes, tokenizer, size=reading.size, beside=facts, overrides=reading.overrides
    )
    wanted = skeleton(known.recipe, config)
    weights, begin = fit(placed, wanted, fresh=[*keys.fresh, *reading.fresh])
    if begin:
        remarks.append(f"not in the file, begins with random weights: {listed(begin)}")
        weights = with_fresh(weights, begin, wanted, recipe=known.recipe, config=config)
    state = fit_state(placed, wanted, weights, keys)
    remarks.append(
        f"{len(weights)} weights" + (f", state: {_groups(state)}" if state else ", no teacher, no queue")
    )
    write_model(
        out, known, wanted, weights, state, config=config, tokenizer=tokenizer,
        size=_size_name(reading, known),
        training={"converted_from": path.name, "format": reading.source, "fresh": begin},
    )  # fmt: skip
    return remarks


def _size_name(reading: Reading, known: Format) -> str:
    return reading.size if reading.size in RECIPES[known.recipe].SIZES and reading.size else "published"


def with_fresh(
    weights: dict[str, Tensor], begin: Sequence[str], wanted: Skeleton, *, recipe: str, config: Any
) -> dict[str, Tensor]:
    """The weights, and those of a new model (seed 0) where nothing was given, in the model's order."""
    torch.manual_seed(0)
    new = RECIPES[recipe].build(config).model.state_dict()
    whole = weights | {name: new[name].float() for name in begin}
    return {name: whole[name] for name in wanted.model if name in whole}


def write_model(
    out: Path,
    known: Format,
    wanted: Skeleton,
    weights: dict[str, Tensor],
    state: dict[str, Tensor],
    *,
    config: Any,
    tokenizer: Tokenizer,
    size: str,
    training: dict[str, Any],
) -> None:
    """The model folder, with the pictures' normalisation of the format."""
    exported = ExportedConfig(
        recipe=known.recipe, size=size, model=plain(config), image_mean=known.image_mean,
        image_std=known.image_std, max_text_tokens=config.max_text_length, training=training,
        clean_captions=known.clean_captions,
    )  # fmt: skip
    own = {name: value.contiguous().clone() for name, value in weights.items()}
    beside = {name: value.contiguous().clone() for name, value in state.items()}
    write_folder(out, weights=own, tied=wanted.tied, config=exported, tokenizer=tokenizer, state=beside)


def _groups(state: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({name.partition(".")[0] for name in state}))
