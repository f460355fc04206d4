from __future__ import annotations

import functools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.predicate import Predicate
from pipeline.rules import COLUMN_SOURCES, PRESETS, STAGES, Rule, get_preset

ALL_RULES = {rule.sql: rule for preset in PRESETS.values() for rule in preset.table}
SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("bytes", pa.int64()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("clip_score", pa.float32()),
        ("language", pa.string()),
        ("duplicate_of", pa.string()),
    ]
)
#: a pair that every preset keeps
GOOD: dict[str, object] = {
    "caption": "a red car beside a tree",
    "url": "http://a.example/i.jpg",
    "bytes": 60_000,
    "original_width": 640,
    "original_height": 480,
    "clip_score": 0.31,
    "language": "en",
    "duplicate_of": None,
}


def kept(sql: str, rows: list[dict[str, object]]) -> list[bool | None]:
    return Predicate(sql).evaluate(pa.Table.from_pylist(rows, schema=SCHEMA)).to_pylist()


# every limit from both sides: preset, what differs from the good pair, the reason against it
BORDERS: list[tuple[str, dict[str, object], str | None]] = [
    ("none", {"caption": "", "bytes": 1, "clip_score": -1.0}, None),
    ("laion400m", {"caption": "abcd"}, "short_caption"),
    ("laion400m", {"caption": "abcde"}, None),
    ("laion400m", {"caption": "日本語文字"}, None),
    ("laion400m", {"caption": "a b c d e f"}, None),
    ("laion400m", {"caption": "🍎🍎🍎🍎"}, "short_caption"),
    ("laion400m", {"caption": "🍎🍎🍎🍎🍎"}, None),
    ("laion400m", {"caption": "x" * 100_000}, None),
    ("laion400m", {"url": "http://a.example/i.gif"}, None),
    ("laion400m", {"bytes": 4999}, "small_file"),
    ("laion400m", {"bytes": 5000}, None),
    ("laion400m", {"bytes": None}, "small_file"),
    ("laion400m", {"clip_score": 0.2999}, "low_clip_score"),
    ("laion400m", {"clip_score": 0.30}, None),
    ("laion400m", {"clip_score": None}, "low_clip_score"),
    ("laion400m", {"duplicate_of": "000000010003"}, "duplicate"),
    ("laion5b", {"caption": "x" * 2000}, None),
    ("laion5b", {"caption": "x" * 2001}, "long_caption"),
    ("laion5b", {"url": "http://a.example/" + "x" * 1983}, None),
    ("laion5b", {"url": "http://a.example/" + "x" * 1984}, "long_url"),
    ("laion5b", {"caption": "日" * 2000}, None),
    ("laion5b", {"caption": "日" * 2001}, "long_caption"),
    ("laion5b", {"caption": "x"}, None),
    ("laion5b", {"url": "http://a.example/" + "x" * 1979 + ".gif"}, "svg_or_gif"),
    ("laion5b", {"url": "http://a.example/" + "x" * 1980 + ".gif"}, "long_url"),
    ("laion5b", {"url": "http://a.example/i.svgz"}, "svg_or_gif"),
    ("laion5b", {"url": "http://a.example/i.gif/"}, None),
    ("laion5b", {"url": "http://a.example/i.gif.jpg"}, None),
    ("laion5b", {"url": "http://a.example/i.gifv"}, None),
    ("laion5b", {"url": "http://gif.example/?i.gif"}, None),
    ("laion5b", {"url": "http://a.example/I.GIF?x=.jpg"}, "svg_or_gif"),
    ("laion5b", {"url": "http://a.example/i.svg#x"}, "svg_or_gif"),
    ("laion5b", {"url": "http://a.example/i.jpg?x=.gif"}, None),
    ("laion5b", {"url": "http://a.example/gif"}, None),
    ("laion5b", {"bytes": 4999}, "small_file"),
    ("laion5b", {"original_width": 89_478_484, "original_height": 1}, None),
    ("laion5b", {"original_width": 89_478_485, "original_height": 1}, "too_many_pixels"),
    ("laion5b", {"original_width": 100_000, "original_height": 100_000}, "too_many_pixels"),
    ("laion5b", {"clip_score": 0.28}, None),
    ("laion5b", {"clip_score": 0.2799}, "low_clip_score"),
    ("laion5b", {"clip_score": 0.26, "language": "de"}, None),
    ("laion5b", {"clip_score": 0.26, "language": None}, None),
    ("laion5b", {"clip_score": 0.2599, "language": "de"}, "low_clip_score"),
    ("coyo", {"caption": "a b c"}, None),
    ("coyo", {"caption": "aa b"}, "short_caption"),
    ("coyo", {"caption": "a bb"}, "short_caption"),
    ("coyo", {"caption": "a b  c"}, None),
    ("coyo", {"caption": "aaaa b"}, "few_words"),
    ("coyo", {"caption": "aa " * 256 + "aa"}, "many_words"),
    ("coyo", {"caption": "aa " * 333 + "a"}, "many_words"),
    ("coyo", {"caption": "aa " * 255 + "aa"}, None),
    ("coyo", {"caption": "a " + "b" * 998}, "few_words"),
    ("coyo", {"caption": "a b " + "c" * 996}, None),
    ("coyo", {"caption": "a b " + "c" * 997}, "long_caption"),
    ("coyo", {"bytes": 4999}, "small_file"),
    ("coyo", {"original_width": 200, "original_height": 200}, None),
    ("coyo", {"original_width": 199, "original_height": 200}, "small_side"),
    ("coyo", {"original_width": 200, "original_height": 600}, None),
    ("coyo", {"original_width": 601, "original_height": 200}, "elongated"),
    ("coyo", {"language": "de"}, "not_english"),
    ("coyo", {"language": None}, "not_english"),
    ("datacomp-basic", {"caption": "a b c"}, "short_caption"),
    ("datacomp-basic", {"caption": "aa b c"}, None),
    ("datacomp-basic", {"caption": "aaaaaaa"}, "few_words"),
    ("datacomp-basic", {"caption": "x y " * 5000}, None),
    ("datacomp-basic", {"caption": "aaaaa b"}, "few_words"),
    ("datacomp-basic", {"original_height": 199}, "small_side"),
    ("datacomp-basic", {"original_width": 1440, "original_height": 480}, None),
    ("datacomp-basic", {"original_width": 1441, "original_height": 480}, "elongated"),
    ("datacomp-basic", {"language": "fr"}, "not_english"),
]


@pytest.mark.parametrize(("preset", "values", "reason"), BORDERS)
def test_presets_keep_and_drop_at_their_borders(
    preset: str, values: dict[str, object], reason: str | None
) -> None:
    assert first_reasons(preset)[BORDERS.index((preset, values, reason))] == reason


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_discover_drops_for_the_same_reason_at_the_same_border(preset: str) -> None:
    """What discover asks in Python against what pack asks in SQL, for all rows of BORDERS."""
    asked = PRESETS[preset].rules_for("discover")
    for (_, values, _), reason in zip(BORDERS, first_reasons(preset), strict=True):
        row = GOOD | values
        found = next((r.reason for r in asked if r.keeps and not r.keeps(*(row[c] for c in r.columns))), None)
        assert found == (reason if reason in {rule.reason for rule in asked} else None)


@functools.cache
def first_reasons(preset: str) -> list[str | None]:
    """The first reason of a preset against each row of BORDERS; all rows go through DuckDB at once."""
    rows = [GOOD | values for _, values, _ in BORDERS]
    reasons: list[str | None] = [None] * len(rows)
    for reason, sql in PRESETS[preset].rules():
        verdicts = kept(sql, rows)
        reasons = [old or (None if keeps else reason) for old, keeps in zip(reasons, verdicts, strict=True)]
    return reasons


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_one_expression_says_the_same_as_the_rules(name: str) -> None:
    rows = [GOOD | values for _, values, _ in BORDERS]
    whole = kept(PRESETS[name].predicate(), rows)
    single = [kept(sql, rows) for _, sql in PRESETS[name].rules()]
    assert [bool(x) for x in whole] == [all(column) for column in zip(*single, strict=True)] or not single
    assert kept(PRESETS[name].predicate(), [GOOD]) == [True]


_captions = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    "ab \t\n\x0b\x0c\r\xa0\u2003\x1c\x85'", max_size=40
)
_urls = st.builds(
    lambda path, dot, suffix, tail: f"http://a.example/{path}{dot}{suffix}{tail}",
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.sampled_from([".", "", ".."]),
    st.sampled_from(["svg", "GIF", "gİf", "ſvg", "SVGZ", "jpg", "giF\n", "gif "]),
    st.sampled_from(["", "?x", "#y", "?a#b.gif", "#a?b.svg", "/", "?x.gif"]),
)
DISCOVER_RULES = [rule for rule in ALL_RULES.values() if rule.earliest == "discover"]


@pytest.mark.parametrize("rule", DISCOVER_RULES, ids=lambda rule: rule.sql[:40])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_python_and_sql_agree(rule: Rule, data: st.DataObject) -> None:
    values = _captions if rule.columns == ("caption",) else _urls
    drawn = data.draw(st.lists(values, min_size=8, max_size=60))
    # long texts near the limits are made of drawn ones, hypothesis alone would not get there
    limit = int(rule.sql.rpartition(" ")[2]) if rule.sql.rpartition(" ")[2].isdigit() else 0
    drawn += [
        (text * (limit // max(len(text), 1) + 1))[: limit + extra] for text in drawn for extra in (0, 1)
    ]
    column = rule.columns[0]
    assert rule.keeps is not None
    assert kept(rule.sql, [{column: v} for v in drawn]) == [rule.keeps(v) for v in drawn]


def test_rules_are_asked_from_the_first_stage_that_has_their_columns() -> None:
    preset = PRESETS["coyo"]
    by_stage = [[rule.reason for rule in preset.rules_for(stage)] for stage in STAGES]
    assert by_stage == [
        ["short_caption", "long_caption", "few_words", "many_words"],
        ["short_caption", "long_caption", "few_words", "many_words", "small_file", "small_side", "elongated"],
        [rule.reason for rule in preset.table],
    ]
    assert preset.columns("discover") == ["caption"]
    assert preset.columns() == ["caption", "bytes", "original_width", "original_height", "language"]
    with pytest.raises(ConfigError, match="'train' applies no rules; these do: discover, crawl, pack"):
        preset.rules_for("train")


def test_a_missing_column_is_named_with_what_writes_it() -> None:
    PRESETS["laion400m"].check_columns(["caption", "bytes", "clip_score", "duplicate_of"])
    PRESETS["laion400m"].check_columns(["caption"], stage="discover")
    with pytest.raises(ConfigError, match=r"needs column 'clip_score'.*`pairmill score --kind clip`"):
        PRESETS["laion400m"].check_columns(["caption", "bytes", "duplicate_of"])


def test_presets_of_columns_to_come_and_misspelt_ones_list_the_known() -> None:
    for name in ("laion-coco", "laion4oom"):
        with pytest.raises(ConfigError, match=f"rules '{name}' are not known; presets: coyo, datacomp-basic"):
            get_preset(name)


def test_explain_names_stage_reason_and_condition_of_each_rule() -> None:
    lines = PRESETS["laion5b"].explain().splitlines()
    assert lines[0].startswith("laion5b: ")
    assert lines[1].split() == ["discover", "long_caption", "length(caption)", "<=", "2000"]
    assert len(lines) == 1 + len(PRESETS["laion5b"].table)


def test_every_rule_is_well_formed() -> None:
    for rule in ALL_RULES.values():
        assert set(rule.columns) == Predicate(rule.sql).columns
        assert set(rule.columns) <= set(COLUMN_SOURCES)
    for preset in PRESETS.values():
        assert len({reason for reason, _ in preset.rules()}) == len(preset.rules())
