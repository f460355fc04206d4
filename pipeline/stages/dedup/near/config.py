"""The options of method near. Light to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NearOptions:
    """What looks alike."""
