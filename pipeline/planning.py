"""Decides what a run has to do: which units are done, which are not, which must not be touched."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pipeline import commit, manifest, memory, storage
from pipeline.errors import ConfigError
from pipeline.manifest import Done
from pipeline.settings import differences, semantic_config
from pipeline.shards.format import shard_name
from pipeline.stage import Stage, Unit, digester


@dataclass(kw_only=True)
class Plan:
    """units: all of them; todo: those of this run; stale: unit number -> manifests that a redo replaces."""

    units: list[Unit]
    todo: list[Unit]
    stale: dict[int, list[str]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return len(self.units) - len(self.todo)


@memory.collector_paused()
def make_plan(
    stage: Stage,
    output: str,
    *,
    overwrite: bool = False,
    limit: int | None = None,
    task: tuple[int, int] | None = None,
    redo: Collection[int] | None = None,
    look: bool = False,
) -> Plan:
    """Plans a stage over its output folder.

    Args:
        overwrite: redo units whose manifest was made from another config or other inputs.
        limit: only the first units, for a taste.
        task: (i, n): only the units of number = i modulo n, for job arrays.
        redo: only the units with these numbers, and these even when they are done.
        look: write nothing: what a crash has interrupted stays so, and what is planned is not noted.

    Raises:
        ConfigError: a committed unit was made differently and `overwrite` is off.
    """
    if not look:
        commit.roll_forward(output)
    planned = manifest.read_units(output)
    units = stage.plan(planned)
    if not look:
        manifest.write_units(output, units, before=planned)
    standing = defaultdict(list)
    for done in manifest.list_manifests(output):
        standing[done.number].append(done)
    names = set(storage.list_names(output))
    chosen = units[:limit] if limit is not None else units
    if task is not None:
        chosen = [u for u in chosen if u.number % task[1] == task[0]]
    if redo is not None:
        chosen = [u for u in chosen if u.number in redo]
    plan = Plan(units=chosen, todo=[])
    digest_of = digester(stage)
    for unit in chosen:
        digest, before = digest_of(unit), standing.get(unit.number, [])
        stem = f"{stage.prefix}{shard_name(unit.number)}"
        same = any(done.digest == digest for done in before)
        if same and redo is None and all(stem + suffix in names for suffix in stage.suffixes):
            continue
        if before and not same and not overwrite:
            _refuse_unless_allowed(stage, unit, before[-1], output)
        plan.todo.append(unit)
        plan.stale[unit.number] = [done.url for done in before]
    return plan


def _refuse_unless_allowed(stage: Stage, unit: Unit, done: Done, output: str) -> None:
    record = manifest.read(done)
    reasons = describe_difference(stage, unit, record)
    if stage.redo_on_new_inputs and all(r.startswith(("inputs", "source")) for r in reasons):
        return
    raise ConfigError(
        f"{output}: unit {shard_name(unit.number)} of stage {stage.name} was made differently: "
        + "; ".join(reasons)
        + ". Pass --overwrite to redo such units, or choose another --output"
    )


def describe_difference(stage: Stage, unit: Unit, record: dict[str, Any]) -> list[str]:
    """What differs between a manifest and what the unit would be made from now, one phrase each."""
    found = []
    if record["stage"] != stage.name:
        found.append(f"it is output of stage {record['stage']}")
    if record["version"] != stage.version:
        found.append(f"stage version {record['version']} -> {stage.version}")
    found += differences(record["config"], semantic_config(stage.config))
    if record["source"] != _plain(dict(unit.source)):
        found.append(f"source {json.dumps(record['source'])} -> {json.dumps(unit.source)}")
    before = [i["fingerprint"] for i in record["inputs"]]
    now = [i.fingerprint for i in unit.inputs]
    if before != now:
        changed = [i["name"] for i in record["inputs"] if i["fingerprint"] not in now]
        found.append(f"inputs changed ({', '.join(changed[:3]) or 'added or removed'})")
    return found or ["the digest alone differs"]


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))
