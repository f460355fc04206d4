from __future__ import annotations

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


def kept(sql: str, rows: list[dict[str, object]]) -> list[bool | None]:
    return Predicate(sql).evaluate(pa.Table.from_pylist(rows, schema=SCHEMA)).to_pylist()


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
    pictures = ["bytes", "original_width", "original_height"]
    judged = ["language", "unsafe", "contaminated_by", "duplicate_of"]
    assert preset.columns() == ["caption", *pictures, *judged]
    with pytest.raises(ConfigError, match="'train' applies no rules; these do: discover, crawl, pack"):
        preset.rules_for("train")


def test_a_missing_column_is_named_with_what_writes_it() -> None:
    PRESETS["laion400m"].check_columns(["caption", "bytes", "clip_score", "duplicate_of"])
    PRESETS["laion400m"].check_columns(["caption"], stage="discover")
    with pytest.raises(ConfigError, match=r"needs column 'clip_score'.*`pairmill score --kind clip`"):
        PRESETS["laion400m"].check_columns(["caption", "bytes", "duplicate_of"])


@pytest.mark.parametrize(
    ("preset", "column", "command"),
    [
        ("laion400m", "duplicate_of", "`pairmill dedup`"),
        ("laion5b", "language", "`pairmill score --kind language`"),
        ("coyo", "unsafe", "`pairmill score --kind safety`"),
        ("coyo", "contaminated_by", "`pairmill dedup --method contamination`"),
        ("metaclip", "metaclip_keep", "`pairmill balance`"),
    ],
)
def test_every_stage_that_a_preset_waits_for_is_named(preset: str, column: str, command: str) -> None:
    there = [name for name in PRESETS[preset].columns() if name != column]
    with pytest.raises(ConfigError, match=rf"preset '{preset}' needs column '{column}'.*{command}"):
        PRESETS[preset].check_columns(there)


def test_a_misspelt_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="rules 'laion4oom' are not known; presets: coyo, datacomp-basic"):
        get_preset("laion4oom")


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
