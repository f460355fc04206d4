"""A model folder -> the first weights of a training run: `pairmill train --init_from FOLDER`.

Strict, but for what is known to carry over: positions of pictures of another size are resized, rows of tokens
that were added to the vocabulary begin with the new model's random weights, and teacher and queue are taken
over where the folder has them and they fit; else the teacher is a copy of the student that was just loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.blocks.embedders import resize_positions
from models.blocks.relative_positions import resize_table
from models.exported import (
    ExportedConfig,
    load_strictly,
    model_config,
    read_exported_config,
    read_exported_tokenizer,
    read_state,
    read_weights,
)
from models.published.placing import different_shapes, listed
from models.recipes.base import System
from models.tokenizer import Tokenizer

#: fields of a Config that change what weights mean and that no shape shows
UNSEEN = ("heads", "vision_heads", "text_heads", "activation")
#: tables of text positions, by the end of their names, and what sets their length
TEXT_POSITIONS = ("text.embed.position", "text.embed.position.weight", "text_embed.position")


def start_from(system: System, folder: str | Path, tokenizer: Tokenizer) -> list[str]:
    """Loads weights, teacher and queue into a new system; returns remarks for the log.

    Raises:
        ValueError: another tokenizer, or dimensions that do not carry over; all are named.
    """
    exported = read_exported_config(folder)
    before, now = model_config(exported), system.config
    _check_tokens(folder, tokenizer)
    changed = differing(before, now)
    if unseen := [change for name, change in changed.items() if name in UNSEEN]:
        raise ValueError(f"init_from {folder}: {'; '.join(unseen)}: its weights would mean something else")
    expected = system.model.state_dict()
    weights = read_weights(folder)
    remarks = adapt(weights, expected, before=before, now=now)
    try:
        load_strictly(system.model, weights, source=Path(folder))
    except ValueError as error:
        shown = "; ".join(changed.values()) or "no field of the configuration differs"
        raise ValueError(f"init_from {error} ({shown})") from error
    system.reset_teacher()
    return remarks + _take_state(system, read_state(folder), before=before, now=now)


def check_pictures(exported: ExportedConfig, folder: str | Path, *, mean: Any, std: Any) -> None:
    """Raises ValueError when a run would normalise its pictures otherwise than the weights have learnt."""
    for name, wanted in (("image_mean", mean), ("image_std", std)):
        learnt = getattr(exported, name)
        if tuple(learnt) != tuple(wanted):
            raise ValueError(
                f"{name} {list(wanted)}, but the weights of init_from {folder} have learnt with "
                f"{list(learnt)}; pass --{name} '{list(learnt)}'"
            )


def differing(before: Any, now: Any) -> dict[str, str]:
    """Fields of two Configs that differ, as `name old -> new`."""
    names = [f.name for f in dataclasses.fields(now)]
    return {
        name: f"{name} {getattr(before, name)} -> {getattr(now, name)}"
        for name in names
        if getattr(before, name) != getattr(now, name)
    }


def adapt(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor], *, before: Any, now: Any, prefix: str = ""
) -> list[str]:
    """Resizes what has another size in the new model, in place; returns what was done.

    Raises:
        ValueError: the new model reads longer texts than the weights have positions for.
    """
    remarks = []
    for name in [name for name in weights if name in expected and name.startswith(prefix)]:
        value, target = weights[name], expected[name]
        if value.shape == target.shape:
            continue
        if name.endswith(TEXT_POSITIONS) and getattr(now, "positions", "") == "relative":
            weights[name] = target.detach().to("cpu", value.dtype)  # idle: the table has the positions
            continue
        if name.endswith(TEXT_POSITIONS):
            raise ValueError(
                f"{name} has {value.shape[0]} positions of text, the model {target.shape[0]}: they are not "
                f"stretched; leave max_text_length and text_positions as they are, and cut captions with "
                f"--max_text_tokens (at most {value.shape[0]})"
            )
        if name.endswith(".positions") and value.ndim == 3 and value.shape[2] == target.shape[2]:
            grid = round((target.shape[1] - 1) ** 0.5)
            weights[name] = resize_positions(value, grid)
            remarks.append(f"{name} resized from {value.shape[1] - 1} to {grid * grid} patches")
        elif name.endswith("positions.table") and value.shape[1] == target.shape[1]:
            weights[name] = _table(value, before, now)
            sizes = [f"{c.image_size} pixels and {c.text_window} tokens" for c in (before, now)]
            remarks.append(f"{name} resized from {sizes[0]} to {sizes[1]}")
        elif len(value) == before.vocab_size and len(target) == now.vocab_size > before.vocab_size:
            weights[name] = torch.cat([value, target[len(value) :].to("cpu", value.dtype)])
            remarks.append(f"{name}: {len(target) - len(value)} new rows for added tokens")
    return remarks


def _table(table_RC: Tensor, before: Any, now: Any) -> Tensor:
    grids = (before.image_size // before.patch_size, now.image_size // now.patch_size)
    return resize_table(table_RC, grid=grids, window=(before.text_window, now.text_window))


def _take_state(system: System, state: dict[str, Tensor], *, before: Any, now: Any) -> list[str]:
    """Teacher and queue, each if all of it fits."""
    if not state:
        return []
    whole = {name: value.detach().cpu() for name, value in system.state_dict().items()}
    remarks = adapt(state, whole, before=before, now=now, prefix="teacher.")
    for group in sorted({name.partition(".")[0] for name in state}):
        part = {name: value for name, value in state.items() if name.startswith(f"{group}.")}
        names = {name for name in whole if name.startswith(f"{group}.")}
        wrong = different_shapes(part, {name: whole[name].shape for name in names & part.keys()})
        if not names:
            remarks.append(f"the {group} of init_from is left out: this run keeps none")
        elif part.keys() != names or wrong:
            why = listed(wrong or sorted(part.keys() ^ names))
            fresh = "is a copy of the student" if group == "teacher" else "starts empty"
            remarks.append(f"the {group} of init_from does not fit ({why}): it {fresh}")
        else:
            whole |= part
            remarks.append(f"the {group} of init_from is used")
    system.load_state_dict(whole)
    return remarks


def _check_tokens(folder: str | Path, tokenizer: Tokenizer) -> None:
    """The run's vocabulary must be that of the weights, or begin with it."""
    before = read_exported_tokenizer(folder)
    old, new = (t.tokens(list(range(t.vocab_size))) for t in (before, tokenizer))
    if new[: len(old)] != old:
        place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(new))
        raise ValueError(
            f"the tokenizer of this run has another vocabulary than init_from {folder} ({len(new)} and "
            f"{len(old)} tokens, token {place} differs); leave --tokenizer away to take over its own"
        )
