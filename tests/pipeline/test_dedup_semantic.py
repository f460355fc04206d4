"""Dedup by meaning: who is a duplicate, independence of blocks and order, appended shards, bad input."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import main
from pipeline import columns, manifest
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import sample_key
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.dedup.semantic import pairs, vectors
from pipeline.stages.dedup.semantic.config import SemanticOptions
from tests.pipeline.folders import crawled, make_candidates, make_columns, make_images, run_here
from tests.pipeline.semantic_world import (
    COLUMN,
    all_bytes,
    embedding_column,
    expected,
    make_world,
    marks,
    planted,
    run_semantic,
)

D = 8
HOME = Path(__file__).resolve().parents[2]


def _near_world(seed: int, rows: int, dimensions: int = D) -> list[Any]:
    """Vectors of which many lie close to another, some are equal and some are missing."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4, dimensions))
    found: list[Any] = list(
        centres[rng.integers(0, 4, rows)] + 0.25 * rng.standard_normal((rows, dimensions))
    )
    for copy in rng.integers(0, rows, rows // 6):
        found[copy] = found[int(rng.integers(0, rows))]
    for missing in rng.integers(0, rows, rows // 12):
        found[missing] = None
    return [None if row is None else row / np.linalg.norm(row) for row in found]


def _keys(shards: dict[int, Any]) -> dict[str, Any]:
    return {sample_key(n, i): row for n, rows in shards.items() for i, row in enumerate(rows)}


@pytest.mark.parametrize(("buckets", "group"), [(1, 1), (3, 2), (7, 16)])
def test_one_cluster_is_the_definition_word_for_word(tmp_path: Path, buckets: int, group: int) -> None:
    rows = _near_world(0, 60)
    shards = {0: rows[:20], 1: rows[20:25], 4: rows[25:]}
    images, embedding = make_world(tmp_path, shards, D)
    counts = run_semantic(images, embedding, tmp_path / "out", buckets=buckets, clusters=1, group=group)
    found = marks(tmp_path / "out")
    assert list(found) == list(_keys(shards))
    plain = expected({k: v for k, v in _keys(shards).items() if v is not None}, 0.05)
    duplicates = 0
    for key, row in found.items():
        of, similarity = plain.get(key, (None, None))
        assert (row["semantic_duplicate_of"], row["semantic_similarity"]) == (of, similarity)
        assert row["semantic_cluster"] == (0 if key in plain else None)
        duplicates += of is not None
    assert duplicates > 20
    missing = len(found) - len(plain)
    assert missing
    assert counts[1].to_json() == {"in": 60, "out": 60 - missing, "dropped": {"no_embedding": missing}}
    assert counts[4].to_json() == {
        "in": 60,
        "out": 60 - duplicates,
        "dropped": {"semantic_duplicate": duplicates},
    }
    joined = columns.read_joined(str(images / "00000004.parquet"), [str(tmp_path / "out/00000004.parquet")])
    assert joined["semantic_similarity"].type == pa.float32()


def test_far_from_the_centroid_stays_as_in_semdedup(tmp_path: Path) -> None:
    shards = {0: _near_world(1, 40)}
    images, embedding = make_world(tmp_path, shards, D)
    run_semantic(images, embedding, tmp_path / "out", clusters=1, keep="far_from_centroid", eps=0.1)
    rows = {k: v for k, v in _keys(shards).items() if v is not None}
    centroid = vectors.from_arrow(pq.read_table(tmp_path / "out/_centroids/00000000.parquet")["vector"])[0]
    # one cluster's centroid is the mean direction
    distinct = {tuple(np.float16(v)): v for v in rows.values()}
    mean = np.mean([v / np.linalg.norm(v) for v in distinct.values()], axis=0)
    assert np.allclose(centroid / vectors.scale(D), mean / np.linalg.norm(mean), atol=2e-3)
    order = pq.read_table(tmp_path / "out/_assign/00000000.parquet").to_pylist()
    order.sort(key=lambda r: (r["centroid_similarity"], r["key"]))
    plain = expected({r["key"]: rows[r["key"]] for r in order}, 0.1)
    found = marks(tmp_path / "out")
    assert {k: found[k]["semantic_duplicate_of"] for k in plain} == {k: v[0] for k, v in plain.items()}
    assert any(of > key for key, (of, _) in plain.items() if of)  # a larger key has won


def test_planted_copies_are_found_over_many_clusters(tmp_path: Path) -> None:
    rows, of = planted(3, originals=1500, copies=300, dimensions=32, cosine=0.985)
    places = np.random.default_rng(4).permutation(len(rows))
    shards = {n: [rows[i] for i in places[n * 300 : n * 300 + 300]] for n in range(6)}
    images, embedding = make_world(tmp_path, shards, 32)
    run_semantic(images, embedding, tmp_path / "out", clusters=30)
    found = marks(tmp_path / "out")
    keys = {int(place): key for place, key in zip(places, found, strict=True)}
    family = {keys[i]: int(of[i] if of[i] >= 0 else i) for i in range(len(rows))}
    assert len({row["semantic_cluster"] for row in found.values()}) >= 30
    lost = {k: row["semantic_duplicate_of"] for k, row in found.items() if row["semantic_duplicate_of"]}
    assert all(
        family[k] == family[v] for k, v in lost.items()
    )  # originals lie far apart: nothing else is lost
    assert len(lost) >= 0.85 * 300, len(lost)  # a copy across the border of two clusters is not seen


def test_runs_agree_to_the_bit_whatever_the_order_and_the_layout(tmp_path: Path) -> None:
    shards = {n: _near_world(n, 40) for n in range(4)}
    images, embedding = make_world(tmp_path, shards, D)
    run_semantic(images, embedding, tmp_path / "one", buckets=4, clusters=6)
    run_semantic(images, embedding, tmp_path / "two", buckets=4, clusters=6)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")
    run_semantic(images, embedding, tmp_path / "three", buckets=5, clusters=6, group=1)
    assert marks(tmp_path / "one") == marks(tmp_path / "three")
    # shards in another order: one that is read first by another draw of the same keys
    config = DedupConfig(
        input=str(images), method="semantic", columns=[str(embedding)], semantic=SemanticOptions(clusters=6)
    )
    stage, _ = dedup_stages(config, str(tmp_path / "four"))[0]
    stage = pickle.loads(pickle.dumps(stage))
    stage.start()
    (unit,) = stage.plan([])
    stage._shards.reverse()
    table = stage.run(unit, tmp_path).parts[".parquet"]
    assert table.equals(pq.read_table(tmp_path / "one/_centroids/00000000.parquet"))


def test_new_shards_leave_earlier_marks_as_they_are(tmp_path: Path) -> None:
    shards = {n: _near_world(n, 30) for n in range(3)}
    images, embedding = make_world(tmp_path, shards, D)
    first = run_semantic(images, embedding, tmp_path / "out", group=2)
    before, bytes_before = manifest.list_done(str(tmp_path / "out")), all_bytes(tmp_path / "out")
    assert [c.taken for c in run_semantic(images, embedding, tmp_path / "out", group=2)] == [0] * 5
    shards = {n: _near_world(n, 30) for n in range(5)}
    make_world(tmp_path, shards, D)
    again = run_semantic(images, embedding, tmp_path / "out", group=2)
    after, bytes_after = manifest.list_done(str(tmp_path / "out")), all_bytes(tmp_path / "out")
    assert first[0].taken
    assert again[0].taken == 0  # centroids stay
    assert again[1].taken == 90  # the group of shards 2 and 3, that of 4; not that of 0 and 1
    assert {n: after[n].content for n in before} == {n: before[n].content for n in before}
    name = "_centroids/00000000.parquet"
    assert bytes_after[name] == bytes_before[name]
    assert any(
        row["semantic_duplicate_of"] for key, row in marks(tmp_path / "out").items() if key >= "00000003"
    )


def test_centroids_made_anew_follow_the_shards_of_then_or_of_now(tmp_path: Path) -> None:
    shards = {n: _near_world(n, 30) for n in range(2)}
    images, embedding = make_world(tmp_path, shards, D)
    run_semantic(images, embedding, tmp_path / "out")
    place = tmp_path / "out/_centroids"
    was = (place / "00000000.parquet").read_bytes()
    make_world(tmp_path, {n: _near_world(n, 30) for n in range(4)}, D)
    (place / "00000000.parquet").unlink()  # a lost part comes back as it was
    run_semantic(images, embedding, tmp_path / "out")
    assert (place / "00000000.parquet").read_bytes() == was
    for path in sorted(place.rglob("*"), reverse=True):  # without its folder, k-means starts again
        path.unlink() if path.is_file() else path.rmdir()
    run_semantic(images, embedding, tmp_path / "out")
    assert (place / "00000000.parquet").read_bytes() != was


def test_embeddings_of_another_model_are_refused(tmp_path: Path) -> None:
    images, embedding = make_world(tmp_path, {0: _near_world(0, 20)}, D)
    run_semantic(images, embedding, tmp_path / "out")
    other = tmp_path / "other"
    _, embedding = make_world(other, {0: _near_world(1, 20)}, D)
    for path in embedding.glob("_pairmill/manifests/*.json"):
        path.write_text(path.read_text().replace('"mark": ""', '"mark": "another model"'))
    with pytest.raises(ConfigError, match="inputs changed"):
        run_semantic(images, embedding, tmp_path / "out")
    run_semantic(images, embedding, tmp_path / "out", overwrite=True)


def test_only_selected_samples_take_part(tmp_path: Path) -> None:
    row = np.eye(D)[0]
    images, embedding = make_world(tmp_path, {0: [row, row, row], 1: [row, -row]}, D)
    scores = {0: {"key": [sample_key(0, i) for i in range(3)], "good": [False, None, True]}}
    scores[1] = {"key": [sample_key(1, i) for i in range(2)], "good": [True, True]}
    make_columns(tmp_path / "good", scores)
    folders = [str(tmp_path / "good"), str(embedding)]
    counts = run_semantic(images, folders, tmp_path / "out", where="good AND width = 48", clusters=1)
    assert counts[1].to_json() == {
        "in": 5, "out": 3, "dropped": {"not_selected": 1, "not_selected_null": 1},
    }  # fmt: skip
    found = {k: r["semantic_duplicate_of"] for k, r in marks(tmp_path / "out").items()}
    assert len(found) == 5
    assert {k: v for k, v in found.items() if v} == {sample_key(1, 0): sample_key(0, 2)}


def test_copies_of_one_picture_are_compared_once() -> None:
    rng = np.random.default_rng(0)
    few, _ = vectors.quantise(rng.standard_normal((3, D)))
    codes = few[rng.integers(0, 3, 40_000)]  # all pairs would be 800 million
    before, similarity = pairs.find_earlier(codes)
    assert (similarity[3:] == 1).sum() > 39_000
    assert set(np.unique(before)) <= {-1, *(int(np.flatnonzero((codes == c).all(1))[0]) for c in few)}


@given(st.integers(2, 3000), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_products_are_exact_for_any_block(dimensions: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, dimensions)) * 10.0 ** rng.integers(-6, 6, (rows, 1))
    values[rng.random(values.shape) < 0.5] = 0
    codes, sound = vectors.quantise(np.concatenate([values, -values, np.eye(1, dimensions)]))
    assert sound[-1]
    whole = codes.astype(np.int64)
    assert np.abs(whole @ whole.T).max() < 2**24
    exact = (whole @ whole.T).astype(np.float32)
    assert (codes.astype(np.float32) @ codes.astype(np.float32).T == exact).all()
    # the order in which components are summed does not matter
    mixed = rng.permutation(dimensions)
    at, cosine = vectors.nearest(codes, codes[: rows or 1])
    at_mixed, cosine_mixed = vectors.nearest(codes[:, mixed], codes[: rows or 1, mixed])
    assert (at == at_mixed).all()
    assert (cosine == cosine_mixed).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_covers_what_is_lost(seed: int, rows: int, eps: float) -> None:
    codes, _ = vectors.quantise(np.stack([r for r in _near_world(seed, rows + 12) if r is not None]))
    before, similarity = pairs.find_earlier(codes)
    lost = similarity.astype(np.float64) > 1 - eps
    exact = codes.astype(np.int64) @ codes.astype(np.int64).T
    lengths = np.sqrt(np.diag(exact))
    cosines = exact / lengths[:, None] / lengths[None]
    kept = np.flatnonzero(~lost)
    for at in range(len(codes)):
        assert before[at] < at
        place = at
        while lost[place]:
            place = before[place]
        assert place in kept
    np.fill_diagonal(cosines, -1)
    assert cosines[np.ix_(kept, kept)].max(initial=-1) <= 1 - eps + 1e-6


def test_blocks_of_any_size_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, _ = vectors.quantise(np.stack([r for r in _near_world(5, 300) if r is not None]))
    whole = pairs.find_earlier(codes)
    for rows, others in ((1, 1), (7, 3), (64, 100), (100, 64)):
        monkeypatch.setattr(vectors, "ROWS", rows)
        monkeypatch.setattr(vectors, "OTHERS", others)
        for one, other in zip(whole, pairs.find_earlier(codes), strict=True):
            assert np.array_equal(one, other, equal_nan=True)


def test_vectors_that_are_none_take_no_part() -> None:
    rows = [np.zeros(D), None, np.full(D, np.nan), np.eye(D)[2], np.full(D, np.inf), 3 * np.eye(D)[2]]
    codes, there = vectors.encode(
        pa.chunked_array([embedding_column(rows, D).slice(1), embedding_column(rows, D)])
    )
    assert there.tolist() == [False, False, True, False, True, False, False, False, True, False, True]
    assert (codes == codes[0]).all()
    assert codes[0, 2] == vectors.scale(D)


def test_a_hot_cluster_is_divided_by_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    crowd = np.eye(D)[0] + 0.05 * rng.standard_normal((900, D))
    others = rng.standard_normal((100, D))
    images, embedding = make_world(tmp_path, {0: [*crowd, *others]}, D)

    def largest(name: str, split: float | None) -> int:
        run_semantic(images, embedding, tmp_path / name, clusters=40, split=split)
        clusters = [row["semantic_cluster"] for row in marks(tmp_path / name).values()]
        return int(np.bincount(clusters).max())

    assert largest("divided", 2.0) <= 60
    assert largest("divided", 2.0) < largest("whole", None)


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, embedding = make_world(tmp_path, {0: _near_world(0, 10)}, D)
    make_columns(tmp_path / "clip", {0: {"key": [sample_key(0, 0)], "clip_score": [0.5]}})
    make_candidates(tmp_path / "candidates", {0: [("http://a.example/a.jpg", "a")]})
    out = tmp_path / "out"
    for options in ({"eps": 0.0}, {"eps": 1.0}, {"keep": "largest"}, {"clusters": 0}, {"split": 1.0}):
        with pytest.raises(ConfigError, match=r"semantic\."):
            run_semantic(images, embedding, out, **options)
    for buckets in (0, 100_001):
        with pytest.raises(ConfigError, match="buckets"):
            run_semantic(images, embedding, out, buckets=buckets)
    with pytest.raises(ConfigError, match="give --columns"):
        run_semantic(images, [], out)
    with pytest.raises(ConfigError, match="no column 'image_embedding'"):
        run_semantic(images, tmp_path / "clip", out)
    with pytest.raises(ConfigError, match="fixed-size lists"):
        run_semantic(images, tmp_path / "clip", out, embedding="clip_score")
    with pytest.raises(ConfigError, match=r"there for --semantic\.where"):
        run_semantic(images, [str(embedding), str(tmp_path / "clip")], out)
    with pytest.raises(ConfigError, match="holds candidates"):
        run_semantic(tmp_path / "candidates", embedding, out)
    with pytest.raises(ConfigError, match="nosuch"):
        run_semantic(images, embedding, out, where="nosuch > 1")
    make_images(tmp_path / "images", {0: [crawled(0, i) for i in range(10)], 1: [crawled(1, 0)]})
    with pytest.raises(ConfigError, match="has no shard 00000001"):
        run_semantic(images, embedding, out)
    options = ["--input", str(images), "--output", str(out), "--semantic.eps", "0.1"]
    assert main(["dedup", *options]) == 2
    assert "semantic.eps 0.1 means nothing to method 'exact'" in capsys.readouterr().err
    assert not out.exists()


def test_without_faiss_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, embedding = make_world(tmp_path, {0: _near_world(0, 10)}, D)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'pairmill\[semantic\]'"):
        run_semantic(images, embedding, tmp_path / "out")


def test_shards_of_two_models_fail(tmp_path: Path) -> None:
    images, embedding = make_world(tmp_path, {0: _near_world(0, 10), 1: _near_world(1, 10)}, D)
    place = embedding / "00000001.parquet"
    table = pq.read_table(place)
    pq.write_table(table.set_column(1, COLUMN, embedding_column([np.ones(4)] * 10, 4)), place)
    with pytest.raises(InputError, match="dimensions, those of others"):
        run_semantic(images, embedding, tmp_path / "out")


def test_no_embedding_at_all(tmp_path: Path) -> None:
    images, embedding = make_world(tmp_path, {0: [None, None]}, D)
    with pytest.raises(InputError, match="no sample has an embedding"):
        run_semantic(images, embedding, tmp_path / "out")


def test_half_done_stages_are_refused(tmp_path: Path) -> None:
    images, embedding = make_world(tmp_path, {0: _near_world(0, 10)}, D)
    config = DedupConfig(input=str(images), method="semantic", columns=[str(embedding)], buckets=4)
    stages = dedup_stages(config, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="does not exist"):
        stages[1][0].plan([])
    for stage, folder in stages[:3]:
        run_here(stage, folder)
    (tmp_path / "out/_resolve/00000002.parquet").unlink()
    for path in (tmp_path / "out/_resolve/_pairmill/manifests").glob("00000002*"):
        path.unlink()
    with pytest.raises(ConfigError, match="3 of 4 buckets"):
        stages[3][0].plan([])


BESIDE_TORCH = """
import sys
import numpy as np
from pipeline.stages.dedup.semantic import kmeans, vectors

def torch_sum():
    import torch
    x = torch.ones(256, 256)
    return float((x @ x).sum())

def centroids():
    points = np.random.default_rng(0).standard_normal((3000, 32))
    faiss = kmeans.load_faiss(1)
    codes, _ = vectors.quantise(points)
    return kmeans.train(faiss, codes, 20, iterations=5, seed=0, split=None).tobytes()

first = torch_sum() if sys.argv[1] == "torch" else None
one = centroids()
assert torch_sum() == 256.0**3
assert centroids() == one
"""


@pytest.mark.parametrize("first", ["torch", "faiss"])
def test_faiss_and_torch_live_in_one_process(first: str) -> None:
    """Each brings an OpenMP of its own."""
    subprocess.run([sys.executable, "-c", BESIDE_TORCH, first], check=True, timeout=120, cwd=HOME)


def test_command_line(tmp_path: Path) -> None:
    images, embedding = make_world(tmp_path, {0: _near_world(0, 20), 1: _near_world(1, 20)}, D)
    run_semantic(images, embedding, tmp_path / "here", buckets=2, eps=0.1)
    words = ["--input", images, "--output", tmp_path / "out", "--columns", embedding, "--workers", 1]
    options = ["--method", "semantic", "--buckets", "2", "--semantic.eps", "0.1"]
    assert main(["dedup", *map(str, words), *options]) == 0
    assert marks(tmp_path / "out") == marks(tmp_path / "here")
    folders = [tmp_path / "out", *(tmp_path / "out").glob("_[acr]*")]
    assert main(["verify", *map(str, folders)]) == 0


def test_a_lost_part_comes_back_and_nothing_behind_it_changes(tmp_path: Path) -> None:
    images, embedding = make_world(tmp_path, {0: _near_world(0, 20), 1: _near_world(1, 20)}, D)
    run_semantic(images, embedding, tmp_path / "out", buckets=2)
    (tmp_path / "out/_resolve/00000001.parquet").unlink()
    counts = run_semantic(images, embedding, tmp_path / "out", buckets=2)
    assert [bool(c.taken) for c in counts] == [False, False, True, False, False]


def test_a_takedown_reaches_the_vectors(tmp_path: Path) -> None:
    row, other = np.eye(D)[0], np.eye(D)[1]
    images, embedding = make_world(tmp_path, {0: [row, row, row, other], 1: [row, other]}, D)
    out = tmp_path / "out"
    run_semantic(images, embedding, out, clusters=1, group=1)
    gone = sample_key(0, 0)
    url = crawled(0, 0)["url"]
    words = ["--images", images, "--columns", embedding, out, "--url", url]
    assert main(["takedown", *map(str, words)]) == 0
    assert gone not in pq.read_table(embedding / "00000000.parquet")["key"].to_pylist()
    assert gone not in pq.read_table(out / "_assign/00000000.parquet")["key"].to_pylist()
    counts = run_semantic(images, embedding, out, clusters=1, group=1)
    assert counts[0].taken == 0
    found = {key: row["semantic_duplicate_of"] for key, row in marks(out).items()}
    first, last = sample_key(0, 1), sample_key(0, 3)
    assert found == {
        first: None, sample_key(0, 2): first, last: None, sample_key(1, 0): first, sample_key(1, 1): last,
    }  # fmt: skip
