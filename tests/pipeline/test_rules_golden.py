"""Every preset against its published rule, on rows that were written by hand: each limit from both sides.

A row is a pair that every preset keeps (GOOD) with a few values changed, beside the reason that pack counts:
None where the pair is kept. The sources of the rules are in docs/presets.md.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.predicate import Predicate
from pipeline.rules import PRESETS
from pipeline.selection import Selection

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "status", "reason", "caption", "url", "language")]
    + [("bytes", pa.int64()), ("original_width", pa.int32()), ("original_height", pa.int32())]
    + [("clip_score", pa.float32()), ("unsafe", pa.float32())]
    + [(name, pa.string()) for name in ("duplicate_of", "near_duplicate_of", "contaminated_by")]
    + [("metaclip_matches", pa.int32()), ("metaclip_keep", pa.bool_())]
)
GOOD: dict[str, Any] = {
    "status": "success",
    "caption": "a red car beside a tree",
    "url": "http://a.example/i.jpg",
    "language": "en",
    "bytes": 60_000,
    "original_width": 640,
    "original_height": 480,
    "clip_score": 0.31,
    "unsafe": 0.01,
    "metaclip_matches": 2,
    "metaclip_keep": True,
}
NAN = float("nan")


def below(value: float) -> float:
    """The next smaller number that a 32-bit score can be."""
    return float(np.nextafter(np.float32(value), np.float32(-1)))


def above(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(2)))


def score(value: float) -> float:
    """What a model's 32-bit score of this value is: 0.26 is a little less than 0.26, 0.28 a little more."""
    return float(np.float32(value))


Golden = list[tuple[dict[str, Any], str | None]]

# (URL, alt) once, alt >= 5 characters, file >= 5 KB, CLIP ViT-B/32 >= 0.30
LAION400M: Golden = [
    ({"caption": "abcd"}, "short_caption"),
    ({"caption": "abcde"}, None),
    ({"caption": ""}, "short_caption"),
    ({"caption": None}, "short_caption_null"),
    ({"caption": "日本語文"}, "short_caption"),
    ({"caption": "日本語文字"}, None),
    ({"caption": "🍎🍎🍎🍎"}, "short_caption"),  # 16 bytes, 8 units of UTF-16, 4 characters
    ({"caption": "🍎🍎🍎🍎🍎"}, None),
    ({"caption": "e\u0301e\u0301"}, "short_caption"),  # two letters, four code points
    ({"caption": "e\u0301e\u0301e"}, None),  # five code points, which a reader sees as three letters
    ({"caption": "👨\u200d👩\u200d👧"}, None),  # one family, five code points
    ({"caption": "x" * 100_000}, None),
    ({"url": "http://a.example/i.gif"}, None),
    ({"bytes": 4999}, "small_file"),
    ({"bytes": 5000}, None),
    ({"bytes": None}, "small_file_null"),
    ({"original_width": 1, "original_height": 9}, None),
    ({"language": None}, None),
    ({"duplicate_of": "000000010003"}, "duplicate"),
    ({"clip_score": below(0.30)}, "low_clip_score"),
    ({"clip_score": score(0.30)}, None),
    ({"clip_score": above(0.30)}, None),
    ({"clip_score": NAN}, "low_clip_score"),
    ({"clip_score": None}, "low_clip_score_null"),
    ({"clip_score": -1.0}, "low_clip_score"),
    ({"unsafe": 0.99, "contaminated_by": "coco/1"}, None),
    ({"caption": "abcd", "bytes": 1, "clip_score": 0.0}, "short_caption"),  # the first rule gives the reason
    ({"status": "failed_to_download", "reason": "timeout", "clip_score": None}, "timeout"),
]

# alt and URL <= 2000 characters, alt >= 5, no svg or gif, 5000 bytes, 89,478,484 pixels; CLIP 0.28, or 0.26
LAION5B: Golden = [
    ({"caption": "x" * 2000}, None),
    ({"caption": "x" * 2001}, "long_caption"),
    ({"caption": "日" * 2000}, None),
    ({"caption": "日" * 2001}, "long_caption"),
    ({"caption": "a\u0301" * 1000}, None),
    ({"caption": "a\u0301" * 1000 + "a"}, "long_caption"),
    ({"caption": "abcd"}, "short_caption"),
    ({"caption": "abcde"}, None),
    ({"url": "http://a.example/" + "x" * 1983}, None),
    ({"url": "http://a.example/" + "x" * 1984}, "long_url"),
    ({"url": "http://a.example/" + "x" * 1979 + ".gif"}, "svg_or_gif"),
    ({"url": "http://a.example/" + "x" * 1980 + ".gif"}, "long_url"),
    ({"url": "http://a.example/i.svgz"}, "svg_or_gif"),
    ({"url": "http://a.example/i.gif/"}, None),
    ({"url": "http://a.example/i.gif.jpg"}, None),
    ({"url": "http://a.example/i.gifv"}, None),
    ({"url": "http://gif.example/?i.gif"}, None),
    ({"url": "http://a.example/I.GIF?x=.jpg"}, "svg_or_gif"),
    ({"url": "http://a.example/i.svg#x"}, "svg_or_gif"),
    ({"url": "http://a.example/i.jpg?x=.gif"}, None),
    ({"url": "http://a.example/gif"}, None),
    ({"bytes": 4999}, "small_file"),
    ({"bytes": 5000}, None),
    ({"original_width": 89_478_484, "original_height": 1}, None),
    ({"original_width": 89_478_485, "original_height": 1}, "too_many_pixels"),
    ({"original_width": 9459, "original_height": 9459}, None),  # 89,472,681
    ({"original_width": 9460, "original_height": 9459}, "too_many_pixels"),  # 89,482,140
    ({"original_width": 100_000, "original_height": 100_000}, "too_many_pixels"),  # beyond 32 bits
    ({"original_width": None}, "too_many_pixels_null"),
    ({"clip_score": score(0.28)}, None),
    ({"clip_score": below(0.28)}, "low_clip_score"),
    ({"clip_score": NAN}, "low_clip_score"),
    ({"clip_score": None}, "low_clip_score_null"),
    ({"clip_score": score(0.26), "language": "de"}, None),
    ({"clip_score": below(0.26), "language": "de"}, "low_clip_score"),
    ({"clip_score": NAN, "language": "de"}, "low_clip_score"),
    ({"clip_score": score(0.26), "language": None}, None),  # CLD3 was not sure: no language
    ({"clip_score": below(0.26), "language": None}, "low_clip_score"),
    ({"duplicate_of": "000000010003", "unsafe": 1.0}, None),
]

# what LAION-5B asks, English alone; the captions are generated
LAION_COCO: Golden = [
    ({"caption": "abcd"}, "short_caption"),
    ({"caption": "x" * 2001}, "long_caption"),
    ({"bytes": 4999}, "small_file"),
    ({"original_width": 89_478_485, "original_height": 1}, "too_many_pixels"),
    ({"url": "http://a.example/i.gif"}, "svg_or_gif"),
    ({"language": "de"}, "not_english"),
    ({"language": None}, "not_english"),
    ({"clip_score": score(0.28)}, None),
    ({"clip_score": below(0.28)}, "low_clip_score"),
    ({"clip_score": score(0.26)}, "low_clip_score"),
    ({"clip_score": NAN}, "low_clip_score"),
    ({"url": "http://a.example/" + "x" * 1984}, "long_url"),
]

# > 5 and <= 1000 characters, 3 to 256 words, >= 5 KB, side >= 200, aspect <= 3, English, NSFW <= 0.5, pHash
COYO: Golden = [
    ({"caption": "a b c"}, "short_caption"),
    ({"caption": "a b cd"}, None),
    ({"caption": "a b  c"}, None),
    ({"caption": "🍎 🍏 🍎"}, "short_caption"),
    ({"caption": "🍎 🍏 🍎🍎"}, None),
    ({"caption": "aaaaa b"}, "few_words"),
    ({"caption": "\ta b\nc d\r"}, None),
    ({"caption": "aaa\u00a0b c"}, "few_words"),  # a hard space binds
    ({"caption": "aa " * 254 + "aa"}, None),
    ({"caption": "aa " * 255 + "aa"}, None),  # 256 words
    ({"caption": "aa " * 256 + "aa"}, "many_words"),
    ({"caption": "a " + "b" * 998}, "few_words"),
    ({"caption": "a b " + "c" * 996}, None),
    ({"caption": "a b " + "c" * 997}, "long_caption"),
    ({"caption": "aa " * 333 + "aa"}, "long_caption"),
    ({"bytes": 4999}, "small_file"),
    ({"bytes": 5000}, None),
    ({"original_width": 200, "original_height": 200}, None),
    ({"original_width": 199, "original_height": 200}, "small_side"),
    ({"original_width": 400, "original_height": 199}, "small_side"),
    ({"original_width": 200, "original_height": 600}, None),
    ({"original_width": 200, "original_height": 601}, "elongated"),
    ({"original_width": 601, "original_height": 200}, "elongated"),
    (
        {"original_width": 1_000_000_000, "original_height": 1_000_000_000},
        None,
    ),  # three times: beyond 32 bits
    ({"original_height": None}, "small_side_null"),
    ({"original_width": None, "original_height": 199}, "small_side"),
    ({"language": "de"}, "not_english"),
    ({"language": None}, "not_english"),
    ({"unsafe": 0.5}, None),
    ({"unsafe": above(0.5)}, "unsafe"),
    ({"unsafe": 1.0}, "unsafe"),
    ({"unsafe": 0.0}, None),
    ({"unsafe": NAN}, "unsafe"),
    ({"unsafe": None}, "unsafe_null"),  # a picture that no model could look at is not held for safe
    ({"contaminated_by": "imagenet/n01440764_18.JPEG"}, "in_benchmark"),
    ({"duplicate_of": "000000010003"}, "duplicate"),
    ({"near_duplicate_of": "000000010003"}, None),  # another text of the same picture is another pair
    ({"clip_score": None}, None),
]

# English, > 2 words, > 5 characters, side >= 200, aspect <= 3
DATACOMP_BASIC: Golden = [
    ({"caption": "a b c"}, "short_caption"),
    ({"caption": "aa b c"}, None),
    ({"caption": "aaaaaaa"}, "few_words"),
    ({"caption": "aaaaa b"}, "few_words"),
    ({"caption": "x y " * 5000}, None),
    ({"bytes": 1}, None),
    ({"original_height": 199}, "small_side"),
    ({"original_width": 200, "original_height": 200}, None),
    ({"original_width": 1440, "original_height": 480}, None),
    ({"original_width": 1441, "original_height": 480}, "elongated"),
    ({"original_width": 480, "original_height": 1441}, "elongated"),
    ({"language": "fr"}, "not_english"),
    ({"language": None}, "not_english"),
    ({"clip_score": -1.0}, None),
]

# English and CLIP ViT-B/32 >= 0.28
DATACOMP_LAION2B: Golden = [
    ({"clip_score": score(0.28)}, None),
    ({"clip_score": below(0.28)}, "low_clip_score"),
    ({"clip_score": NAN}, "low_clip_score"),
    ({"clip_score": None}, "low_clip_score_null"),
    ({"language": "de", "clip_score": 0.9}, "not_english"),
    ({"language": None, "clip_score": 0.9}, "not_english"),
    ({"caption": "x", "bytes": 1, "original_width": 1}, None),
]

# a text without an entry is dropped; others where no draw of their entries kept them
METACLIP: Golden = [
    ({"metaclip_matches": 1}, None),
    ({"metaclip_matches": 0, "metaclip_keep": False}, "no_entry"),
    ({"metaclip_keep": False}, "balanced_away"),
    ({"metaclip_matches": None, "metaclip_keep": None}, "no_entry_null"),  # not asked about
    ({"metaclip_keep": None}, "balanced_away_null"),
    ({"clip_score": None, "language": None}, None),
]

NONE: Golden = [
    ({"caption": "", "bytes": 1, "clip_score": NAN, "unsafe": 1.0}, None),
    ({"caption": None, "language": None}, None),
    ({"status": "failed_to_resize", "reason": None}, "unknown"),
]

GOLDEN = {
    "none": NONE,
    "laion400m": LAION400M,
    "laion5b": LAION5B,
    "laion-coco": LAION_COCO,
    "coyo": COYO,
    "datacomp-basic": DATACOMP_BASIC,
    "datacomp-laion2b": DATACOMP_LAION2B,
    "metaclip": METACLIP,
}
CASES = [(preset, at) for preset, rows in GOLDEN.items() for at in range(len(rows))]


@functools.cache
def table_of(preset: str) -> pa.Table:
    rows = [{"key": f"{at:012d}", **GOOD, **changes} for at, (changes, _) in enumerate(GOLDEN[preset])]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@functools.cache
def reasons(preset: str) -> list[str | None]:
    return Selection(preset=preset).reasons(table_of(preset)).to_pylist()


@pytest.mark.parametrize(("preset", "at"), CASES)
def test_a_preset_keeps_and_drops_as_published(preset: str, at: int) -> None:
    changes, expected = GOLDEN[preset][at]
    assert reasons(preset)[at] == expected, changes


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_good_pair_is_kept_and_each_rule_has_a_row_that_fails_it(preset: str) -> None:
    assert set(GOLDEN) == set(PRESETS)
    good = pa.Table.from_pylist([{"key": "0", **GOOD}], schema=SCHEMA)
    assert Selection(preset=preset).reasons(good).to_pylist() == [None]
    seen = {str(reason).removesuffix("_null") for _, reason in GOLDEN[preset]}
    assert {reason for reason, _ in PRESETS[preset].rules()} <= seen


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_discover_drops_for_the_same_reason_at_the_same_border(preset: str) -> None:
    """What discover asks in Python against what pack asks in SQL."""
    asked = PRESETS[preset].rules_for("discover")
    names = {rule.reason for rule in asked}
    for changes, reason in GOLDEN[preset]:
        row = GOOD | changes
        if row["caption"] is None or row["status"] != "success":  # discover has neither
            continue
        found = next((r.reason for r in asked if r.keeps and not r.keeps(*(row[c] for c in r.columns))), None)
        assert found == (reason if reason in names else None), changes


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_one_expression_says_the_same_as_the_rules(preset: str) -> None:
    whole = Predicate(PRESETS[preset].predicate()).evaluate(table_of(preset)).to_pylist()
    fetched = [s == "success" for s in table_of(preset)["status"].to_pylist()]
    kept = [reason is None for reason in reasons(preset)]
    assert [bool(w) and ok for w, ok in zip(whole, fetched, strict=True)] == kept


def test_what_presets_ask_of_pack_beside_their_rules() -> None:
    asked = {n: (p.captions, p.max_per_text) for n, p in PRESETS.items() if p.captions or p.max_per_text}
    assert asked == {"laion-coco": ("laion-coco", None), "coyo": (None, 10)}
