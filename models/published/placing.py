"""Published names and shapes -> ours, and back. Strict: what does not fit is named, and nothing is guessed.

`place` goes by names alone, so that a model's dimensions can be read from the placed shapes; `fit` then
checks everything against the model that those dimensions make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.recipes import RECIPES
from models.recipes.renames import KeyMap, Part, join

#: names that an error shows
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The names and shapes of a system, without memory for its weights.

    model, state: name -> shape, of the network and of what lies beside it (teacher, queue).
    kept: the tied name of each name of the network: itself, unless it is tied to an earlier one.
    """

    model: dict[str, torch.Size]
    state: dict[str, torch.Size]
    kept: dict[str, str]

    @property
    def tied(self) -> dict[str, str]:
        return {name: first for name, first in self.kept.items() if name != first}


def skeleton(recipe: str, config: Any) -> Skeleton:
    """What `config` would build."""
    with torch.device("meta"):
        system = RECIPES[recipe].build(config)
    network = system.model
    tensors = dict(network.named_parameters(remove_duplicate=False))
    tensors |= dict(network.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    names = network.state_dict()
    kept = {name: first.setdefault(id(tensors[name]), name) for name in names}
    return Skeleton(
        model={name: value.shape for name, value in names.items()},
        state={name: value.shape for name, value in system.state_dict().items()},
        kept=kept,
    )


def place(published: Mapping[str, Tensor], keys: KeyMap, *, ignore: Sequence[str] = ()) -> dict[str, Tensor]:
    """Our names -> tensors in our shapes, float32 where they are floats.

    Args:
        ignore: patterns of published names to leave out, beside those of the map.

    Raises:
        ValueError: names that the map does not know; a weight stored twice with different values; a fused
            matrix of which a part is missing.
    """
    placed: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    unknown, unequal = [], []
    for name, value in published.items():
        if any(re.fullmatch(pattern, name) for pattern in ignore):
            continue
        try:
            ours = keys.ours(name)
        except KeyError:
            unknown.append(name)
            continue
        if ours is None:
            continue
        change = keys.change(name)
        if isinstance(change, Part):
            parts.setdefault(ours, {})[change.index] = _widened(value)
            wanted = change.parts
            if len(parts[ours]) == wanted:
                placed[ours] = join(parts.pop(ours))
            continue
        value = _widened(value if change is None else change.to_ours(value))
        if ours in placed and not torch.equal(placed[ours], value):
            unequal.append(f"{source[ours]} and {name}")
        placed[ours], source[ours] = value, name
    if unknown:
        raise ValueError(f"unknown names: {listed(unknown)}; is it another system, or another format of it?")
    if unequal:
        raise ValueError(f"stored twice, but with different values: {listed(unequal)}")
    if parts:
        raise ValueError(f"of query, key and value some are missing: {listed(parts)}")
    return placed


def fit(
    placed: Mapping[str, Tensor], wanted: Skeleton, *, fresh: Sequence[str] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """The network's weights, each once, and the names that begin fresh (not among the weights).

    Raises:
        ValueError: missing and unknown names, shapes that differ, tied weights that are not equal: all.
    """
    weights = {name: value for name, value in placed.items() if name not in wanted.state}
    wrong = []
    if unknown := sorted(weights.keys() - wanted.model.keys()):
        wrong.append(f"no place for {listed(unknown)}")
    once: dict[str, Tensor] = {}
    for name in sorted(weights.keys() & wanted.model.keys()):
        kept = wanted.kept[name]
        if kept in once and not torch.equal(once[kept], weights[name]):
            wrong.append(f"{kept} and {name} are one weight here, but differ")
        once[kept] = weights[name]
    missing = sorted({kept for kept in wanted.kept.values() if kept not in once})
    begin = [name for name in missing if any(re.fullmatch(pattern, name) for pattern in fresh)]
    if left := sorted(set(missing) - set(begin)):
        wrong.append(f"missing {listed(left)}")
    if shapes := different_shapes(once, wanted.model):
        wrong.append(f"shapes: {listed(shapes)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    order = [name for name in wanted.model if name in once]
    return {name: once[name] for name in order}, begin


def fit_state(
    placed: Mapping[str, Tensor], wanted: Skeleton, weights: Mapping[str, Tensor], keys: KeyMap
) -> dict[str, Tensor]:
    """Teacher and queue where the file has them, else empty.

    The teacher's weights that the format has no place for are the student's.

    Raises:
        ValueError: a teacher or a queue of which a part is missing, or whose shapes differ.
    """
    found = {name: value for name, value in placed.items() if name in wanted.state}
    for group in sorted({name.partition(".")[0] for name in found}):
        for name in wanted.state:
            own = name.partition(".")[2]
            kept = wanted.kept.get(own, own)
            lacking = name.startswith(f"{group}.") and name not in found and not keys.published(name)
            if lacking and kept in weights:
                found[name] = weights[kept].clone()
    if "queue.image" in found:
        from models.objectives.queue import UNKNOWN_ID

        length = len(found["queue.image"])
        # their numbers of the pictures mean nothing here, and a saved queue is a full one
        found["queue.id"] = torch.full((length,), UNKNOWN_ID, dtype=torch.int64)
        found["queue.filled"] = torch.tensor(length)
    groups = {name.partition(".")[0] for name in found}
    expected = {name: shape for name, shape in wanted.state.items() if name.partition(".")[0] in groups}
    wrong = []
    if missing := sorted(expected.keys() - found.keys()):
        wrong.append(f"of the teacher or queue, missing {listed(missing)}")
    if shapes := different_shapes(found, expected):
        wrong.append(f"shapes: {listed(shapes)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def publish(ours: Mapping[str, Tensor], keys: KeyMap, kept: Mapping[str, str]) -> dict[str, Tensor]:
    """Published names -> tensors in their shapes; a weight that is stored twice there stands twice.

    Raises:
        ValueError: a weight of ours that the format has no place for, nor is known to lack.
    """
    written: dict[str, Tensor] = {}
    homeless = []
    for name, first in kept.items():
        names = keys.published(name)
        for published in names:
            change = keys.change(published)
            value = ours[first]
            written[published] = value if change is None else change.to_published(value)
        elsewhere = any(keys.published(other) for other, own in kept.items() if own == first)
        if not names and not elsewhere and not any(re.fullmatch(p, name) for p in keys.fresh):
            homeless.append(name)
    if homeless:
        raise ValueError(f"the format has no place for {listed(homeless)}")
    return written


def different_shapes(found: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> list[str]:
    """`name (found) instead of (wanted)` for each."""
    return [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name])}"
        for name in sorted(found.keys() & wanted.keys())
        if found[name].shape != wanted[name]
    ]


def listed(names: Iterable[str]) -> str:
    """The first few, and how many there are."""
    names = list(names)
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} ... ({len(names)} in all)"


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
