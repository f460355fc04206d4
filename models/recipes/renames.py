"""Translating the weight names of published checkpoints: tables of patterns, kept as data.

A table is a sequence of (pattern, replacement) pairs tried in order; the first that matches the whole
name gives the new one. The part of a name inside a block has a table of its own, which keeps both short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Rules = Sequence[tuple[str, str]]


def rename(name: str, rules: Rules, *, inside: Mapping[str, str]) -> str | None:
    """The new name, or None where no rule matches.

    A replacement may hold `{inside}`: the pattern's group `inside` looked up in the mapping, for the
    names within a block. Raises ValueError for a name within a block that the mapping lacks.
    """
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        new = match.expand(replacement.replace("{inside}", "\0"))
        if "\0" not in new:
            return new
        if match["inside"] not in inside:
            raise ValueError(f"{name}: no rule for {match['inside']!r} inside a block")
        return new.replace("\0", inside[match["inside"]])
    return None
