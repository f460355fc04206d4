"""The report's what-if: what is counted for the page against pack's own code over the same rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.reporting import expressions
from jobs.reporting.cuts import Rule, read_rule
from jobs.reporting.embed import json_in_script, packed
from jobs.reporting.hitters import Hitters
from jobs.reporting.judge import Judge
from jobs.reporting.view import View, look
from jobs.reporting.whatif import ALWAYS, NEVER, STEPS, WhatIf, decimal, reference, thresholds
from pipeline.inputs import Shard
from pipeline.selection import Selection
from pipeline.stage import Input

SCHEMA = pa.schema(
    {
        **dict.fromkeys(("key", "url", "caption", "status", "reason", "language"), pa.string()),
        **{"clip_score": pa.float32(), "unsafe": pa.float32(), "sharp": pa.float64(), "side": pa.int32()},
        **{"near_duplicate_of": pa.string(), "near_distance": pa.int32()},
    }
)
RULES = (
    "clip_score >= 0.28",
    "clip_score > 0.3 AND unsafe < 0.5",
    "0.26 <= clip_score AND near_duplicate_of IS NULL",
    "clip_score >= CASE WHEN language = 'en' THEN 0.28 ELSE 0.26 END AND sharp BETWEEN 0.1 AND 0.9",
    "clip_score >= CASE WHEN language = 'en' THEN 0.3 WHEN language = 'de' THEN 0.26 END AND side > 200",
    "(clip_score >= 0.3 OR unsafe < 0.1) AND length(caption) >= 5 AND near_duplicate_of IS NULL",
    "coalesce(clip_score, 0.3) >= 0.3 AND sharp <= 0.7::DOUBLE AND unsafe <= 0.9::DOUBLE",
    "true",
)


def scores(low: float, high: float) -> st.SearchStrategy[float | None]:
    """Values on round thresholds, as well as between them, and null."""
    grid = st.integers(round(low * 50), round(high * 50)).map(lambda n: n / 50)
    return st.none() | grid | st.floats(low, high, width=32)


ROW = st.fixed_dictionaries(
    {
        "caption": st.sampled_from(["a", "four", "a red square", ""]),
        "status": st.sampled_from(["success", "success", "success", "failed_to_download"]),
        "clip_score": scores(0.0, 0.5),
        "language": st.sampled_from(["en", "de", "fr", None]),
        "unsafe": scores(0, 1),
        "sharp": scores(0, 1),
        "side": st.none() | st.integers(190, 210),
        "near_duplicate_of": st.sampled_from([None, "x"]),
        "near_distance": st.none() | st.integers(0, 6),
    }
)


def table_of(rows: list[dict[str, Any]], shard: int) -> pa.Table:
    full = [
        {**row, "key": f"{shard:08d}{i:04d}", "url": "http://a.example/x.jpg",
         "reason": None if row["status"] == "success" else "timeout"}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(full, SCHEMA)


def view_of(table: pa.Table, judge: Judge | None, number: int) -> View:
    shard = Shard(number=number, input=Input(url=f"images/{number:08d}.parquet", fingerprint=""))
    return look(table, shard, judge=judge, truth=None, score="clip_score", seed=3)


def counted(where: str | None, tables: list[pa.Table], *, sample: int = 10_000) -> WhatIf:
    judge = Judge(settings={"where": where, "preset": None}) if where else None
    names = ["clip_score", "unsafe", "sharp", "side", "near_distance"]
    rule = read_rule(judge.conditions if judge else [], SCHEMA, names, first="clip_score")
    values = [
        expressions.numbers(expressions.selected(t, rule.columns), [c.value for c in rule.cuts])
        for t in tables
    ]
    what = WhatIf(rule=rule, edges=reference(values, rule.cuts), sample=sample)
    for number, table in enumerate(tables):
        what.add(what.collect(view_of(table, judge, number)))
    return what


def moved(what: WhatIf, at: dict[int, int]) -> str:
    """The rule with some cuts at other thresholds, as SQL; -1 is off."""
    rule: Rule = what.rule
    texts = []
    for part in rule.parts:
        mine = [p for p in part.pieces if isinstance(p, int)]
        if not any(at.get(p, what.start_of(p)) != what.start_of(p) for p in mine):
            texts.append(part.text)
            continue
        texts.append("".join(literal(what, p, at) if isinstance(p, int) else p for p in part.pieces))
    for i, cut in enumerate(rule.cuts):
        if cut.part < 0 and at.get(i, -1) >= 0:
            text = f"{cut.value} {cut.op} {literal(what, i, at)}"
            texts.append(f"({cut.mark} IS NULL OR {text})" if cut.mark else text)
    return " AND ".join(f"({text})" for text in texts) or "true"


def literal(what: WhatIf, number: int, at: dict[int, int]) -> str:
    cut, place = what.rule.cuts[number], at.get(number, what.start_of(number))
    text = decimal(cut.start or 0.0) if place == what.start_of(number) else what.edges[number][place]
    return text + cut.suffix


def kept_by_pack(where: str, tables: list[pa.Table]) -> int:
    return sum(Selection(where=where).reasons(table).null_count for table in tables)


def kept_by_rows(what: WhatIf, at: dict[int, int]) -> int:
    """What the page does with the rows that it holds."""
    kept = np.ones(len(what.codes), bool)
    for i, cut in enumerate(what.rule.cuts):
        codes, place = what.codes[:, i], at.get(i, what.start_of(i))
        if place < 0:
            passed = np.full(len(codes), cut.off)
        else:
            passed = (codes != NEVER) & ((codes > place) if cut.above else (codes <= place))
        kept &= passed | (codes == ALWAYS)
    return int(kept.sum())


CASES = {
    "where": st.sampled_from(RULES),
    "shards": st.lists(st.lists(ROW, min_size=1, max_size=25), min_size=1, max_size=3),
    "data": st.data(),
}


@settings(max_examples=5, deadline=None)
@given(**CASES)
def test_counts_are_those_of_pack_under_the_moved_rule(where: str, shards: Any, data: st.DataObject) -> None:
    check_counts(where, shards, data)


@pytest.mark.prove
@settings(max_examples=120, deadline=None)
@given(**CASES)
def test_counts_are_those_of_pack_under_very_many_moved_rules(
    where: str, shards: Any, data: st.DataObject
) -> None:
    check_counts(where, shards, data)


def check_counts(where: str, shards: list[list[dict[str, Any]]], data: st.DataObject) -> None:
    tables = [table_of(rows, n) for n, rows in enumerate(shards)]
    what = counted(where, tables)
    assert what.kept == kept_by_pack(where, tables)
    assert what.pictures == sum(row["status"] == "success" for rows in shards for row in rows)
    movable = [i for i, edges in enumerate(what.edges) if edges]
    if not movable:
        return
    one = data.draw(st.sampled_from(movable))
    place = data.draw(st.integers(0, len(what.edges[one]) - 1))
    expected = kept_by_pack(moved(what, {one: place}), tables)
    assert what.kept_at(one, place) == expected, moved(what, {one: place})
    # every row that could be kept is there, so several at once are exact as well
    assert what.open == len(what.codes)
    several = data.draw(st.lists(st.sampled_from(movable), min_size=1, max_size=3, unique=True))
    at = {i: data.draw(st.integers(0, len(what.edges[i]) - 1)) for i in several}
    assert kept_by_rows(what, at) == kept_by_pack(moved(what, at), tables), moved(what, at)


@settings(max_examples=3, deadline=None)
@given(rows=st.lists(ROW, min_size=4, max_size=40), cut=st.integers(1, 3))
def test_counts_do_not_depend_on_how_rows_lie_in_shards(rows: list[dict[str, Any]], cut: int) -> None:
    whole = [table_of(rows, 0)]
    parts = [table_of(rows[: len(rows) // cut], 0), table_of(rows[len(rows) // cut :], 1)]
    one, other = counted(RULES[1], whole), counted(RULES[1], parts)
    assert one.edges == other.edges
    assert [s.counts.tolist() for s in one.steps] == [s.counts.tolist() for s in other.steps]
    assert (one.kept, one.open, [s.nulls for s in one.steps]) == (
        other.kept,
        other.open,
        [s.nulls for s in other.steps],
    )


def test_without_a_rule_every_picture_is_kept_and_every_score_can_be_asked() -> None:
    rows = [{**base(), "clip_score": i / 100} for i in range(40)]
    what = counted(None, [table_of(rows, 0)])
    assert [cut.value for cut in what.rule.cuts] == ["clip_score", "near_distance", "unsafe", "sharp", "side"]
    assert what.kept == 40
    place = what.edges[0].index("0.200")
    assert what.kept_at(0, place) == 20


def base() -> dict[str, Any]:
    return {
        "caption": "a red square", "status": "success", "clip_score": 0.3, "language": "en", "unsafe": 0.1,
        "sharp": 0.5, "side": 200, "near_duplicate_of": None, "near_distance": None,
    }  # fmt: skip


def test_the_rows_of_the_page_are_bounded_and_a_fair_choice() -> None:
    rng = random.Random(5)
    tables = [table_of([{**base(), "clip_score": rng.random()} for _ in range(2000)], n) for n in range(3)]
    what = counted(RULES[0], tables, sample=1500)
    assert (what.open, len(what.codes)) == (6000, 1500)
    share = kept_by_rows(what, {}) / 1500
    assert share == pytest.approx(what.kept / 6000, abs=0.05)
    assert what.codes.tolist() == counted(RULES[0], tables, sample=1500).codes.tolist()


def test_pictures_of_a_cut_are_the_nearest_on_both_sides() -> None:
    rng = random.Random(1)
    values = [rng.random() for _ in range(300)]
    tables = [table_of([{**base(), "clip_score": v} for v in values[n::3]], n) for n in range(3)]
    steps = counted(RULES[0], tables).steps[0]
    below = sorted((v for v in values if np.float32(v) < np.float32(0.28)), reverse=True)[:5]
    above = sorted(v for v in values if np.float32(v) >= np.float32(0.28))[:5]
    assert [r.value for r in steps.below] == pytest.approx(below)
    assert [r.value for r in steps.above] == pytest.approx(above)
    assert [r.code for r in steps.ladder] == sorted(r.code for r in steps.ladder)
    assert len(steps.ladder) >= 20


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, allow_nan=False, width=32), max_size=50),
    start=st.none() | st.floats(-100, 100).map(lambda v: round(v, 3)),
    op=st.sampled_from([">=", ">", "<=", "<"]),
)
def test_thresholds_are_round_rising_few_and_hold_the_rules_own(
    values: list[float], start: float | None, op: str
) -> None:
    rule = read_rule([f"sharp {op} {decimal(start)}"] if start is not None else [], SCHEMA, ["sharp"])
    cut = rule.cuts[0] if start is not None else rule.cuts[-1]
    found = thresholds(np.array(values), cut)
    numbers = [float(e) for e in found]
    assert numbers == sorted(set(numbers))
    assert len(found) <= 2.5 * STEPS + 4
    assert not any("e" in text or (text.startswith("-0") and float(text) == 0) for text in found)
    if start is not None:
        assert start in numbers
    if values:
        assert numbers[0] <= min(values)
        assert numbers[-1] >= max(values)


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        ("clip_score >= 0.28", [("clip_score", ">=", 0.28)]),
        ("5000 <= side", [("side", ">=", 5000.0)]),
        ("sharp BETWEEN 0.1 AND 0.5", [("sharp", ">=", 0.1), ("sharp", "<=", 0.5)]),
        ("unsafe < 0.5 AND language = 'a AND b'", [("unsafe", "<", 0.5)]),
        ("clip_score >= sharp", []),
        ("caption >= 'x'", []),
        ("clip_score >= 0.2 OR unsafe < 0.1", []),
        ("NOT clip_score < 0.2", []),
        ("clip_score >= CASE WHEN language = 'en' THEN sharp ELSE 0.2 END", []),
        (
            "clip_score >= CASE WHEN language = 'en' THEN 0.3 ELSE 0.2 END",
            [("clip_score", ">=", 0.3), ("clip_score", ">=", 0.2)],
        ),
    ],
)
def test_the_cuts_of_a_rule(text: str, cuts: list[tuple[str, str, float]]) -> None:
    rule = read_rule([text], SCHEMA, [])
    assert [(c.value, c.op, c.start) for c in rule.cuts if c.part >= 0] == cuts


def test_a_rule_of_very_many_thresholds_keeps_the_rest_in_force() -> None:
    where = " AND ".join(f"sharp >= 0.{n:02d}" for n in range(1, 18))
    tables = [table_of([{**base(), "sharp": n / 40} for n in range(40)], 0)]
    what = counted(where, tables)
    assert len(what.rule.cuts) == 16
    assert what.kept == kept_by_pack(where, tables)
    assert what.kept_at(0, 0) == what.kept  # what is beyond is still asked


@settings(max_examples=30)
@given(
    st.recursive(
        st.text() | st.integers() | st.booleans(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_json_in_a_script_element_means_the_same_and_ends_nothing(value: Any) -> None:
    text = json_in_script(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text)
    assert text.isascii()


def test_hostile_json() -> None:
    hostile = "</script><!--<script>\u2028\u2029]]>&lt;\U0001f600"
    text = json_in_script({hostile: hostile})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {hostile: hostile}
    with pytest.raises(ValueError):
        json_in_script(float("nan"))
    assert packed(np.array([[1, 2], [258, 65535]], np.uint16)) == "AQACAQIA//8="


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=12), st.integers(2, 20))
def test_frequent_names_are_counted_within_the_told_error(batches: list[list[int]], capacity: int) -> None:
    hitters, truth = Hitters(capacity=capacity), Counter[str]()
    for batch in batches:
        counts = Counter(f"n{i}" for i in batch)
        truth.update(counts)
        hitters.add((name, (n,)) for name, n in counts.items())
        assert len(hitters.counts) <= 2 * capacity
    for name, number in truth.items():
        told = hitters.counts.get(name, [0])[0]
        assert told <= number <= told + hitters.error
    if len(truth) <= 2 * capacity:
        assert hitters.error == 0
        assert hitters.top(5) == [(k, [n]) for k, n in sorted(truth.items(), key=lambda i: (-i[1], i[0]))[:5]]
