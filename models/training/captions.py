"""Which caption of a sample is trained on, where it has several.

Without a choice of fields: one of `caption_0`, `caption_1`, ... of its json, or else its `.txt`. With fields
(`captions: [caption, synthetic_caption]`): one of those that the json has; `txt` names the `.txt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.draws import Draws

TXT = "txt"


class NoCaptionError(ValueError):
    """A sample holds none of the captions that were asked for."""


@dataclass(frozen=True)
class CaptionRule:
    """fields: names in the json, or empty. weights: how often each is drawn, relative to those that a sample
    has; empty: equally. Without fields the weights are those of caption_0, caption_1, ..."""

    fields: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def member(self) -> str:
        """The member that a sample cannot do without."""
        return "json" if self.fields and TXT not in self.fields else "txt"

    def choose(self, text: str, meta: Mapping[str, Any], draws: Draws) -> str:
        """One caption; raises NoCaptionError."""
        fields = self.fields or _numbered(meta) or (TXT,)
        weights = self.weights if self.weights and fields != (TXT,) else (1.0,) * len(fields)
        found = [
            (caption, weight)
            for name, weight in zip(fields, weights, strict=False)
            if weight > 0 and (caption := text if name == TXT else meta.get(name))
            if isinstance(caption, str) and caption.strip()
        ]
        if not found:
            raise NoCaptionError(f"no caption in {', '.join(fields)}")
        if len(found) == 1:
            return found[0][0]
        left = draws.random() * sum(weight for _, weight in found)
        for caption, weight in found:
            left -= weight
            if left < 0:
                return caption
        return found[-1][0]


def _numbered(meta: Mapping[str, Any]) -> tuple[str, ...]:
    names: list[str] = []
    while (name := f"caption_{len(names)}") in meta:
        names.append(name)
    return tuple(names)
