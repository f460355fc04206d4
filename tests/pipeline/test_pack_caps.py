"""Pack's choices among all samples: limits a text and a domain, the top; against a plain computation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline import manifest, tombstones
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError, InputError
from pipeline.planning import make_plan
from pipeline.stage import Unit, digest_of
from pipeline.stages.pack import PackConfig, pack_stages
from pipeline.stages.pack.rule import Limits, RuleOptions, parse_top, taken_of
from pipeline.stages.pack.select import Top
from pipeline.stages.pack.select.state import STATE, by_values, domain_hashes, domain_of, normal_text
from pipeline.stages.pack.select.top import CUT, TopConfig, inside, order_strings
from pipeline.takedown import Folders, take_down
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images, run_here

PICTURE = b"no picture that anybody decodes"
TEXTS = ["a cat", "A  CAT ", "a dog", "", "ein Hund"]
HOSTS = ["a.example.co.uk", "b.example.co.uk", "example.org", "www.example.org", "10.0.0.1"]
SCORES = [0.1, 0.25, 0.25, 0.3, float("nan"), None, -0.0, 0.0, -1.5, float("inf")]

rows = st.lists(
    st.tuples(st.sampled_from(TEXTS), st.sampled_from(HOSTS), st.sampled_from(SCORES), st.booleans()),
    min_size=1,
    max_size=24,
)


def _world(folder: Path, given_rows: Sequence[tuple[str, str, float | None, bool]], shards: int = 3) -> None:
    """Rows dealt to shards; a row whose last value is false is a failed download."""
    images: dict[int, list[dict[str, Any]]] = {n: [] for n in range(shards)}
    scores: dict[int, dict[str, list]] = {n: {"key": [], "clip_score": []} for n in range(shards)}
    for at, (text, host, score, there) in enumerate(given_rows):
        shard = at % shards
        failed = {} if there else {"reason": "timeout"}
        url = f"http://{host}/{at}.jpg"
        row = crawled(shard, at // shards, caption=text, url=url, picture=PICTURE, **failed)
        images[shard].append(row)
        if there:
            scores[shard]["key"].append(row["key"])
            scores[shard]["clip_score"].append(score)
    make_images(folder / "images", images)
    tables = {
        n: {**s, "clip_score": pa.array(s["clip_score"], pa.float32()).to_pylist()} for n, s in scores.items()
    }
    make_columns(folder / "clip", tables)


def _pack(folder: Path, name: str = "out", **rule: Any) -> Counter[str]:
    """Runs all stages; the reasons of pack's manifests, `kept` for what came out."""
    config = PackConfig(
        input=str(folder / "images"), columns=(str(folder / "clip"),), group=2, buckets=3, **rule
    )
    for stage, output in pack_stages(config, str(folder / name)):
        run_here(stage, output)
    total = manifest.total_counts(manifest.read_all(str(folder / name)))
    return Counter({**total.dropped, "kept": total.kept})


def _kept(folder: Path, name: str = "out") -> set[str]:
    tables = [pq.read_table(path)["key"].to_pylist() for path in sorted((folder / name).glob("*.parquet"))]
    return {key for keys in tables for key in keys}


def _expected(folder: Path, where: str | None, limits: Limits) -> tuple[set[str], Counter[str]]:
    """The same rule in pandas, a row at a time."""
    parts = []
    for path in sorted((folder / "images").glob("*.parquet")):
        images = pd.read_parquet(path)
        scores = pd.read_parquet(folder / "clip" / path.name)
        parts.append(images.merge(scores, on="key", how="left"))
    table = pd.concat(parts).sort_values("key").reset_index(drop=True)
    table["why"] = np.where(table["status"] == "success", "", "timeout")
    everybody = table[table["why"] == ""]
    if where is not None:
        bad = (table["why"] == "") & ~(table["url"].str.contains("org"))
        table.loc[bad, "why"] = "predicate"
    best = table.assign(rank=-table["clip_score"].fillna(-math.inf), no=table["clip_score"].isna())
    best = best.sort_values(["no", "rank", "key"])
    for reason, limit, name in (
        ("max_per_text", limits.per_text, lambda r: " ".join(r["caption"].lower().split())),
        (
            "max_per_domain",
            limits.per_domain,
            lambda r: {"k": "example.co.uk", "g": "example.org", "1": "1"}[r["url"].split("/")[2][-1]],
        ),
    ):
        seen: Counter[str] = Counter()
        for at, row in best.iterrows():
            what = name(row)
            if not limit or table.loc[at, "why"] or not what:
                continue
            seen[what] += 1
            if seen[what] > limit:
                table.loc[at, "why"] = reason
    if limits.top is not None:
        pool = everybody.index if limits.of_all else table.index[table["why"] == ""]
        order = [at for at in best.index if at in set(pool) and not best.loc[at, "no"]]
        wanted = limits.top if isinstance(limits.top, int) else math.floor(limits.top * len(pool))
        chosen = set(order[:wanted])
        for at in table.index[table["why"] == ""]:
            if at not in chosen:
                table.loc[at, "why"] = "below_top_null" if best.loc[at, "no"] else "below_top"
    reasons = Counter(why or "kept" for why in table["why"])
    return set(table.loc[table["why"] == "", "key"]), reasons


@given(
    rows=rows,
    where=st.sampled_from([None, "url LIKE '%org%'"]),
    per_text=st.sampled_from([0, 1, 2]),
    per_domain=st.sampled_from([0, 1, 3]),
    top=st.sampled_from([None, "30%", "66.6%", "100%", 1, 5, 1000]),
    of=st.sampled_from(["kept", "all"]),
)
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # a world takes too long to make for shrinking
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_choices_are_those_of_a_plain_computation(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, float | None, bool]],
    where: str | None,
    per_text: int,
    per_domain: int,
    top: str | int | None,
    of: str,
) -> None:
    tmp_path = tmp_path_factory.mktemp("world")
    valued = any(score is not None and not math.isnan(score) for _, _, score, there in rows if there)
    if not valued:
        rows = [*rows, ("a bird", "example.org", 0.5, True)]
    _world(tmp_path, rows)
    rule: dict[str, Any] = {"where": where, "max_per_text": per_text, "max_per_domain": per_domain}
    if top is not None:
        rule |= {"top": top, "of": of, "by": "clip_score"}
    elif per_text or per_domain:
        rule["by"] = "clip_score"
    limits = Limits.of(RuleOptions(**rule))
    keys, reasons = _expected(tmp_path, where, limits)
    competing = reasons["kept"] + reasons["below_top"] + reasons["below_top_null"]
    if top is not None and of == "kept" and competing and competing == reasons["below_top_null"]:
        with pytest.raises(InputError, match="no value in any"):
            _pack(tmp_path, **rule)
        return
    assert +_pack(tmp_path, **rule) == +reasons
    assert _kept(tmp_path) == keys


def _state(scores: Sequence[float | None], start: int = 0) -> pa.Table:
    keys = [f"{start + n:012d}" for n in range(len(scores))]
    values = by_values(pa.chunked_array([pa.array(scores, pa.float32())]))
    nothing = pa.nulls(len(keys), pa.binary(16))
    columns = [
        pa.nulls(len(keys), pa.int32()),
        keys,
        pa.nulls(len(keys), pa.string()),
        values,
        nothing,
        nothing,
    ]
    return pa.table(columns, schema=STATE)


@given(
    shards=st.lists(st.lists(st.sampled_from(SCORES), max_size=30), min_size=1, max_size=4),
    wanted=st.integers(1, 60),
    at_once=st.sampled_from([1, 2, 7, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_the_cut_is_exact_in_bounded_memory(
    shards: list[list[float | None]], wanted: int, at_once: int
) -> None:
    """However few rows are sorted at once, and however many share a value."""
    tables = [_state(scores, start=1000 * n) for n, scores in enumerate(shards)]
    whole = pa.concat_tables(tables).to_pandas()
    order = whole[whole["by"].notna()].sort_values(["by", "key"], ascending=[False, True])
    if order.empty:
        return
    stage = Top(TopConfig(top=wanted, by="clip_score"), at_once=at_once)
    stage._each = lambda look: (look(table) for table in tables)  # type: ignore[method-assign]
    wanted = min(wanted, len(order))
    by, key = stage._cut(wanted)
    assert (by, key) == tuple(order.iloc[wanted - 1][["by", "key"]])
    cut = pa.table([[by], [key]], schema=CUT)
    for table in tables:
        kept = pc.fill_null(inside(table, cut), False)
        expected = set(order.iloc[:wanted]["key"])
        assert set(table["key"].filter(kept).to_pylist()) == expected & set(table["key"].to_pylist())


def test_order_strings_sort_as_rows_do() -> None:
    values = [float("inf"), 1e30, 0.3, 0.25, 1e-40, 0.0, -1e-40, -1.5, -1e30, float("-inf")]
    strings = order_strings(_state(values))
    assert [bytes(row) for row in strings] == sorted(bytes(row) for row in strings)


def test_what_is_one_text_and_one_domain() -> None:
    assert normal_text("  A\tCat\n") == normal_text("a cat") == "a cat"
    assert normal_text("ＣＡＦÉ") == normal_text("cafe\u0301") == "café"
    assert normal_text("STRASSE") == normal_text("Straße")
    assert normal_text("a cat.") != normal_text("a cat")
    domains = {
        "www.example.org": "example.org",
        "example.org": "example.org",
        "a.b.example.co.uk": "example.co.uk",
        "co.uk": "co.uk",
        "t.co": "t.co",
        "a.blogspot.com": "blogspot.com",
        "10.0.0.1": "10.0.0.1",
        "[::1]": "[::1]",
        "localhost": "localhost",
    }
    assert {host: domain_of(host) for host in domains} == domains
    urls = pa.array(["http://WWW.Example.org:80/a", "//x", None, "https://user@example.ORG./b", "data:x"])
    found = domain_hashes(urls).to_pylist()
    assert found[0] == found[3] is not None
    assert found[1:3] == [None, None]
    assert found[4] is None


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"top": "0%", "by": "clip_score"}, "above 0%"),
        ({"top": "120%", "by": "clip_score"}, "at most 100%"),
        ({"top": "abc", "by": "clip_score"}, "a share such as 30%"),
        ({"top": "-5", "by": "clip_score"}, "a share such as 30%"),
        ({"top": "0.3", "by": "clip_score"}, "a share such as 30%"),
        ({"top": 0, "by": "clip_score"}, "at least 1 sample"),
        ({"top": "30%"}, "needs --by"),
        ({"by": "clip_score"}, "says what is better; give --top"),
        ({"of": "all"}, "give --top with it"),
        ({"top": "30%", "by": "clip_score", "of": "some"}, "must be kept or all"),
        ({"max_per_text": -1}, "at least 1, or 0"),
        ({"max_per_domain": 3, "buckets": 0}, "buckets 0"),
        (
            {"top": "30%", "by": "clip_scor"},
            r"no column \(did you mean clip_score\?\).*numeric columns: .*width",
        ),
        ({"top": "30%", "by": "caption"}, "a column of string"),
        ({"top": "30%", "by": "empty"}, "has no values"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    tmp_path: Path, rule: dict[str, Any], message: str
) -> None:
    _world(tmp_path, [("a cat", "example.org", 0.5, True)], shards=1)
    make_columns(tmp_path / "empty", {0: {"key": ["000000000000"], "empty": [None]}})
    config = PackConfig(
        input=str(tmp_path / "images"), columns=(str(tmp_path / "clip"), str(tmp_path / "empty")), **rule
    )
    with pytest.raises(ConfigError, match=message):
        pack_stages(config, str(tmp_path / "out"))[0][0].plan([])


def test_a_share_is_exact() -> None:
    assert parse_top("30%") == Fraction(3, 10)
    assert parse_top("0.1 %") == Fraction(1, 1000)
    assert parse_top("100000") == parse_top(100000) == 100000
    assert [taken_of(Fraction(3, 10), n) for n in (0, 3, 10, 11)] == [0, 0, 3, 3]
    assert taken_of(Fraction(29, 100), 100) == 29  # floor(0.29 * 100) is 28 in floats
    assert taken_of(7, 3) == 3


def test_without_such_options_nothing_changes(tmp_path: Path) -> None:
    """The digest of a unit is what it was before there were any, and there is one stage alone."""
    config = PackConfig(input="images", where="clip_score > 0.2", group=2, seed=3)
    ((stage, output),) = pack_stages(config, "out")
    assert (stage.name, output) == ("pack", "out")
    unit = Unit(number=0, source={"group": 2, "seed": 3, "shards": [0]}, inputs=())
    old = {"where": "clip_score > 0.2", "preset": None, "group": 2, "seed": 3}
    assert unit.digest(stage) == digest_of(
        stage="pack", version=1, config=old, source=unit.source, fingerprints=[]
    )
    assert len(pack_stages(PackConfig(input="images", max_per_text=0, top=None), "out")) == 1


def test_a_preset_brings_its_limit(tmp_path: Path) -> None:
    assert Limits.of(RuleOptions(preset="coyo")).per_text == 10
    assert Limits.of(RuleOptions(preset="coyo", max_per_text=3)).per_text == 3
    assert not Limits.of(RuleOptions(preset="coyo", max_per_text=0))
    assert [s.name for s, _ in pack_stages(PackConfig(input="images", preset="coyo"), "out")] == [
        "pack-rows",
        "pack-cap",
        "pack-settle",
        "pack",
    ]


def test_shards_added_later_redo_what_they_change(tmp_path: Path) -> None:
    """Other verdicts on old shards redo their groups, equal ones do not; the end is that of packing anew."""
    given_rows = [("a cat", "example.org", score, True) for score in (0.9, 0.8, 0.1, 0.7, 0.6, 0.2)]
    rule: dict[str, Any] = {"top": "50%", "by": "clip_score"}
    _world(tmp_path, given_rows, shards=2)
    _pack(tmp_path, **rule)
    assert len(_kept(tmp_path)) == 3
    first = manifest.list_done(str(tmp_path / "out"))
    assert not _ran(tmp_path, **rule)
    more = {2: [crawled(2, n, picture=PICTURE) for n in range(6)]}
    rows = {n: pq.read_table(tmp_path / f"images/{n:08d}.parquet").to_pylist() for n in range(2)}
    images = {n: [{**row, "picture": PICTURE} for row in table] for n, table in rows.items()} | more
    make_images(tmp_path / "images", images)
    scores = {n: pq.read_table(tmp_path / f"clip/{n:08d}.parquet").to_pydict() for n in range(2)}
    new = {"key": [row["key"] for row in more[2]], "clip_score": [0.75, 0.0, 0.05, 0.01, 0.02, 0.03]}
    make_columns(tmp_path / "clip", {**scores, 2: new})
    assert _ran(tmp_path, **rule) == {
        "_select_1_rows": 1,
        "_select_6_top": 1,
        "_select_7_verdicts": 3,
        "out": 2,
    }
    assert manifest.list_done(str(tmp_path / "out"))[0] != first[0]
    kept = _kept(tmp_path)
    assert len(kept) == 6
    _pack(tmp_path, "anew", **rule)
    assert _kept(tmp_path, "anew") == kept
    make_columns(tmp_path / "clip", {**scores, 2: {**new, "clip_score": [0.75, 0.0, 0.05, 0.01, 0.02, 0.04]}})
    with pytest.raises(ConfigError, match="inputs changed"):
        _ran(tmp_path, **rule)
    assert _ran(tmp_path, overwrite=True, **rule)["out"] == 1  # the old shards got the verdicts they had


def _ran(folder: Path, *, overwrite: bool = False, **rule: Any) -> dict[str, int]:
    """Runs all stages again: units that were done, by folder."""
    found = {}
    config = PackConfig(
        input=str(folder / "images"), columns=(str(folder / "clip"),), group=2, buckets=3, **rule
    )
    for stage, output in pack_stages(config, str(folder / "out")):
        todo = len(make_plan(stage, output, overwrite=overwrite).todo)
        run_here(stage, output, overwrite=overwrite)
        if todo:
            found[Path(output).name] = todo
    return found


def test_choices_among_some_of_the_shards_are_refused(tmp_path: Path) -> None:
    _world(tmp_path, [("a cat", "example.org", 0.5, True)] * 6)
    config = PackConfig(
        input=str(tmp_path / "images"),
        columns=(str(tmp_path / "clip"),),
        top=3,
        by="clip_score",
        max_per_domain=5,
    )
    stages = pack_stages(config, str(tmp_path / "out"))
    rows, folder = stages[0]
    unit = make_plan(rows, folder).todo[0]
    run_and_commit(rows, unit, folder)
    with pytest.raises(ConfigError, match="2 of 3 image shards are not done yet"):
        make_plan(*stages[1])
    with pytest.raises(ConfigError):
        make_plan(*stages[-1])


def test_a_takedown_reaches_what_was_chosen(tmp_path: Path) -> None:
    """Its keys leave the states; another sample takes its place when pack runs again."""
    _world(tmp_path, [("a cat", "example.org", s, True) for s in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)])
    rule: dict[str, Any] = {"top": 3, "by": "clip_score", "max_per_text": 5}
    _pack(tmp_path, **rule)
    best = min(_kept(tmp_path))
    url = next(
        row["url"]
        for path in sorted((tmp_path / "images").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["key"] == best
    )
    folders = Folders(
        images=(str(tmp_path / "images"),),
        columns=(str(tmp_path / "clip"),),
        shards=(str(tmp_path / "out"),),
    )
    report = take_down(folders, [tombstones.make_entry("url", url)])
    assert not report.failures
    for path in (tmp_path / "out").glob("_select_*/*.parquet"):
        assert best not in pq.read_table(path)["key"].to_pylist(), path
    assert len(_kept(tmp_path)) == 2
    ran = _ran(tmp_path, **rule)
    assert "_select_1_rows" not in ran
    assert len(_kept(tmp_path)) == 3
    _pack(tmp_path, "anew", **rule)
    assert _kept(tmp_path, "anew") == _kept(tmp_path)


def test_foreign_images_and_a_column_of_theirs(tmp_path: Path) -> None:
    """A whole number of the images' own parquet, written in capitals; without a uid or a reason."""
    rows = [crawled(0, n, width=40 + n, picture=PICTURE) for n in range(5)]
    make_foreign(tmp_path / "images", {0: rows})
    config = PackConfig(input=str(tmp_path / "images"), top=2, by="WIDTH", max_per_domain=4)
    for stage, output in pack_stages(config, str(tmp_path / "out")):
        run_here(stage, output)
    assert _kept(tmp_path) == {"000000003", "000000004"}
