"""A model folder -> the names of the reference, of open_clip or of transformers.

    write("runs/albef/model", Path("albef.pth"), "albef")       a state dict that the reference loads strictly
    write("runs/clip/model", Path("clip"), "open_clip")         open_clip.create_model("local-dir:clip")
    write("runs/clip/model", Path("clip"), "transformers")      CLIPModel.from_pretrained("clip")

Teacher and queue are written where the folder has them, as one that was converted does.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.exported import (
    ExportedConfig,
    model_config,
    read_exported_config,
    read_exported_tokenizer,
    read_state,
    read_weights,
)
from models.published import open_clip_folder, transformers_folder
from models.published.files import write_state_dict
from models.published.formats import FORMATS
from models.published.placing import Skeleton, listed, publish, skeleton
from models.tokenizer import Tokenizer

FOLDERS = {"open_clip": open_clip_folder.write, "transformers": transformers_folder.write}
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
TARGETS = (
    *(name for name in FORMATS if FORMATS[name].writes),
    *(name for name in FOLDERS if name not in FORMATS),
)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A model folder, read."""

    exported: ExportedConfig
    config: Any
    weights: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    frame: Skeleton
    tokenizer: Tokenizer


def read_ours(folder: str | Path) -> Ours:
    """Raises ValueError when it is no model folder, or its weights are not those of its configuration."""
    exported = read_exported_config(folder)
    config = model_config(exported)
    frame, weights = skeleton(exported.recipe, config), read_weights(folder)
    if different := sorted(frame.model.keys() ^ weights.keys()):
        raise ValueError(f"{folder}: its weights are not those of its config.json: {listed(different)}")
    return Ours(
        exported=exported, config=config, weights=weights, state=read_state(folder), frame=frame,
        tokenizer=read_exported_tokenizer(folder),
    )  # fmt: skip


def write(folder: str | Path, out: Path, target: str) -> list[str]:
    """Writes `out`, a file or for `open_clip` and `transformers` a folder; returns remarks.

    Raises:
        ValueError: the format is of another system, or has no place for something in the model.
    """
    if target not in TARGETS:
        raise ValueError(f"format {target!r} is unknown; there are {', '.join(TARGETS)}")
    ours = read_ours(folder)
    if target in FOLDERS:
        return _write_folder(ours, out, target)
    known = FORMATS[target]
    if known.recipe != ours.exported.recipe:
        raise ValueError(f"{folder} is a {ours.exported.recipe}; the format {target} is of a {known.recipe}")
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out} must end in one of {', '.join(SUFFIXES)}")
    known.check(ours.config)
    keys = known.variants[0]
    written = publish(ours.weights, keys, ours.frame.kept)
    beside = {name: value for name, value in ours.state.items() if keys.published(name)}
    written |= publish(beside, keys, {name: name for name in beside})
    remarks = []
    if not beside and any(keys.published(name) for name in ours.frame.state):
        remarks.append("no teacher and no queue in the folder: none written")
    written |= known.constants(ours.config, written)
    write_state_dict(out, written, wrapper=known.wrapper)
    return [f"{len(written)} tensors", *remarks]


def _write_folder(ours: Ours, out: Path, target: str) -> list[str]:
    temp = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    try:
        remarks = FOLDERS[target](
            temp, exported=ours.exported, config=ours.config, weights=ours.weights, kept=ours.frame.kept,
            tokenizer=ours.tokenizer,
        )  # fmt: skip
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    shutil.rmtree(out, ignore_errors=True)
    temp.replace(out)
    return remarks
