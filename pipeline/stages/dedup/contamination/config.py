"""The options of method contamination. Light to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ContaminationOptions:
    """What looks like a benchmark's picture."""
