"""What a takedown means for units that were made from others.

A unit's manifest names its inputs by file name and content mark. When a takedown changes what a unit became,
the units made from it are not made anew: rows of the same keys leave them, and their manifests get the new
mark in the place of the old one. The marks that a unit had before its takedowns stay in its manifest
(`notes.takedown.was`), so that dependents which were not at hand, or which a crash left as they were, are
found and mended by any later takedown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.manifest import Done


@dataclass(frozen=True, kw_only=True)
class Change:
    """A unit that lost rows: what it became (content mark), and the keys that are gone from it.

    positional: the keys are those of candidates, whose rows stay in their place wherever they are.
    """

    mark: str
    keys: frozenset[str]
    positional: bool = False


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What the changes mean for one unit: its inputs as they are now, and the keys to be gone from it."""

    inputs: list[dict[str, Any]]
    keys: frozenset[str]
    positional: bool
    changed: bool


class Lineage:
    """The changes of a takedown by the file names and former marks of the units that changed."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, str], Change] = {}
        self._numbers: set[int] = set()
        self._names: set[str] = set()

    @property
    def keys(self) -> frozenset[str]:
        """All keys that are gone."""
        return frozenset().union(*(change.keys for change in self._changes.values()))

    def add(self, number: int, names: Iterable[str], was: Sequence[str], change: Change) -> None:
        """Notes a change: `was` are all marks that the unit had before, or has still."""
        for name in names:
            self._names.add(name)
            for mark in was:
                self._changes[name, mark] = change
        self._numbers.add(number)

    def may_concern(self, number: int, source: Mapping[str, Any]) -> bool:
        """Whether a unit may be made from one that changed, as its place in the plan tells: units follow the
        number of their input, or name their shards or their file."""
        if "shards" in source:
            return not self._numbers.isdisjoint(source["shards"])
        if "file" in source:
            return source["file"] in self._names
        return number in self._numbers

    def follow(self, inputs: Sequence[Mapping[str, Any]]) -> Followed:
        """Looks for changes of a manifest's inputs."""
        now, found = [], []
        for item in inputs:
            change = self._changes.get((item["name"], item["fingerprint"]))
            now.append({**item, "fingerprint": change.mark if change else item["fingerprint"]})
            if change is not None:
                found.append(change)
        return Followed(
            inputs=now,
            keys=frozenset().union(*(c.keys for c in found)),
            positional=any(c.positional for c in found),
            changed=any(a["fingerprint"] != b["fingerprint"] for a, b in zip(now, inputs, strict=True)),
        )


def former_marks(record: Mapping[str, Any], standing: Sequence[Done]) -> list[str]:
    """The marks that a unit had before, its present ones last.

    Only as long as it is what a takedown left: a retry or a redo may have put rows in, which units made from
    what it was before do not know.
    """
    takedown = record["notes"].get("takedown", {})
    present = [done.content for done in standing]
    return [*takedown["was"], *present] if takedown.get("now") in present else present
