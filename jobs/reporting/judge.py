"""Pack's judgement for the report: the same code that packed says what was kept, and why the rest was not.

Pack counts whatever its predicate refused under one reason. To a person the parts of a predicate are
different reasons (`clip_score >= 0.28`, `duplicate_of IS NULL`), so rows that the predicate refused are asked
again, part by part: the first part that is not true names the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from jobs.reporting.rows import Explain
from pipeline import uids
from pipeline.predicate import PREDICATE, Predicate
from pipeline.selection import Selection

NULL = "_null"
#: between the reason that pack counts and the part of the predicate that failed
BECAUSE = ": "


def explainer(settings: Mapping[str, Any], resolved: str = "") -> Explain:
    """The judgement of a pack run: joined table -> drop reason per row, null where kept.

    Args:
        settings: pack's semantic configuration, from its manifests.
        resolved: its resolved configuration, which names the list of uids, if any.

    Raises:
        ConfigError: the rule is none that this installation can apply, or its list of uids is gone.
    """
    subset = _uids(resolved)
    selection = Selection(
        where=settings.get("where"),
        preset=settings.get("preset"),
        uids=uids.load(subset) if subset else None,
    )
    parts = [Predicate(text) for text in conjuncts(settings["where"])] if settings.get("where") else []

    def explain(table: pa.Table) -> pa.Array:
        reasons = selection.reasons(table)
        return name_parts(table, reasons, parts) if len(parts) > 1 else reasons

    return explain


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


def conjuncts(where: str) -> list[str]:
    """The parts of a predicate that AND joins at its top, as DuckDB reads it and writes it again."""
    with duckdb.connect(":memory:", config={"enable_external_access": "false", "threads": "1"}) as connection:

        def ask(query: str, value: str) -> str:
            row = connection.execute(query, [value]).fetchone()
            return str(row[0]) if row else ""

        tree = json.loads(ask("SELECT json_serialize_sql(?)", f"SELECT (\n{where}\n)"))
        found = []
        for node in _flattened(tree["statements"][0]["node"]["select_list"][0]):
            tree["statements"][0]["node"]["select_list"] = [{**node, "alias": ""}]
            text = ask("SELECT json_deserialize_sql(?::JSON)", json.dumps(tree))
            found.append(_unwrapped(text.removeprefix("SELECT ").strip()))
    return found


def _flattened(node: dict[str, Any]) -> list[dict[str, Any]]:
    if node.get("type") != "CONJUNCTION_AND":
        return [node]
    return [part for child in node["children"] for part in _flattened(child)]


def _unwrapped(text: str) -> str:
    """Without the brackets around the whole expression, where there are no others that could be torn."""
    inner = text[1:-1]
    return inner if text.startswith("(") and text.endswith(")") and not set("()'\"") & set(inner) else text


def _uids(resolved: str) -> str | None:
    try:
        value = yaml.safe_load(resolved) if resolved else None
    except yaml.YAMLError:
        return None
    found = value.get("uids") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
