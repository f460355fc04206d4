"""What `verify` found in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong with one unit of a folder."""

    folder: str
    unit: int
    wrong: tuple[str, ...]


@dataclass(kw_only=True)
class Report:
    """What was found in one folder.

    Attributes:
        folder: where.
        stage: who wrote it; empty for a foreign folder.
        units: units that were checked.
        bytes: bytes that were read for it.
        damaged: units to redo.
        unplanned: parts that belong to no unit; a redo does not mend them.
        indexes: what is wrong with sizes.json and wids.json.
        notes: what is no damage and yet worth knowing.
        missing: units that are planned and not done.
    """

    folder: str
    stage: str = ""
    units: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    unplanned: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: int = 0

    @property
    def clean(self) -> bool:
        return not (self.damaged or self.unplanned or self.indexes)
