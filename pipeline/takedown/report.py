"""What a takedown did, or would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gone:
    """One row that goes: its shard's number, its key, and its URL where the folder knows it."""

    shard: int
    key: str
    url: str | None = None


@dataclass(frozen=True)
class Failure:
    """A unit that could not be searched or rewritten, and why; or a whole folder (`shard` is None)."""

    folder: str
    shard: int | None
    message: str


@dataclass(kw_only=True)
class FolderReport:
    """What happened in one folder.

    kind: `candidates`, `images`, `columns` or `shards`.
    shards: how many units it has; searched: how many were looked at.
    rewritten: numbers of the units whose files changed; relinked: of those whose manifest alone did, because
        what they are made from changed.
    unfinished: units without a manifest whose files held such a row, and were removed.
    leftovers: temporary files of killed writes that are too young to be removed.
    """

    kind: str
    url: str
    shards: int = 0
    searched: int = 0
    gone: list[Gone] = field(default_factory=list)
    rewritten: list[int] = field(default_factory=list)
    relinked: list[int] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    leftovers: int = 0


@dataclass(kw_only=True)
class Report:
    """What happened in all folders, in the order in which they were worked through."""

    folders: list[FolderReport] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    entries: int = 0
    new_entries: int = 0

    @property
    def gone(self) -> Iterator[tuple[FolderReport, Gone]]:
        return ((folder, row) for folder in self.folders for row in folder.gone)
