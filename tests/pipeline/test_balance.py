"""MetaCLIP's balancing: what is matched, what is counted, what is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import session
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.stages.balance import BalanceConfig, balance_stages
from pipeline.stages.balance.entries import Matcher, load_entries, spaced
from pipeline.stages.balance.mark import draws
from tests.pipeline.folders import crawled, make_candidates, make_columns, make_images


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


def balance(output: Path, *, workers: int = 1, **config: object) -> dict[str, tuple]:
    """key -> (matches, keep)"""
    for stage, folder in balance_stages(BalanceConfig(**config), str(output)):  # type: ignore[arg-type]
        assert run_stage(stage, folder, RunOptions(workers=workers)).exit_code == 0
    found = {}
    for path in sorted(output.glob("*.parquet")):
        rows = pq.read_table(path)
        assert rows.column_names == ["key", "metaclip_matches", "metaclip_keep"]
        found |= {r["key"]: (r["metaclip_matches"], r["metaclip_keep"]) for r in rows.to_pylist()}
    return found


def write_entries(tmp_path: Path, *entries: str) -> str:
    path = tmp_path / "entries.txt"
    path.write_text("\n".join(entries))
    return str(path)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a red car", ["car", "red car"]),
        ("cars", []),  # a part of a word is no match
        ("Car", []),  # the published entries tell capitals apart
        ("a red,car", ["car"]),  # punctuation stands apart
        ("car", ["car"]),  # at both ends
        ("red  car\tcar", ["car", "red car"]),  # each once, any white space
        ("in the U.S. today", ["U.S."]),
        ("", []),
        ("día de muertos", ["día de muertos"]),
    ],
)
def test_entries_are_found_as_whole_words(caption: str, found: list[str]) -> None:
    entries = ["car", "red car", "U.S.", "día de muertos", "blue"]
    places = Matcher(entries, lower=False).find(caption)
    assert sorted(entries[place] for place in places) == sorted(found)


def test_without_capitals_entries_and_captions_meet() -> None:
    assert Matcher(["New York"], lower=True).find("NEW YORK at night") == [0]


words = st.text(alphabet="ab,. \n", max_size=12)


@given(st.lists(words.filter(lambda w: w.strip()), min_size=1, max_size=12, unique=True), words)
def test_the_automaton_finds_what_a_search_for_each_entry_finds(entries: list[str], caption: str) -> None:
    expected = [place for place, entry in enumerate(entries) if spaced(entry) in spaced(caption)]
    assert Matcher(entries, lower=False).find(caption) == expected


def test_the_tail_stays_whole_and_the_head_keeps_about_the_cap(tmp_path: Path) -> None:
    rows = [crawled(0, n, caption="a dog", picture=b"") for n in range(900)]
    rows += [crawled(0, 900 + n, caption="a rare okapi", picture=b"") for n in range(20)]
    rows += [crawled(0, 950 + n, caption="a dog and an okapi", picture=b"") for n in range(5)]
    rows += [crawled(0, 990, caption="nothing known", picture=b"")]
    entries = write_entries(tmp_path, "dog", "okapi")
    images = make_images(tmp_path / "images", {0: rows})
    found = balance(tmp_path / "out", input=str(images), entries=entries, cap=100)
    dogs = [found[r["key"]] for r in rows[:900]]
    assert all(matches == 1 for matches, _ in dogs)
    # 905 captions hold it, so each is kept with probability 100 / 905: four deviations are 38
    assert 62 <= sum(keep for _, keep in dogs) <= 138
    assert all(found[r["key"]] == (1, True) for r in rows[900:920])
    # any of its entries may keep a caption
    assert all(found[r["key"]] == (2, True) for r in rows[920:925])
    assert found[rows[-1]["key"]] == (0, False)


def test_a_pair_has_the_same_fate_in_any_order_and_place(tmp_path: Path) -> None:
    pairs = [(f"http://h/{n}.jpg", f"a dog number {n % 3}") for n in range(60)]
    entries = write_entries(tmp_path, "dog", "number")
    shuffled = pairs[:]
    random.Random(1).shuffle(shuffled)
    one = make_candidates(tmp_path / "one", {0: pairs[:30], 1: pairs[30:]})
    other = make_candidates(tmp_path / "other", {0: shuffled})
    config = {"entries": entries, "cap": 10}
    first = balance(tmp_path / "a", input=str(one), workers=2, **config)
    entries = write_entries(tmp_path, "number", "dog")  # another order of entries says the same
    second = balance(tmp_path / "b", input=str(other), **config)
    fates = dict(zip([u for u, _ in pairs], first.values(), strict=True))
    assert fates == dict(zip([u for u, _ in shuffled], second.values(), strict=True))
    assert 0 < sum(keep for _, keep in first.values()) < 60
    third = balance(tmp_path / "c", input=str(one), seed=1, **config)
    assert third != first


def test_rows_that_are_not_asked_about_are_null_and_not_counted(tmp_path: Path) -> None:
    images = make_images(
        tmp_path / "images", {0: [crawled(0, n, caption="dog", picture=b"") for n in range(4)]}
    )
    keys = [f"{0:08d}{n:04d}" for n in range(4)]
    language = make_columns(tmp_path / "lang", {0: {"key": keys, "language": ["en", "de", None, "en"]}})
    found = balance(
        tmp_path / "out",
        input=str(images),
        entries=write_entries(tmp_path, "dog"),
        columns=[str(language)],
        where="language = 'en'",
        cap=2,
    )
    assert [found[key] for key in keys] == [(1, True), (None, None), (None, None), (1, True)]


def test_more_shards_change_the_counts_and_redo_only_what_follows(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    make_images(folder, {0: [crawled(0, n, caption="dog", picture=b"") for n in range(6)]})
    config = {"input": str(folder), "entries": write_entries(tmp_path, "dog"), "cap": 6}
    assert all(keep for _, keep in balance(tmp_path / "out", **config).values())
    before = (tmp_path / "out/_match/00000000.parquet").stat().st_mtime_ns
    make_images(folder, {1: [crawled(1, n, caption="dog", picture=b"") for n in range(400)]})
    found = balance(tmp_path / "out", **config)
    assert len(found) == 406
    assert sum(keep for _, keep in found.values()) < 40
    assert (tmp_path / "out/_match/00000000.parquet").stat().st_mtime_ns == before


def test_another_cap_matches_nothing_anew(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", {0: [crawled(0, 0, caption="dog", picture=b"")]})
    config = {"input": str(images), "entries": write_entries(tmp_path, "dog")}
    balance(tmp_path / "out", cap=5, **config)
    before = (tmp_path / "out/_match/00000000.parquet").stat().st_mtime_ns
    stages = balance_stages(BalanceConfig(cap=6, **config), str(tmp_path / "out"))
    for stage, folder in stages:
        assert run_stage(stage, folder, RunOptions(overwrite=True)).exit_code == 0
    assert (tmp_path / "out/_match/00000000.parquet").stat().st_mtime_ns == before


def test_draws_are_even_and_independent() -> None:
    uid = np.arange(20_000, dtype=np.uint64)
    one, other = (draws(0, uid, np.full(20_000, entry, np.uint64)) for entry in (5, 6))
    assert abs(one.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert 0 <= one.min() < one.max() < 1


def test_entries_are_a_json_list_or_lines(tmp_path: Path) -> None:
    (tmp_path / "entries.json").write_text(json.dumps(["dog", " cat ", "dog", ""]))
    assert load_entries(str(tmp_path / "entries.json")) == ["dog", "cat"]
    assert load_entries(write_entries(tmp_path, "dog", "", "New York ")) == ["dog", "New York"]


@pytest.mark.parametrize(
    ("text", "said"), [("{}", "must be a JSON list"), ("[1]", "must be"), ("[", "not JSON")]
)
def test_what_is_no_list_of_entries_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "entries.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_entries(str(tmp_path / "entries.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entries": "nowhere.txt"}, "does not exist"),
        ({"entries": ""}, "entries is empty"),
        ({"cap": 0}, "cap 0"),
        ({"columns": ["x"]}, "for --where"),
        ({"where": "nonsense = 1"}, "unknown column"),
    ],
)
def test_bad_options_are_told_before_anything_runs(tmp_path: Path, change: dict, said: str) -> None:
    images = make_images(tmp_path / "images", {0: [crawled(0, 0, picture=b"")]})
    config = {"input": str(images), "entries": write_entries(tmp_path, "dog"), **change}
    with pytest.raises(ConfigError, match=said):
        balance(tmp_path / "out", **config)
