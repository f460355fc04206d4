"""The stage contract: semantic config, digests, counts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from pipeline.settings import operational, semantic_config
from pipeline.stage import Counts, Input, Unit, append_units
from tests.pipeline.toy_stage import ToyConfig, ToyStage


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    threads: int = operational(4)


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    words: frozenset[str] = frozenset({"b", "a"})
    place: str = operational("here")


def test_semantic_config_leaves_out_operational_fields_at_any_depth() -> None:
    assert semantic_config(Outer()) == {"inner": {"size": 3}, "words": ["a", "b"]}


def test_digest_covers_what_changes_the_output() -> None:
    unit = Unit(number=3, source={"name": "a"}, inputs=(Input(url="here/a", fingerprint="f"),))
    stage = ToyStage(ToyConfig())
    same = [
        replace(unit, number=4).digest(stage),
        replace(unit, inputs=(Input(url="there/a", fingerprint="f"),)).digest(stage),
        unit.digest(ToyStage(ToyConfig(seconds=3.0))),
    ]
    other = [
        replace(unit, source={"name": "b"}).digest(stage),
        replace(unit, inputs=(Input(url="here/a", fingerprint="g"),)).digest(stage),
        unit.digest(ToyStage(ToyConfig(factor=5))),
    ]
    assert set(same) == {unit.digest(stage)}
    assert len({*other, unit.digest(stage)}) == 4


def test_counts_must_add_up() -> None:
    counts = Counts()
    counts.keep(3)
    counts.drop("short", 2)
    counts.check()
    assert counts.to_json() == {"in": 5, "out": 3, "dropped": {"short": 2}}
    total = Counts.from_json(counts.to_json())
    total.add(counts)
    assert total.to_json() == {"in": 10, "out": 6, "dropped": {"short": 4}}
    counts.taken += 1
    with pytest.raises(AssertionError, match="in 6 != out 3"):
        counts.check()


def test_numbers_are_kept_and_appended() -> None:
    planned = [Unit(number=0, source={"n": "c"}, inputs=()), Unit(number=1, source={"n": "a"}, inputs=())]
    units = append_units(planned, [({"n": n}, ()) for n in "abc"])
    assert [(u.number, u.source["n"]) for u in units] == [(0, "c"), (1, "a"), (2, "b")]
