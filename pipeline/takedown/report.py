"""What a takedown did, or would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.takedown.lineage import Change

#: rows of a folder that are listed; a domain may have millions
LISTED = 10_000


@dataclass(frozen=True)
class Gone:
    """One row that goes: its shard's number, its key, and its URL where the folder knows it."""

    shard: int
    key: str
    url: str | None = None


@dataclass(kw_only=True)
class Outcome:
    """What became of a unit.

    gone: its rows that went now. rewritten: its files changed. relinked: its manifest did, as what it is made
    from changed. change: what it means for units made from this one, known there by `names` and `was`.
    lacking: columns that the search asks for and its parquet has not.
    """

    number: int
    gone: list[Gone] = field(default_factory=list)
    rewritten: bool = False
    relinked: bool = False
    names: tuple[str, ...] = ()
    was: tuple[str, ...] = ()
    change: Change | None = None
    lacking: tuple[str, ...] = ()


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
    shards: how many units it has. rows: how many rows went; gone: the first LISTED of them.
    rewritten: numbers of the units whose files changed; relinked: of those whose manifest alone did, because
        what they are made from changed.
    unfinished: units without a manifest whose files held such a row, and were removed.
    leftovers: temporary files of killed writes that are too young to be removed.
    lacking: how many units have no such column as the search asks for.
    """

    kind: str
    url: str
    shards: int = 0
    rows: int = 0
    gone: list[Gone] = field(default_factory=list)
    rewritten: list[int] = field(default_factory=list)
    relinked: list[int] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    leftovers: int = 0
    lacking: Counter[str] = field(default_factory=Counter)

    def note(self, outcome: Outcome) -> None:
        """Adds what became of one unit."""
        self.rows += len(outcome.gone)
        self.gone += outcome.gone[: max(0, LISTED - len(self.gone))]
        self.lacking.update(outcome.lacking)
        if outcome.rewritten:
            self.rewritten.append(outcome.number)
        elif outcome.relinked:
            self.relinked.append(outcome.number)

    def add(self, other: FolderReport) -> None:
        """Adds what happened when the folder was gone through once more."""
        self.rows += other.rows
        self.gone += other.gone
        for name in ("rewritten", "relinked", "unfinished"):
            setattr(self, name, sorted({*getattr(self, name), *getattr(other, name)}))
        self.leftovers = max(self.leftovers, other.leftovers)


@dataclass(kw_only=True)
class Report:
    """What happened in all folders, in the order in which they were worked through.

    busy: folders that a stage was run over at the same time, and who ran it. entries: how many were asked
    for; new_entries: how many no folder's tombstones had before.
    """

    folders: list[FolderReport] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    entries: int = 0
    new_entries: int = 0

    @property
    def gone(self) -> Iterator[tuple[FolderReport, Gone]]:
        return ((folder, row) for folder in self.folders for row in folder.gone)
