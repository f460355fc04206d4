"""Near duplicates: against brute force, over folders that grow, with blanks, and what is refused."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import columns, manifest
from pipeline.errors import ConfigError, InputError
from pipeline.phash import WORDS, band_values, hamming
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.dedup.hashes import HASHES
from pipeline.stages.dedup.near import pairs
from pipeline.stages.dedup.near.config import NearOptions
from pipeline.stages.dedup.near.entries import ENTRIES, LOSERS, ROWS, make_entries
from pipeline.stages.dedup.near.mark import marks
from pipeline.stages.dedup.near.pairs import find_losers
from pipeline.stages.score import ScoreConfig, ScoreStage
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images, run_here
from tests.pipeline.photographs import textured

Found = dict[str, tuple[str, int]]


def _jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _photo(seed: int) -> Image.Image:
    return Image.fromarray(textured(seed, 200, 150))


def _world() -> dict[int, list[dict[str, Any]]]:
    """Photographs in shard 0, copies of three of them and others in 1, blanks in both and in 2."""
    photos = [_photo(seed) for seed in range(6)]
    blank = [_jpeg(Image.new("RGB", (60, 40), (level,) * 3)) for level in (0, 90, 255)]
    pictures = {
        0: [_jpeg(photos[0]), blank[0], _jpeg(photos[1]), _jpeg(photos[2])],
        1: [
            _jpeg(photos[0].resize((100, 75))),
            _jpeg(photos[1], 50),
            _jpeg(photos[2].crop((5, 4, 195, 146))),
            _jpeg(photos[3]),
            b"no picture",
            *blank,
        ],
        2: [_jpeg(photos[4]), blank[1], _jpeg(photos[0]), _jpeg(photos[3].resize((300, 200)))],
    }
    return {n: [crawled(n, at, picture=p) for at, p in enumerate(found)] for n, found in pictures.items()}


def _key(shard: int, index: int) -> str:
    return f"{shard:08d}{index:04d}"


EXPECTED = {
    _key(1, 0): _key(0, 0),
    _key(1, 1): _key(0, 2),
    _key(1, 2): _key(0, 3),
    **{_key(1, at): _key(0, 1) for at in (5, 6, 7)},
    _key(2, 1): _key(0, 1),
    _key(2, 2): _key(0, 0),
    _key(2, 3): _key(1, 3),
}


def _hash(images: Path, output: Path) -> Path:
    run_here(ScoreStage(ScoreConfig(input=str(images), kind="hash")), output)
    return output


def _run(images: Path, hashes: Path, output: Path, **changes: Any) -> list[Any]:
    config = DedupConfig(input=str(images), columns=str(hashes), method="near", **changes)
    stages = dedup_stages(config, str(output))
    return [run_here(pickle.loads(pickle.dumps(stage)), folder) for stage, folder in stages]


def _marks(output: Path) -> Found:
    table = pa.concat_tables(pq.read_table(p) for p in sorted(output.glob("*.parquet")))
    assert table.column_names == ["key", "near_duplicate_of", "near_distance"]
    return {
        r["key"]: (r["near_duplicate_of"], r["near_distance"])
        for r in table.to_pylist()
        if r["near_duplicate_of"]
    }


def test_copies_are_marked_and_shards_that_follow_change_nothing(tmp_path: Path) -> None:
    world = _world()
    make_images(tmp_path / "images", {n: world[n] for n in (0, 1)})
    images, hashes, output = tmp_path / "images", tmp_path / "hash", tmp_path / "near"
    _run(images, _hash(images, hashes), output, buckets=3)
    before = manifest.list_done(str(output))
    make_images(images, world)
    sketch, _, _ = _run(images, _hash(images, hashes), output, buckets=3)
    assert sketch.taken == 4, "old shards keep their sketch"
    found = _marks(output)
    assert {key: of for key, (of, _) in found.items()} == EXPECTED
    assert all(0 <= apart <= 16 for _, apart in found.values())
    after = manifest.list_done(str(output))
    assert {n: after[n].content for n in before} == {n: before[n].content for n in before}
    # as if all had been there from the start, in any number of buckets
    for buckets in (1, 7):
        _, _, whole = _run(images, hashes, tmp_path / f"b{buckets}", buckets=buckets)
        assert _marks(tmp_path / f"b{buckets}") == found
        assert whole.to_json() == {"in": 16, "out": 7, "dropped": {"near_duplicate": 9}}
    joined = columns.read_joined(str(images / "00000001.parquet"), [str(output / "00000001.parquet")])
    assert joined["near_duplicate_of"].null_count == 2


def test_a_foreign_folder_and_a_smaller_distance(tmp_path: Path) -> None:
    make_foreign(tmp_path / "images", _world())
    hashes = _hash(tmp_path / "images", tmp_path / "hash")
    _run(tmp_path / "images", hashes, tmp_path / "near")
    assert {k: of for k, (of, _) in _marks(tmp_path / "near").items()} == {
        f"{int(k[:8]):05d}{k[8:]}": f"{int(of[:8]):05d}{of[8:]}" for k, of in EXPECTED.items()
    }
    _run(tmp_path / "images", hashes, tmp_path / "same", near=NearOptions(distance=0))
    assert {k for k, _ in _marks(tmp_path / "same").items()} <= {f"{int(k[:8]):05d}{k[8:]}" for k in EXPECTED}


def test_another_distance_over_an_output_is_refused_and_its_sketch_kept(tmp_path: Path) -> None:
    make_images(tmp_path / "images", _world())
    hashes = _hash(tmp_path / "images", tmp_path / "hash")
    _run(tmp_path / "images", hashes, tmp_path / "near")
    with pytest.raises(ConfigError, match="distance"):
        _run(tmp_path / "images", hashes, tmp_path / "near", near=NearOptions(distance=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "nearly"}, "must be one of exact, near"),
        ({"on": "url"}, "on 'url' means nothing to method 'near'"),
        ({"against": ["a=b"]}, "means nothing to method 'near'"),
        (
            {"method": "exact", "near": NearOptions(distance=3)},
            "near.distance 3 means nothing to method 'exact'",
        ),
        ({"near": NearOptions(distance=65)}, "near.distance 65"),
        ({"near": NearOptions(bands=11)}, "together at most 256"),
        ({"near": NearOptions(band_bits=60)}, "near.band_bits 60"),
        ({"near": NearOptions(most=3)}, "near.most 3"),
        ({"buckets": 0}, "buckets 0"),
        ({"columns": []}, "score --kind hash"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], message: str) -> None:
    config = {"input": "images", "columns": ["hash"], "method": "near", **changes}
    if config["method"] == "exact":
        config["columns"] = []
    with pytest.raises(ConfigError, match=message):
        dedup_stages(DedupConfig(**config), "out")


def test_columns_without_hashes_or_with_others_are_refused(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", _world())
    make_columns(tmp_path / "clip", {0: {"key": ["a"], "clip_score": [0.5]}})
    with pytest.raises(ConfigError, match=r"0 of .* have"):
        _run(images, tmp_path / "clip", tmp_path / "near")
    make_columns(tmp_path / "few", {0: {"key": ["a"], "phash_long": ["ab"], "phash_inner": ["cd"]}})
    with pytest.raises(ConfigError, match="no shard 00000001"):
        _run(images, tmp_path / "few", tmp_path / "near")
    bad = {n: {"key": ["a"], "phash_long": ["ab"], "phash_inner": ["cd"]} for n in range(3)}
    make_columns(tmp_path / "bad", bad)
    with pytest.raises(InputError, match="phash_long must have 64 hex digits"):
        _run(images, tmp_path / "bad", tmp_path / "near")


def _brute(keys: list[str], hashes: np.ndarray, distance: int, bands: int, bits: int) -> Found:
    values = band_values(hashes.reshape(-1, WORDS), bands, bits).reshape(len(keys), HASHES, bands)
    found: Found = {}
    for one, key in enumerate(keys):
        near = [
            (keys[other], int(hamming(hashes[one, a], hashes[other, b])))
            for other in range(len(keys))
            for a in range(HASHES)
            for b in range(HASHES)
            if keys[other] < key and not (a and b) and (values[one, a] == values[other, b]).any()
        ]
        near = [(of, apart) for of, apart in near if apart <= distance]
        if near:
            found[key] = min(near)
    return found


def _losers(entries: pa.Table, buckets: int, distance: int, most: int = 4096) -> Found:
    found: Found = {}
    for bucket in range(buckets):
        part = entries.filter(pc.equal(entries["bucket"], bucket))
        for row in find_losers(part, distance=distance, most=most)[0].to_pylist():
            this = (row["of"], row["distance"])
            found[row["key"]] = min(this, found.get(row["key"], this))
    return found


def _related(random: np.random.Generator, number: int) -> np.ndarray:
    """Hashes of which many are copies of others, with a few bits flipped, whole or inner."""
    hashes = random.integers(0, 2**64, (number, HASHES, WORDS), dtype=np.uint64)
    for at in range(1, number):
        if random.random() < 0.8:
            hashes[at] = hashes[random.integers(0, at)]
        if random.random() < 0.3:
            hashes[at, 0] = hashes[random.integers(0, at), random.integers(0, HASHES)]
        for _ in range(random.integers(0, 12)):
            word = (at, random.integers(0, HASHES), random.integers(0, WORDS))
            hashes[word] ^= np.uint64(1) << np.uint64(random.integers(0, 64))
    return hashes


@given(st.integers(0, 2**32), st.integers(0, 24), st.integers(1, 6), st.integers(8, 40), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_bands_find_what_brute_force_finds(
    seed: int, distance: int, bands: int, bits: int, buckets: int
) -> None:
    random = np.random.default_rng(seed)
    hashes = _related(random, 14)
    keys = [f"{key:012d}" for key in random.permutation(14)]
    entries = make_entries(pa.array(keys), hashes, bands=bands, band_bits=bits, buckets=buckets)
    expected = _brute(keys, hashes, distance, bands, bits)
    assert _losers(entries, buckets, distance) == expected
    shuffled = entries.take(pa.array(random.permutation(len(entries))))
    assert _losers(shuffled, buckets, distance) == expected
    small, pairs.SMALL = pairs.SMALL, 1
    try:
        assert _losers(entries, buckets, distance) == expected, "large groups find the same"
    finally:
        pairs.SMALL = small


@given(st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_all_that_are_nearer_than_the_number_of_bands_are_found(seed: int, bands: int) -> None:
    random = np.random.default_rng(seed)
    hashes = _related(random, 12)
    keys = [f"{at:012d}" for at in range(12)]
    entries = make_entries(pa.array(keys), hashes, bands=bands, band_bits=16, buckets=1)
    found = _losers(entries, 1, bands - 1)
    whole = {
        (one, other)
        for one in range(12)
        for other in range(one)
        if min(hamming(hashes[one], hashes[other, 0]).min(), hamming(hashes[other], hashes[one, 0]).min())
        < bands
    }
    assert {key: of for key, (of, _) in found.items()} == {
        keys[one]: keys[min(o for a, o in whole if a == one)] for one in {a for a, _ in whole}
    }
    for of, _ in found.values():
        while of in found:
            of = found[of][0]
        assert of not in found


def test_a_part_that_many_have_is_searched_in_bounded_work() -> None:
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, (700, HASHES, WORDS), dtype=np.uint64)
    hashes[:, :, 0] = 0
    # copies of the smallest keys are found, whatever the number of others
    hashes[600:, 0] = hashes[:100, 0] ^ np.array([0, 0, 0, 1], np.uint64)
    keys = pa.array([f"{at:012d}" for at in range(700)])
    entries = make_entries(keys, hashes, bands=1, band_bits=32, buckets=1)
    losers, skipped = find_losers(entries, distance=4, most=300)
    assert skipped == 700 * HASHES - 300
    assert {r["key"]: r["of"] for r in losers.to_pylist()} == {
        f"{600 + at:012d}": f"{at:012d}" for at in range(60)
    }
    everything, skipped = find_losers(entries, distance=4, most=4096)
    assert (len(everything), skipped) == (100, 0)


def test_a_thousand_equal_pictures_are_one_entry(tmp_path: Path) -> None:
    keys = [f"{at:012d}" for at in range(1000)]
    table = {"key": keys, "phash_long": ["0" * 64] * 1000, "phash_inner": ["0" * 256] * 1000}
    images = make_images(tmp_path / "images", {0: [crawled(0, 0)]})
    make_columns(tmp_path / "hash", {0: table})
    _run(images, tmp_path / "hash", tmp_path / "near", buckets=1)
    assert len(pq.read_table(tmp_path / "near/_sketch/00000000.parquet")) == 4, "one for each band"
    assert _marks(tmp_path / "near") == dict.fromkeys(keys[1:], (keys[0], 0))


def test_where_the_kept_one_was_taken_down_the_next_stands_for_it() -> None:
    rows = [("b", "a", True), ("c", "a", True), ("d", None, True), ("e", None, False)]
    table = pa.Table.from_pylist([dict(zip(ROWS.names, row, strict=True)) for row in rows], schema=ROWS)
    of, distance = marks(table, LOSERS.empty_table())
    assert (of.to_pylist(), distance.to_pylist()) == ([None, "b", None, None], [None, 0, None, None])
    losers = pa.Table.from_pylist(
        [{"key": "d", "of": "b", "distance": 7}, {"key": "d", "of": "a", "distance": 9}], schema=LOSERS
    )
    assert marks(table, losers)[0].to_pylist() == [None, "b", "a", None]


def test_nearly_flat_pictures_are_near_only_where_their_few_bits_are_equal() -> None:
    sky, wall, blank = (np.zeros((HASHES, WORDS), np.uint64) for _ in range(3))
    sky[:, 0] = 0b1101 << 20
    wall[:, 3] = 0b11 << 40
    keys = pa.array([f"{at:012d}" for at in range(6)])
    hashes = np.stack([blank, sky, wall, sky, blank, wall])
    entries = make_entries(keys, hashes, bands=4, band_bits=24, buckets=1)
    assert _losers(entries, 1, 16) == {
        keys[at].as_py(): (keys[of].as_py(), 0) for at, of in ((3, 1), (4, 0), (5, 2))
    }


def test_nothing_to_compare() -> None:
    assert find_losers(ENTRIES.empty_table(), distance=3, most=300)[0].schema == LOSERS
    none = make_entries(
        pa.array([], pa.string()), np.empty((0, HASHES, WORDS), np.uint64), bands=4, band_bits=24, buckets=3
    )
    assert len(none) == 0
