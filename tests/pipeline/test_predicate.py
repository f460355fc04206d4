"""Predicates: what they give, and what they are not allowed to be."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.predicate import Predicate

TABLE = pa.table(
    {
        "clip_score": pa.array([0.1, None, 0.3, 0.5], pa.float32()),
        "Language": ["en", "de", None, "it's"],
        "width": pa.array([100, 200, 300, None], pa.int32()),
        "tags": [["a"], [], None, ["a", "b"]],
        "empty": pa.nulls(4),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip_score >= 0.3", [False, None, True, True]),
        ("CLIP_SCORE >= 0.3 AND language = 'en'", [False, False, None, False]),
        ("clip_score >= 0.3 or width < 250 -- a comment", [True, True, True, True]),
        ("language IS NULL", [False, False, True, False]),
        ("language = 'it''s'", [False, False, None, True]),
        ("coalesce(clip_score, 1) > 0.4", [False, True, False, True]),
        ("language IN ('en', 'de')", [True, True, None, False]),
        ("language LIKE 'e%'", [True, False, None, False]),
        ("regexp_matches(language, '^[a-z]+$')", [True, True, None, False]),
        ("width BETWEEN 100 AND 200", [True, True, False, None]),
        ("CASE WHEN width > 150 THEN clip_score > 0.2 ELSE true END", [True, None, True, True]),
        ("len(list_filter(tags, lambda t: t = 'a')) > 0", [True, False, None, True]),
        ("empty = 'x'", [None] * 4),
        ("empty", [None] * 4),
        ("true", [True] * 4),
        ('"width" % 200 = 0', [False, True, False, None]),
    ],
)
def test_gives_true_false_or_null_for_every_row(text: str, expected: list) -> None:
    assert Predicate(text).evaluate(TABLE).to_pylist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip_score > 0.3; DROP TABLE rows", "not one SQL expression"),
        ("true; SELECT true", "not one SQL expression"),
        ("true) FROM rows WHERE (true", "more than one expression"),
        ("true, true", None),
        ("true) , (true", "more than one expression"),
        ("true UNION SELECT true", "not one SQL expression"),
        ("true ORDER BY width", "not one SQL expression"),
        ("width > (SELECT count(*) FROM read_text('/etc/passwd'))", "subquery"),
        ("EXISTS (FROM '/etc/passwd')", "subquery"),
        ("width IN (SELECT 1)", "subquery"),
        ("(FROM read_csv('/etc/passwd')) IS NULL", "subquery"),
        ("read_text('/etc/passwd') IS NULL", "no function of a row"),
        ("getenv('HOME') = 'x'", "no function of a row"),
        ("count(*) > 1", "no function of a row"),
        ("sum(width) > 1", "no function of a row"),
        ("row_number() OVER () > 1", "window function"),
        ("width > $1", "parameter"),
        ("width > ?", "parameter"),
        ("COLUMNS('w.*') > 1", "COLUMNS"),
        ("random() > 0.5", "same answer"),
        ("now() > '2020-01-01'", "same answer"),
        ("current_setting('threads') = '1'", "same answer"),
        ("pg_sleep(10) IS NULL", "same answer"),
        ("sleep_ms(10000) IS NULL", "same answer"),
        ("current_date > '2020-01-01'", "unknown column 'current_date'"),
        ("clip_scroe > 0.3", "did you mean clip_score"),
        ("clip_scroe > 0.3", "known columns: clip_score, empty, language, tags, width"),
        ("rows.width > 3", "unknown column 'rows'"),
        ("TABLE > 3", None),
        ("width", "gives INTEGER"),
        ("'yes'", "gives VARCHAR"),
        ("language > 3", "Cannot compare"),
        ("width > 1 /* open", "unterminated"),
        ("lower(width, 3) = 'x'", "No function matches"),
        ("   ", "empty"),
        ("", "empty"),
        ("\x00", None),
        ("\ud800", "cannot be read"),
        ("(" * 3000 + "true" + ")" * 3000, "depth"),
    ],
)
def test_refuses_what_is_not_a_rule_over_columns(text: str, message: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        Predicate(text).evaluate(TABLE)
    assert message is None or message in str(caught.value)


def test_sees_no_python_variable_and_no_file(tmp_path: Path) -> None:
    secret = pa.table({"x": [1]})
    assert len(secret) == 1
    for text in ("width > (FROM secret)", f"width IN (FROM '{tmp_path}/x.csv')"):
        with pytest.raises(ConfigError):
            Predicate(text).evaluate(TABLE)


def test_failed_casts_are_an_error_that_shows_the_value() -> None:
    with pytest.raises(ConfigError, match="'en'"):
        Predicate("CAST(language AS INTEGER) > 1").evaluate(TABLE)
    assert Predicate("TRY_CAST(language AS INTEGER) > 1").evaluate(TABLE).null_count == 4


def test_keeps_the_order_of_many_rows_and_takes_none() -> None:
    values = list(range(50_000))
    table = pa.table({"n": values})
    assert Predicate("n % 7 = 3").evaluate(table).to_pylist() == [v % 7 == 3 for v in values]
    assert Predicate("n > 1").evaluate(table.slice(0, 0)).to_pylist() == []


def test_check_needs_only_the_schema_and_travels_to_workers() -> None:
    rule = pickle.loads(pickle.dumps(Predicate("clip_score > 0.3 AND width > 10")))
    assert rule.columns == {"clip_score", "width"}
    rule.check(TABLE.schema)
    with pytest.raises(ConfigError, match="known columns: width"):
        rule.check(pa.schema([("width", pa.int32())]))


@given(st.text(max_size=30) | st.text("()'\"-/*;,.<>= 1awidtheslcORAND\n$?", max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_rule_or_a_clear_refusal(text: str) -> None:
    try:
        answer = Predicate(text).evaluate(TABLE)
    except ConfigError:
        return
    assert len(answer) == len(TABLE)
    assert answer.type == pa.bool_()


@given(st.lists(st.none() | st.floats(width=32, allow_nan=False), max_size=20), st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_a_threshold_is_what_python_says(scores: list[float | None], threshold: float) -> None:
    table = pa.table({"s": pa.array(scores, pa.float64())})
    expected = [None if s is None else s >= threshold for s in scores]
    assert Predicate(f"s >= {threshold!r}::DOUBLE").evaluate(table).to_pylist() == expected
