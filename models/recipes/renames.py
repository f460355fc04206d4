"""Weight names of published checkpoints and ours, as data that reads both ways.

A key map lists pairs of templates `(published, ours)`. A template stands for a weight or for all weights
below a module: `{n}` is a number (the same in both), and what follows the template (`.weight`, `.bias`) is
kept. The longest template that fits wins. From the same pairs come the names for reading a published file and
for writing one.

    KeyMap(pairs=[("visual_encoder.blocks.{n}.attn.qkv", "vision.blocks.{n}.attention.qkv"), ...])
    map.ours("visual_encoder.blocks.3.attn.qkv.bias")        -> "vision.blocks.3.attention.qkv.bias"
    map.published("vision.blocks.3.attention.qkv.bias")      -> ["visual_encoder.blocks.3.attn.qkv.bias"]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Protocol

import torch
from torch import Tensor

Pairs = Sequence[tuple[str, str]]


class Change(Protocol):
    """How a tensor changes its shape on the way; both directions."""

    def to_ours(self, value: Tensor) -> Tensor: ...

    def to_published(self, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Transposed:
    """Stored to multiply from the right: [D, E] there, [E, D] here."""

    def to_ours(self, value: Tensor) -> Tensor:
        return value.T.contiguous()

    to_published = to_ours


@dataclass(frozen=True)
class LeadingAxes:
    """`axes` axes of length 1 in front here, none there."""

    axes: int

    def to_ours(self, value: Tensor) -> Tensor:
        return value.reshape(*[1] * self.axes, *value.shape)

    def to_published(self, value: Tensor) -> Tensor:
        return value.reshape(value.shape[self.axes :])


@dataclass(frozen=True)
class OneElement:
    """Shape [1] there, no axis here."""

    def to_ours(self, value: Tensor) -> Tensor:
        return value.reshape(())

    def to_published(self, value: Tensor) -> Tensor:
        return value.reshape(1)


@dataclass(frozen=True)
class Part:
    """One of `parts` matrices (or biases) there whose rows follow each other in one of ours: query, key and
    value of a fused attention. The names of all parts go to one of our names."""

    index: int
    parts: int = 3

    def to_ours(self, value: Tensor) -> Tensor:
        """The part as it is; `join` makes the whole."""
        return value

    def to_published(self, value: Tensor) -> Tensor:
        return value.chunk(self.parts)[self.index].contiguous()


def join(parts: Mapping[int, Tensor]) -> Tensor:
    """The whole of all parts, in the order of their index."""
    return torch.cat([parts[index] for index in sorted(parts)])


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """One published format of one system.

    Attributes:
        pairs: (published, ours) templates. Several published ones may share ours (a tied weight
            that is stored twice there): all are written, and must be equal when read.
        changes: published template -> how its tensors change.
        ignored: patterns of published names that carry nothing (constant buffers).
        fresh: patterns of our names that the format has no place for: they begin with random weights.
    """

    pairs: Pairs
    changes: Mapping[str, Change] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    fresh: Sequence[str] = ()

    def ours(self, published: str) -> str | None:
        """Our name; None for a name that carries nothing. Raises KeyError for an unknown one."""
        if any(re.fullmatch(pattern, published) for pattern in self.ignored):
            return None
        found = self._find(published, self._by_published)
        if found is None:
            raise KeyError(published)
        return found[1]

    def published(self, ours: str) -> list[str]:
        """All published names of one of our weights; empty where the format has no place for it."""
        return [
            name
            for template, target in self._by_ours
            if (name := _translate(ours, template, target)) is not None and self.ours(name) == ours
        ]

    def change(self, published: str) -> Change | None:
        """How the tensor of a published name changes."""
        found = self._find(published, self._by_published)
        return self.changes.get(found[0]) if found else None

    @cached_property
    def _by_published(self) -> list[tuple[str, str]]:
        return sorted(self.pairs, key=lambda pair: -len(pair[0]))

    @cached_property
    def _by_ours(self) -> list[tuple[str, str]]:
        return [(ours, published) for published, ours in self.pairs]

    @staticmethod
    def _find(name: str, table: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
        for template, target in table:
            new = _translate(name, template, target)
            if new is not None:
                return template, new
        return None


def within(published: str, ours: str, inside: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs for the modules inside a block: both prefixes before each of `inside`."""
    return [(f"{published}.{theirs}", f"{ours}.{mine}") for theirs, mine in inside.items()]


def _translate(name: str, template: str, target: str) -> str | None:
    """`name` under `target` if it is `template` or lies below it."""
    if not name.startswith(template.partition("{n}")[0]):
        return None  # most templates: a thousand names meet a hundred of them
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    number = match.groupdict().get("n") or ""
    return target.replace("{n}", number) + match["rest"]


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)") + r"(?P<rest>(\..+)?)")
