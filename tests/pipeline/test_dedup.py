"""Dedup: the smallest key wins, globally, whatever the number of shards and buckets."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import columns, manifest
from pipeline.errors import ConfigError
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.dedup.exact.entries import ENTRIES
from pipeline.stages.dedup.exact.resolve import find_losers
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images, run_here


def _run(images: Path, output: Path, **changes: Any) -> list[Any]:
    config = DedupConfig(input=str(images), **changes)
    return [run_here(stage, folder) for stage, folder in dedup_stages(config, str(output))]


def _marks(output: Path) -> dict[str, tuple[str, str]]:
    table = pa.concat_tables(pq.read_table(p) for p in sorted(output.glob("*.parquet")))
    rows = table.to_pylist()
    assert len({r["key"] for r in rows}) == len(rows)
    return {r["key"]: (r["duplicate_of"], r["duplicate_reason"]) for r in rows if r["duplicate_of"]}


def _key(shard: int, index: int) -> str:
    return f"{shard:08d}{index:04d}"


def _world() -> dict[int, list[dict[str, Any]]]:
    pair = {"url": "http://x.example/a.jpg", "caption": "a cat"}
    return {
        0: [crawled(0, 0, reason="timeout", **pair), crawled(0, 1, **pair), crawled(0, 2, seed=7)],
        1: [crawled(1, 0, seed=7), crawled(1, 1, **pair), crawled(1, 2, **pair, seed=7)],
        2: [crawled(2, 0, url=pair["url"]), crawled(2, 1, caption=pair["caption"]), crawled(2, 2)],
    }


EXPECTED = {
    _key(1, 0): (_key(0, 2), "image"),
    _key(1, 1): (_key(0, 1), "url_caption"),
    _key(1, 2): (_key(0, 1), "url_caption"),
}


@pytest.mark.parametrize("buckets", [1, 5, 64])
def test_smallest_key_among_successes_wins(tmp_path: Path, buckets: int) -> None:
    make_images(tmp_path / "images", _world())
    sketch, _, mark = _run(tmp_path / "images", tmp_path / "dedup", buckets=buckets)
    assert _marks(tmp_path / "dedup") == EXPECTED
    assert sketch.to_json() == {"in": 8, "out": 8, "dropped": {}}
    dropped = {"duplicate_image": 1, "duplicate_url_caption": 2}
    assert mark.to_json() == {"in": 8, "out": 5, "dropped": dropped}
    table = columns.read_joined(
        str(tmp_path / "images/00000001.parquet"), [str(tmp_path / "dedup/00000001.parquet")]
    )
    assert table["duplicate_of"].null_count == 0


def test_one_kind_alone(tmp_path: Path) -> None:
    make_images(tmp_path / "images", _world())
    _run(tmp_path / "images", tmp_path / "pair", on=("url_caption",))
    assert set(_marks(tmp_path / "pair")) == {_key(1, 1), _key(1, 2)}
    _run(tmp_path / "images", tmp_path / "image", on=("image",))
    assert _marks(tmp_path / "image") == {k: (_key(0, 2), "image") for k in (_key(1, 0), _key(1, 2))}


def test_the_same_hash_and_caption_as_coyo_has_it(tmp_path: Path) -> None:
    rows = [crawled(0, i, caption=c) for i, c in enumerate(["a", "a", "b", "a", "a", None, None])]
    images = make_images(tmp_path / "images", {0: rows, 1: [crawled(1, 0, caption="a")]})
    hashes = ["f" * 16, "f" * 16, "f" * 16, "0" * 16, None, "1" * 16, "1" * 16]
    shards = {0: {"key": [_key(0, i) for i in range(7)], "phash": hashes}}
    shards[1] = {"key": [_key(1, 0)], "phash": ["0" * 16]}
    folder = str(make_columns(tmp_path / "hash", shards))
    sketch, _, _ = _run(images, tmp_path / "dedup", on="phash_caption", columns=folder, buckets=3)
    assert sketch.to_json()["in"] == 8
    assert _marks(tmp_path / "dedup") == {
        _key(0, 1): (_key(0, 0), "phash_caption"),
        _key(0, 6): (_key(0, 5), "phash_caption"),
        _key(1, 0): (_key(0, 3), "phash_caption"),
    }
    # two kinds at once: the URLs are all different
    both = ["url", "phash_caption"]
    _run(images, tmp_path / "both", on=both, columns=folder)
    assert _marks(tmp_path / "both") == _marks(tmp_path / "dedup")
    # other hashes are another result, and dedup runs again over them
    make_columns(tmp_path / "hash", {**shards, 1: {"key": [_key(1, 0)], "phash": ["2" * 16]}})
    _run(images, tmp_path / "again", on="phash_caption", columns=folder)
    assert _key(1, 0) not in _marks(tmp_path / "again")
    for changes, message in (
        ({"on": "phash_caption"}, "needs the text column 'phash'; make it by `pairmill score --kind hash`"),
        ({"on": "url", "columns": folder}, "are there for --on phash_caption"),
    ):
        with pytest.raises(ConfigError, match=message):
            _run(images, tmp_path / "x", **changes)


def test_pictures_are_hashed_where_the_parquet_has_no_hash(tmp_path: Path) -> None:
    folder = make_foreign(tmp_path / "images", _world())
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["sha256"]), path)
    _run(folder, tmp_path / "dedup", on=("image",))
    assert set(_marks(tmp_path / "dedup")) == {"000010000", "000010002"}


def test_new_shards_leave_earlier_marks_as_they_are(tmp_path: Path) -> None:
    world = _world()
    make_images(tmp_path / "images", {0: world[0], 1: world[1]})
    output = tmp_path / "dedup"
    first = _run(tmp_path / "images", output, buckets=3)
    before = manifest.list_done(str(output))
    assert [c.taken for c in _run(tmp_path / "images", output, buckets=3)] == [0, 0, 0]
    make_images(tmp_path / "images", world)
    again = _run(tmp_path / "images", output, buckets=3)
    # resolve sees all again and finds no new loser, so nothing but the new shard is marked
    assert [c.taken for c in first] == [5, 10, 5]
    assert [c.taken for c in again] == [3, 16, 3]
    after = manifest.list_done(str(output))
    # later shards have larger keys: what was said of earlier ones stands, so nothing behind it is redone
    assert {n: after[n].content for n in before} == {n: before[n].content for n in before}
    assert _marks(output) == EXPECTED


def test_stages_travel_to_workers(tmp_path: Path) -> None:
    make_images(tmp_path / "images", _world())
    for stage, folder in dedup_stages(DedupConfig(input=str(tmp_path / "images")), str(tmp_path / "dedup")):
        run_here(pickle.loads(pickle.dumps(stage)), folder)
    assert _marks(tmp_path / "dedup") == EXPECTED


def test_bad_options_and_half_done_stages_are_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "images", _world())
    for changes in ({"on": ("phash",)}, {"on": ()}, {"buckets": 0}):
        with pytest.raises(ConfigError):
            dedup_stages(DedupConfig(input=str(tmp_path / "images"), **changes), str(tmp_path / "out"))
    stages = dedup_stages(DedupConfig(input=str(tmp_path / "images"), buckets=4), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="does not exist"):
        stages[1][0].plan([])
    run_here(*stages[0])
    few = dedup_stages(DedupConfig(input=str(tmp_path / "images"), buckets=2), str(tmp_path / "out"))
    run_here(*few[1])
    with pytest.raises(ConfigError, match="2 of 4 buckets"):
        stages[2][0].plan([])


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), max_size=40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_losers_are_all_but_the_smallest_of_each_hash(hashes: list[tuple[int, int]], random: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"bucket": 0, "kind": kind, "hash": hashlib.md5(bytes([value])).digest(), "key": f"{at:012d}"}
        for at, (kind, value) in enumerate(hashes)
    ]
    smallest: dict[tuple[int, bytes], str] = {}
    expected = []
    for row in rows:
        winner = smallest.setdefault((row["kind"], row["hash"]), row["key"])
        if winner != row["key"]:
            expected.append({"key": row["key"], "kind": row["kind"], "of": winner})
    random.shuffle(rows)
    assert find_losers(pa.Table.from_pylist(rows, schema=ENTRIES)).to_pylist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12), st.integers(1, 7))
@settings(max_examples=8, deadline=None)
def test_every_chain_ends_at_a_sample_that_is_kept(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[int, int]], buckets: int
) -> None:
    base = tmp_path_factory.mktemp("chain")
    rows: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for at, (pair, picture) in enumerate(samples):
        shard = at % 2
        url = f"http://x.example/{pair}"
        rows[shard].append(crawled(shard, len(rows[shard]), url=url, caption="c", seed=picture))
    make_images(base / "images", {n: r for n, r in rows.items() if r})
    _run(base / "images", base / "dedup", buckets=buckets)
    marks = _marks(base / "dedup")
    every = {row["key"]: row for shard in rows.values() for row in shard}
    for key, (of, reason) in marks.items():
        assert of < key
        field = "url" if reason == "url_caption" else "sha256"
        assert every[of][field] == every[key][field]
    kept = [row for key, row in every.items() if key not in marks]
    assert kept
    for field in ("url", "sha256"):
        assert len({row[field] for row in kept}) == len(kept)
