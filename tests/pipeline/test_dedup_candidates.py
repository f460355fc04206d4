"""Dedup of candidates: by position, before any picture; old marks stand when archives follow; flat memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import candidates, columns, manifest
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import candidate_key
from pipeline.stage import Counts
from pipeline.stages.dedup import DedupConfig, dedup_stages
from tests.pipeline.folders import make_candidates, make_images, run_here

Pairs = list[tuple[str | None, str | None]]


def _run(folder: Path, output: Path, **changes: Any) -> list[Counts]:
    config = DedupConfig(input=str(folder), **changes)
    return [run_here(stage, place) for stage, place in dedup_stages(config, str(output))]


def _marks(output: Path) -> dict[str, tuple[str, str]]:
    table = pa.concat_tables(pq.read_table(p) for p in sorted(output.glob("*.parquet")))
    rows = [r for r in table.to_pylist() if r["duplicate_of"]]
    return {r["key"]: (r["duplicate_of"], r["duplicate_reason"]) for r in rows}


PARTS: dict[int, Pairs] = {
    0: [("http://a/1", "a cat"), ("http://a/2", "a dog"), ("http://a/1", "a cat"), ("http://a/1", "other")],
    1: [("http://a/3", "a cat"), ("http://a/2", "a dog"), (None, "no url"), (None, "nor here")],
    2: [("http://a/1", None), ("http://a/1", "")],
}


def test_url_and_caption_are_compared_unless_said_otherwise(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path / "candidates", PARTS)
    sketch, _, mark = _run(folder, tmp_path / "dedup", buckets=3)
    key = candidate_key
    assert _marks(tmp_path / "dedup") == {
        key(0, 2): (key(0, 0), "url_caption"),
        key(1, 1): (key(0, 1), "url_caption"),
        key(2, 1): (key(2, 0), "url_caption"),
    }
    assert (sketch.taken, sketch.kept) == (10, 10)
    assert mark.to_json() == {"in": 10, "out": 7, "dropped": {"duplicate_url_caption": 3}}
    table = candidates.read_part(str(folder / "part-00000001.parquet"))
    sidecar = columns.read_column(str(tmp_path / "dedup/00000001.parquet"))
    assert sidecar["key"].to_pylist() == table["key"].to_pylist() == [key(1, i) for i in range(4)]
    assert columns.join(table, [("dedup", sidecar)])["duplicate_of"].to_pylist()[1] == key(0, 1)


def test_on_the_url_alone(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path / "candidates", PARTS)
    _run(folder, tmp_path / "dedup", on="url", buckets=2)
    key = candidate_key
    of = {k: v[0] for k, v in _marks(tmp_path / "dedup").items()}
    assert of == {
        **{key(0, 2): key(0, 0), key(0, 3): key(0, 0), key(1, 1): key(0, 1)},
        **{key(2, 0): key(0, 0), key(2, 1): key(0, 0)},
    }, "rows without a URL are no duplicates of each other"
    _run(folder, tmp_path / "both", on=["url", "url_caption"])
    assert _marks(tmp_path / "both")[key(0, 2)] == (key(0, 0), "url_caption"), "the narrower reason first"
    assert _marks(tmp_path / "both")[key(0, 3)] == (key(0, 0), "url")


def test_images_cannot_be_compared_before_the_crawl(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path / "candidates", PARTS)
    with pytest.raises(ConfigError, match="compare images after the crawl"):
        _run(folder, tmp_path / "dedup", on=["image"])
    with pytest.raises(ConfigError, match="give one or several of url_caption, image, url"):
        _run(folder, tmp_path / "dedup", on=["phash"])


def test_parts_of_another_maker_are_candidates_too(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    table = pa.table({"key": ["x", "y"], "url": ["http://a/1"] * 2, "caption": ["c"] * 2})
    pq.write_table(table, folder / "part-7.parquet")
    assert candidates.is_candidates(str(folder))
    _run(folder, tmp_path / "dedup")
    assert _marks(tmp_path / "dedup") == {candidate_key(7, 1): (candidate_key(7, 0), "url_caption")}
    pq.write_table(table.drop_columns(["caption"]), folder / "part-7.parquet")
    with pytest.raises(ConfigError, match="no column 'caption'"):
        _run(folder, tmp_path / "again")
    assert not candidates.is_candidates(str(make_images(tmp_path / "images", {0: []})))
    assert not candidates.is_candidates(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="part-N"):
        candidates.part_number("x/00000000.parquet")


def test_archives_that_follow_change_no_mark_of_older_parts(tmp_path: Path) -> None:
    first = {n: PARTS[n] for n in (0, 1)}
    folder, output = make_candidates(tmp_path / "candidates", first), tmp_path / "dedup"
    _run(folder, output, buckets=3)
    before = manifest.list_done(str(output))
    old = {p.name: p.read_bytes() for p in output.glob("*.parquet")}
    make_candidates(folder, {**PARTS, 3: PARTS[0] + PARTS[1]})
    sketch, resolve, _ = _run(folder, output, buckets=3)
    assert (sketch.taken, resolve.taken) == (10, 14), "old parts are not hashed again"
    after = manifest.list_done(str(output))
    assert {n: after[n].content for n in before} == {n: before[n].content for n in before}
    assert {name: (output / name).read_bytes() for name in old} == old
    assert len(_marks(output)) == 3 + 6
    again = _run(folder, output, buckets=3)
    assert [c.taken for c in again] == [0, 0, 0]


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["u", "v", "", None]), st.sampled_from(["c", "", None])), max_size=7
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 6),
)
@settings(max_examples=12, deadline=None)
def test_first_of_each_pair_is_kept(
    tmp_path_factory: pytest.TempPathFactory, parts: list[Pairs], buckets: int
) -> None:
    base = tmp_path_factory.mktemp("pairs")
    folder = make_candidates(base / "candidates", dict(enumerate(parts)))
    _run(folder, base / "dedup", buckets=buckets)
    seen: dict[tuple[str, str], str] = {}
    expected = {}
    for part, pairs in enumerate(parts):
        for row, (url, caption) in enumerate(pairs):
            key = candidate_key(part, row)
            winner = seen.setdefault((url or "", caption or ""), key) if url is not None else key
            if winner != key:
                expected[key] = (winner, "url_caption")
    assert _marks(base / "dedup") == expected


#: runs one of the stages in a process of its own; prints by how many MB it grew at most, and the rows kept
_MEASURE = """
import re, sys
from pathlib import Path
from pipeline.commit import run_and_commit
from pipeline.planning import make_plan
from pipeline.stages.dedup import DedupConfig, dedup_stages
folder, output, buckets, wanted = sys.argv[1:]
# not getrusage, which counts the process that this one was forked from
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
stages = dedup_stages(DedupConfig(input=folder, buckets=int(buckets)), output)
[(stage, place)] = [(s, p) for s, p in stages if s.name == wanted]
todo = make_plan(stage, place).todo
before, kept = peak(), 0
stage.start()
for unit in todo:
    kept += run_and_commit(stage, unit, place)["counts"]["out"]
print(peak() - before, kept)
"""


def test_memory_stays_flat_when_parts_and_buckets_double(tmp_path: Path) -> None:
    rows = 40_000
    folder = tmp_path / "candidates"
    folder.mkdir()

    def add(part: int) -> None:
        urls = [f"http://site{(part * rows + i) * 7919 % 150_000}.example/picture.jpg" for i in range(rows)]
        pq.write_table(
            pa.table({"url": urls, "caption": ["a caption of some length"] * rows}),
            folder / f"part-{part:08d}.parquet",
        )

    # what is held, not what an allocator keeps for later, which differs from run to run
    plain = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}

    def measure(buckets: int) -> dict[str, float]:
        found = {}
        for stage in ("dedup-sketch", "dedup-resolve", "dedup"):
            words = [sys.executable, "-c", _MEASURE, str(folder), str(tmp_path / f"{buckets}"), str(buckets)]
            done = subprocess.run([*words, stage], capture_output=True, text=True, check=True, env=plain)
            grown, kept = done.stdout.split()[-2:]
            found[stage] = float(grown)
        assert int(kept) == min(150_000, rows * len(list(folder.iterdir())))
        return found

    for part in range(4):
        add(part)
    small = measure(4)
    for part in range(4, 8):
        add(part)
    large = measure(8)
    for stage, peak in small.items():
        assert large[stage] < 1.15 * peak + 4, (small, large)
