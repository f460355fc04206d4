"""Which texts of a sample are packed: the web's caption alone, so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Which texts of a sample are packed.

    Attributes:
        policy: `web`, the caption that came with the picture; null takes the preset's, else `web`.
    """

    policy: str | None = None


@dataclass(frozen=True)
class Chosen:
    """reasons: why a row has no text worth packing; null where it has one. texts: those of each row, the
    first choice first; never empty where the reason is null."""

    reasons: pa.StringArray
    texts: Sequence[Sequence[str]]


class CaptionPolicy:
    """Chooses the texts of rows; the same rows and options give the same texts, whatever shard they lie in."""

    def __init__(self, options: CaptionOptions, *, seed: int) -> None:
        """Raises ConfigError for options that make no sense."""
        self.options, self.seed = options, seed

    def check(self, schema: pa.Schema) -> None:
        """Raises ConfigError when the joined table lacks a column that the policy reads."""

    def choose(self, table: pa.Table) -> Chosen:
        """For each row of a joined table (`pipeline.columns`)."""
        return Chosen(
            pa.nulls(len(table), pa.string()), [[text or ""] for text in table["caption"].to_pylist()]
        )
