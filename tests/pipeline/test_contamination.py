"""Contamination: sets of every kind, against brute force, and lists of those who mean no good."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs import cli
from pipeline import manifest
from pipeline.errors import ConfigError, InputError
from pipeline.phash import WORDS, decode_grey, hamming, phash64
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.dedup.contamination.config import ContaminationOptions
from pipeline.stages.dedup.contamination.entries import BENCHMARK, of_parquet, of_text
from pipeline.stages.dedup.contamination.lookup import Lookup
from pipeline.stages.dedup.hashes import HASHES
from pipeline.stages.score import ScoreConfig, ScoreStage
from tests.pipeline.folders import crawled, make_foreign, make_images, run_here
from tests.pipeline.photographs import textured


def _jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _photo(seed: int) -> Image.Image:
    return Image.fromarray(textured(seed, 200, 150))


def _key(shard: int, index: int) -> str:
    return f"{shard:08d}{index:04d}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with copies of photographs 0 to 3, hashed; photographs as benchmarks of every kind."""
    root = tmp_path_factory.mktemp("contamination")
    crop = _photo(1).crop((5, 4, 195, 146))
    shards = {
        0: [_jpeg(_photo(0), 60), _jpeg(_photo(20)), _jpeg(crop)],
        1: [_jpeg(_photo(2).resize((90, 70))), _jpeg(_photo(3)), b"no picture", _jpeg(_photo(21))],
    }
    rows = {n: [crawled(n, i, picture=p) for i, p in enumerate(found)] for n, found in shards.items()}
    make_images(root / "images", rows)
    run_here(ScoreStage(ScoreConfig(input=str(root / "images"), kind="hash")), root / "hash")
    for at, name in enumerate(("a.jpg", "deep/b.JPG", "deep/er/c.png", "d.jpg")):
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _photo(at).save(path, quality=95)
    (root / "pictures/readme.txt").write_text("no picture")
    (root / "pictures/broken.jpg").write_bytes(b"nor this")
    make_foreign(root / "shards", {0: [crawled(0, at, picture=_jpeg(_photo(at))) for at in (2, 3)]})
    short = [phash64(decode_grey(_jpeg(_photo(at), 95))) for at in range(4)]
    (root / "list.txt").write_text(f"# ours\n\n{short[0].upper()} first one\n{short[3]}\n")
    digest = hashlib.sha256(shards[0][1]).hexdigest()
    pq.write_table(pa.table({"name": ["twenty", "none"], "sha256": [digest, None]}), root / "list.parquet")
    return root


def _run(world: Path, output: Path, against: list[str], **changes: Any) -> dict[str, tuple[str, int]]:
    config = DedupConfig(
        input=str(world / "images"),
        columns=[str(world / "hash")],
        method="contamination",
        against=[item.replace("=", f"={world}/", 1) if item[-1] != "=" else item for item in against],
        **changes,
    )
    for stage, folder in dedup_stages(config, str(output)):
        run_here(pickle.loads(pickle.dumps(stage)), folder)
    table = pa.concat_tables(pq.read_table(p) for p in sorted(output.glob("*.parquet")))
    assert table.column_names == ["key", "contaminated_by", "contamination_distance"]
    assert len(table) == 7
    rows = table.to_pylist()
    return {
        r["key"]: (r["contaminated_by"], r["contamination_distance"]) for r in rows if r["contaminated_by"]
    }


COPIES = [_key(0, 0), _key(0, 2), _key(1, 0), _key(1, 1)]


def test_pictures_in_folders(world: Path, tmp_path: Path) -> None:
    found = _run(world, tmp_path / "out", ["coco=pictures"])
    names = ["coco/a.jpg", "coco/deep/b.JPG", "coco/deep/er/c.png", "coco/d.jpg"]
    assert {key: by for key, (by, _) in found.items()} == dict(zip(COPIES, names, strict=True))
    assert max(apart for _, apart in found.values()) <= 16
    record = next(manifest.iter_all(str(tmp_path / "out/_benchmarks")))
    assert record["counts"] == {"in": 5, "out": 4, "dropped": {"undecodable": 1}}
    counts = [record["counts"]["dropped"] for record in manifest.iter_all(str(tmp_path / "out"))]
    assert counts == [{"contaminated": 2}, {"contaminated": 2}]


def test_shards_lists_hash_columns_and_checksums(world: Path, tmp_path: Path) -> None:
    found = _run(world, tmp_path / "a", ["flickr=shards"])
    assert {k: by for k, (by, _) in found.items()} == {
        COPIES[2]: "flickr/000000002",
        COPIES[3]: "flickr/000000003",
    }
    found = _run(world, tmp_path / "b", ["list=list.txt", "sums=list.parquet"])
    assert found[_key(0, 1)] == ("sums/twenty", 0)
    assert {k: by for k, (by, _) in found.items() if k != _key(0, 1)} == {
        COPIES[0]: "list/first one",
        COPIES[3]: f"list/{phash64(decode_grey(_jpeg(_photo(3), 95)))}",
    }
    found = _run(world, tmp_path / "c", ["self=hash"])
    assert found == {key: (f"self/{key}", 0) for key in [*COPIES, _key(0, 1), _key(1, 3)]}


def test_the_nearest_is_named_and_the_first_name_of_equal_ones(world: Path, tmp_path: Path) -> None:
    every = ["z=hash", "coco=pictures", "b=hash"]
    found = _run(world, tmp_path / "out", every)
    assert found == {key: (f"b/{key}", 0) for key in [*COPIES, _key(0, 1), _key(1, 3)]}
    assert _run(world, tmp_path / "other", every[::-1]) == found, "in any order of the sets"


def test_a_smaller_distance_finds_less(world: Path, tmp_path: Path) -> None:
    strict = ContaminationOptions(distance=0, short_distance=0)
    found = _run(world, tmp_path / "out", ["coco=pictures", "list=list.txt"], contamination=strict)
    assert set(found) <= set(COPIES)
    assert all(apart == 0 for _, apart in found.values())


def test_what_the_sets_hold_is_part_of_the_digest(world: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("0123456789abcdef first\n")
    images, hashes = str(world / "images"), str(world / "hash")

    def run(**changes: Any) -> list[int]:
        config = DedupConfig(
            input=images, columns=hashes, method="contamination", against=f"x={listed}", **changes
        )
        return [
            run_here(stage, folder).taken for stage, folder in dedup_stages(config, str(tmp_path / "out"))
        ]

    assert run() == [1, 7]
    assert run() == [0, 0]
    listed.write_text("0123456789abcdef first\nfedcba9876543210 second\n")
    with pytest.raises(ConfigError, match="--overwrite"):
        run()


def test_shards_that_follow_are_compared_alone(tmp_path: Path) -> None:
    photos = [_jpeg(_photo(at)) for at in range(3)]
    rows = {n: [crawled(n, 0, picture=photo)] for n, photo in enumerate(photos)}
    (tmp_path / "set").mkdir()
    (tmp_path / "set/x.jpg").write_bytes(photos[2])
    config = DedupConfig(
        input=str(tmp_path / "images"),
        columns=str(tmp_path / "hash"),
        method="contamination",
        against=[f"x={tmp_path}/set"],
    )
    taken = []
    for shards in (2, 3):
        make_images(tmp_path / "images", {n: rows[n] for n in range(shards)})
        run_here(ScoreStage(ScoreConfig(input=str(tmp_path / "images"), kind="hash")), tmp_path / "hash")
        stages = dedup_stages(config, str(tmp_path / "out"))
        taken.append([run_here(stage, folder).taken for stage, folder in stages])
    assert taken == [[1, 2], [0, 1]]
    assert pq.read_table(tmp_path / "out/00000002.parquet")["contaminated_by"].to_pylist() == ["x/x.jpg"]


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ([], "give --against"),
        (["coco"], "must be NAME=PLACE"),
        (["co co=x"], "must be NAME=PLACE"),
        (["coco="], "must be NAME=PLACE"),
        (["a=x", "a=y"], "two sets have the name 'a'"),
        (["a=nowhere"], "0 files have this name"),
        (["a=empty"], "no shards, no hashes and no pictures"),
    ],
)
def test_sets_that_are_none(tmp_path: Path, world: Path, against: list[str], message: str) -> None:
    (world / "empty").mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match=message):
        _run(world, tmp_path / "out", against)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no hash"),
        (b"# nothing\n", "has no hash"),
        (b"0123456789abcdef\n0123456789abcde\n", "line 2: '0123456789abcde' is no hash"),
        (b"0123456789abcdefg\n", "line 1"),
        (b"http://x.example/a.jpg\n", "line 1"),
        (bytes(range(256)) * 20, "is no hash"),
        (b"a" * 64 + b"\n", "is no hash"),
    ],
)
def test_hostile_lists(tmp_path: Path, world: Path, content: bytes, message: str) -> None:
    (world / "hostile.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        _run(world, tmp_path / "out", ["a=hostile.txt"])


def test_lists_are_read_as_people_write_them(tmp_path: Path) -> None:
    text = "\ufeff# x\r\n0123456789ABCDEF, a name, with commas\r\n\r\nfedcba9876543210\tb\n0000000000000000"
    (tmp_path / "x.txt").write_bytes(text.encode())
    assert of_text("s", str(tmp_path / "x.txt"))["name"].to_pylist() == [
        "a name, with commas",
        "b",
        "0000000000000000",
    ]
    long = pa.table({"key": [7, 8], "phash_long": ["0f" * 32, None], "phash": [None, None]})
    pq.write_table(long, tmp_path / "x.parquet")
    table = of_parquet("s", str(tmp_path / "x.parquet"))
    assert table["name"].to_pylist() == ["7"]
    assert table["long"][0].as_py() == b"\x0f" * 160
    pq.write_table(pa.table({"phash": ["xyz"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="phash 'xyz' must have 16 hex digits"):
        of_parquet("s", str(tmp_path / "x.parquet"))
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "y.parquet")
    config = DedupConfig(input="x", columns="y", method="contamination", against=f"a={tmp_path}/y.parquet")
    stage, _ = dedup_stages(config, str(tmp_path / "out"))[0]
    with pytest.raises(ConfigError, match="no column of hashes"):
        stage.plan([])


def test_the_command_line_keeps_places_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("0" * 16)
    line = ["--method", "contamination", "--against", "[a=list.txt, b=s3://c/d]", "--output", "out"]
    _, config, request = cli.parse_verb("dedup", [*line, "--contamination.distance", "7"])
    assert config.against == ["a=list.txt", "b=s3://c/d"]
    assert config.contamination == ContaminationOptions(distance=7)
    assert f"a={tmp_path}/list.txt" in request.resolved
    assert "b=s3://c/d" in request.resolved


def _table(short: np.ndarray | None, long: np.ndarray | None, sets: list[str]) -> pa.Table:
    rows = []
    for at, name in enumerate(sets):
        row = {"set": name, "name": str(at % 4)}
        row["short"] = None if short is None else int(short[at]).to_bytes(8, "big")
        row["long"] = None if long is None else long[at].astype(">u8").tobytes()
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=BENCHMARK)


@given(st.integers(0, 2**32), st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_short_hashes_are_found_as_by_brute_force(seed: int, distance: int) -> None:
    random = np.random.default_rng(seed)
    known = random.integers(0, 2**64, 12, dtype=np.uint64)
    asked = known[random.integers(0, 12, 20)]
    for _ in range(8):
        asked ^= np.where(
            random.random(20) < 0.5, np.uint64(1) << random.integers(0, 64, 20, np.uint64), 0
        ).astype(np.uint64)
    sets = [f"s{n}" for n in random.integers(0, 3, 12)]
    lookup = Lookup(_table(known, None, sets), distance=0, short_distance=distance)
    label, apart = lookup.split(lookup.by_short(asked))
    expected = []
    for value in asked:
        near = [
            ((value ^ k).item().bit_count(), f"{s}/{at % 4}")
            for at, (k, s) in enumerate(zip(known, sets, strict=True))
        ]
        near = [pair for pair in near if pair[0] <= distance]
        expected.append(min(near) if near else (None, None))
    assert label.to_pylist() == [name for _, name in expected]
    assert apart.to_pylist() == [None if d is None else 4 * d for d, _ in expected]


@given(st.integers(0, 2**32), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_long_hashes_within_three_bits_are_found_as_by_brute_force(seed: int, distance: int) -> None:
    random = np.random.default_rng(seed)
    known = random.integers(0, 2**64, (10, HASHES, WORDS), dtype=np.uint64)
    known[5] = known[4]
    asked = known[random.integers(0, 10, 16)].copy()
    for at in range(16):
        asked[at, 0] = asked[at, random.integers(0, HASHES)]
        for _ in range(random.integers(0, 5)):
            word = (at, random.integers(0, HASHES), random.integers(0, WORDS))
            asked[word] ^= np.uint64(1) << np.uint64(random.integers(0, 64))
    sets = ["b", "a", "b", "a", "c", "a", "c", "c", "b", "b"]
    lookup = Lookup(_table(None, known, sets), distance=distance, short_distance=0)
    label, apart = lookup.split(lookup.by_long(asked))
    for at in range(16):
        near = [
            (
                int(min(hamming(known[k], asked[at, 0]).min(), hamming(asked[at], known[k, 0]).min())),
                f"{s}/{k % 4}",
            )
            for k, s in enumerate(sets)
        ]
        best = min(near)
        found = (apart[at].as_py(), label[at].as_py())
        assert found == (best if best[0] <= distance else (None, None))


def test_ten_thousand_blank_pictures_against_a_thousand() -> None:
    known = np.zeros((1000, HASHES, WORDS), np.uint64)
    lookup = Lookup(_table(None, known, ["s"] * 1000), distance=16, short_distance=4)
    label, apart = lookup.split(lookup.by_long(np.zeros((10_000, HASHES, WORDS), np.uint64)))
    assert set(label.to_pylist()) == {"s/0"}
    assert set(apart.to_pylist()) == {0}
    empty = Lookup(BENCHMARK.empty_table(), distance=16, short_distance=4)
    assert empty.split(empty.by_long(known))[0].null_count == 1000
