"""The stage contract: what a step of the chain is, without Ray and without file names.

A stage is a plain class with a config dataclass. It plans units (one shard, one archive, a group of
shards) and turns one unit into one `Output`: named parts and a count per drop reason. The runner
(`pipeline.runner`) decides where and how often it runs and commits what it returns.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.settings import semantic_config

#: what a stage may hand over as one part: a table (written as parquet), a finished local file, bytes, JSON
Payload: TypeAlias = "pa.Table | Path | bytes | dict[str, Any]"


#: json.dumps(..., sort_keys=True), which would make an encoder each time
_SORTED = json.JSONEncoder(sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a unit: where it is, and a mark of its content (not of its place)."""

    url: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of work: what it is made of, and the number that names its output.

    number: names the output files (8 digits).
    source: JSON values that say which piece of the inputs this is, without absolute locations, such as
        `{"file": "part-00000000.parquet", "rows": [0, 10000]}`; part of the digest.
    inputs: what is read, with fingerprints; the fingerprints are part of the digest, the places are not.
    """

    number: int
    source: Mapping[str, Any]
    inputs: tuple[Input, ...]

    def digest(self, stage: Stage) -> str:
        """16 hex digits over (stage, version, semantic config, source, content of the inputs)."""
        return digest_of(
            stage=stage.name,
            version=stage.version,
            config=semantic_config(stage.config),
            source=self.source,
            fingerprints=[i.fingerprint for i in self.inputs],
        )


def digest_of(
    *,
    stage: str,
    version: int,
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    fingerprints: Sequence[str],
) -> str:
    """The digest of a unit, from what its manifest says it was made of: 16 hex digits."""
    payload = {
        "stage": stage,
        "version": version,
        "config": config,
        "source": source,
        "inputs": list(fingerprints),
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker of a stage occupies."""

    cpus: float = 1
    gpus: float = 0


class Counts:
    """How many went in, came out, and were dropped for which reason: in = out + sum of drops."""

    def __init__(self, taken: int = 0, kept: int = 0, dropped: Mapping[str, int] | None = None) -> None:
        self.taken = taken
        self.kept = kept
        self.dropped: Counter[str] = Counter(dropped or {})

    def keep(self, n: int = 1) -> None:
        self.taken += n
        self.kept += n

    def drop(self, reason: str, n: int = 1) -> None:
        self.taken += n
        self.dropped[reason] += n

    def add(self, other: Counts) -> None:
        self.taken += other.taken
        self.kept += other.kept
        self.dropped.update(other.dropped)

    def check(self) -> None:
        """Raises AssertionError when something vanished without a reason."""
        if self.taken != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"in {self.taken} != out {self.kept} + dropped {dict(self.dropped)}")

    def to_json(self) -> dict[str, Any]:
        dropped = {k: v for k, v in sorted(self.dropped.items()) if v}
        return {"in": self.taken, "out": self.kept, "dropped": dropped}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        return cls(value["in"], value["out"], value["dropped"])


def _nothing() -> None:
    pass


@dataclass(kw_only=True)
class Output:
    """What one unit became.

    parts: suffix -> payload; the suffixes are those the stage declares, such as `.tar` or `.parquet`.
    counts: what happened to each row.
    volatile: suffixes whose bytes may differ from run to run (timings); they have no part in the content
        mark that later stages depend on.
    notes: small JSON facts for status and report (bytes fetched, models used).
    before_manifest: called by the commit when nothing but the unit's manifest is left to write: what must
        stand before the unit counts as done (the columns of a fused crawl).
    """

    parts: dict[str, Payload]
    counts: Counts
    volatile: frozenset[str] = frozenset()
    notes: dict[str, Any] = field(default_factory=dict)
    before_manifest: Callable[[], None] = _nothing


class Stage(ABC):
    """Base of all stages. Building one is cheap: models and connections are opened in `start`.

    Attributes:
        name: the stage's name in manifests, logs and on the command line.
        version: raise it when the code starts to give other output for the same config and input.
        suffixes: the parts that every unit writes.
        prefix: put before the number in file names (`part-` for candidates).
        redo_on_new_inputs: a global stage whose units see all inputs: when only its inputs changed (new
            shards were added) it is redone without complaint, where others refuse.

    They are set on the class, or by `__init__` where they follow from the options.
    """

    name: str
    version: int = 1
    suffixes: tuple[str, ...] = (".parquet",)
    prefix: str = ""
    redo_on_new_inputs: bool = False

    config: Any

    @property
    def resources(self) -> Resources:
        return Resources()

    @abstractmethod
    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        """All units, in order of number. `planned` are the units of earlier runs (source and number only):
        a stage that numbers its own units must keep their numbers and append new ones.

        Raises:
            ConfigError: an input is missing or is not what the stage can read.
        """

    def start(self) -> None:  # noqa: B027 - most stages hold nothing
        """Called once in each worker before its first unit."""

    def close(self) -> None:  # noqa: B027
        """Called once in each worker after its last unit."""

    @abstractmethod
    def run(self, unit: Unit, scratch: Path) -> Output:
        """Turns one unit into its output. `scratch` is an empty local folder for parts built as files.

        Raises:
            InputError: the unit cannot be read.
        """

    def finish(self, output: str) -> None:  # noqa: B027
        """Called on the driver when all units stand: indexes over the whole output folder."""


def digester(stage: Stage) -> Callable[[Unit], str]:
    """`Unit.digest` for many units of one stage: what they share is written out only once."""
    write = _SORTED.encode
    config = write(semantic_config(stage.config))
    shared = {"stage": stage.name, "version": stage.version}

    def digest(unit: Unit) -> str:
        # one JSON object with sorted keys, of which `config` is the first
        own = {"inputs": [i.fingerprint for i in unit.inputs], "source": unit.source, **shared}
        text = f'{{"config": {config}, {write(own)[1:]}'
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    return digest


Piece: TypeAlias = "tuple[Mapping[str, Any], tuple[Input, ...]]"


def append_units(planned: Sequence[Unit], pieces: Sequence[Piece]) -> list[Unit]:
    """Numbers pieces: those planned before keep their number, new ones follow in the order given."""
    known = {_SORTED.encode(u.source): u.number for u in planned}
    following = max(known.values(), default=-1) + 1
    units = []
    for source, inputs in pieces:
        mark = _SORTED.encode(source)
        if mark not in known:
            known[mark] = following
            following += 1
        units.append(Unit(number=known[mark], source=source, inputs=inputs))
    return sorted(units, key=lambda u: u.number)
