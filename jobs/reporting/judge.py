"""Pack's judgement for the report: the same code that packed says what was kept, and why the rest was not.

Pack counts whatever its predicate refused under one reason. To a person the parts of a predicate are
different reasons (`clip_score >= 0.28`, `duplicate_of IS NULL`), so rows that the predicate refused are asked
again, part by part: the first part that is not true names the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from jobs.reporting.expressions import conjuncts
from pipeline import uids
from pipeline.columns import SUCCESS
from pipeline.predicate import PREDICATE, Predicate
from pipeline.selection import NOT_IN_UIDS, Selection

NULL = "_null"
#: between the reason that pack counts and the part of the predicate that failed
BECAUSE = ": "


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The judgement of a pack run, or of none: without a rule every picture is kept.

    settings: pack's semantic configuration, from its manifests.
    resolved: its resolved configuration, which names the list of uids, if any.
    """

    settings: Mapping[str, Any]
    resolved: str = ""

    @cached_property
    def selection(self) -> Selection:
        """Raises ConfigError when the rule is none that this installation can apply, or its list is gone."""
        subset = _uids(self.resolved)
        return Selection(
            where=self.settings.get("where"),
            preset=self.settings.get("preset"),
            uids=uids.load(subset) if subset else None,
        )

    @cached_property
    def _parts(self) -> list[Predicate]:
        where = self.settings.get("where")
        return [Predicate(text) for text in conjuncts(where)] if where else []

    @property
    def conditions(self) -> list[str]:
        """The rule as SQL expressions that must all be true."""
        return [rule.text for _, rule in self.selection.rules()]

    @property
    def columns(self) -> set[str]:
        """What it reads, in lower case."""
        named = {name for _, rule in self.selection.rules() for name in rule.columns}
        return named | ({"uid"} if self.selection.uids is not None else set())

    @property
    def reasons(self) -> set[str]:
        """The drop reasons that pack counts by this rule."""
        named = {name for name, _ in self.selection.rules()}
        return named | {name + NULL for name in named} | {NOT_IN_UIDS}

    def explain(self, table: pa.Table) -> pa.Array:
        """The drop reason of each row of a joined table, null where it is kept."""
        reasons = self.selection.reasons(table)
        return name_parts(table, reasons, self._parts) if len(self._parts) > 1 else reasons

    def basis(self, table: pa.Table) -> np.ndarray:
        """The rows that the rule is asked of: they have a picture, and are in the list of uids if any."""
        found = np.asarray(pc.fill_null(pc.equal(table["status"], SUCCESS), False))
        if self.selection.uids is not None:
            found &= np.asarray(self.selection.uids.contains(table["uid"]))
        return found


def name_parts(table: pa.Table, reasons: pa.Array, parts: list[Predicate]) -> pa.Array:
    """`predicate` becomes `predicate: PART`, for the first part of the predicate that is not true."""
    asked = pc.indices_nonzero(
        pc.fill_null(pc.is_in(reasons, pa.array([PREDICATE, PREDICATE + NULL])), False)
    )
    if not len(asked):
        return reasons
    rows, given = table.take(asked), reasons.take(asked)
    refused = pc.equal(given, PREDICATE)
    found = pa.nulls(len(rows), pa.string())
    for part in parts:
        value = part.evaluate(rows)
        # a false part makes the whole false whatever is null beside it
        guilty = pc.if_else(refused, pc.fill_null(pc.invert(value), False), pc.is_null(value))
        name = pc.binary_join_element_wise(given, part.text, BECAUSE)
        found = pc.coalesce(found, pc.if_else(guilty, name, pa.scalar(None, pa.string())))
    names = reasons.to_pylist()
    for at, name in zip(asked.to_pylist(), found.to_pylist(), strict=True):
        names[at] = name or names[at]
    return pa.array(names, pa.string())


def counted_reason(verdict: str) -> str:
    """The reason that pack's manifest counts a verdict under."""
    return verdict.partition(BECAUSE)[0]


def rule_text(settings: Mapping[str, Any]) -> str:
    """All that pack asks of a row, as one SQL expression; empty where it keeps every picture."""
    selection = Selection(where=settings.get("where"), preset=settings.get("preset"))
    return " AND ".join(" ".join(rule.text.split()) for _, rule in selection.rules())


def _uids(resolved: str) -> str | None:
    try:
        value = yaml.safe_load(resolved) if resolved else None
    except yaml.YAMLError:
        return None
    found = value.get("uids") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
