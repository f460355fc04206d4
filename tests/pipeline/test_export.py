"""Metadata as DataComp's baselines read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import uids
from pipeline.errors import ConfigError
from pipeline.shards.format import sample_key
from pipeline.stages.export import Export, ExportConfig
from tests.pipeline.folders import crawled, make_columns, make_images, run_here

WIDTH = 4
SCORES = {"clip_b32_similarity_score": "clip_score"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rows = [crawled(0, n, picture=b"") for n in range(5)]
    rows[4] = crawled(0, 4, reason="timeout")
    return make_images(tmp_path / "images", {0: rows, 1: [crawled(1, 0, picture=b"")]})


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    first = {"key": [sample_key(0, n) for n in range(4)], "clip_score": [0.1, 0.3, None, 0.28]}
    return make_columns(tmp_path / "clip", {0: first, 1: {"key": [sample_key(1, 0)], "clip_score": [0.5]}})


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    kind = pa.list_(pa.float16(), WIDTH)
    vectors = np.arange(5 * WIDTH, dtype=np.float16).reshape(5, WIDTH)
    rows = [list(vectors[n]) for n in range(4)]
    first = {"key": [sample_key(0, n) for n in range(4)], "image_embedding": [*rows[:3], None]}
    second = {"key": [sample_key(1, 0)], "image_embedding": [list(vectors[4])]}
    folder = make_columns(tmp_path / "embedding", {0: first, 1: second})
    for path in folder.glob("*.parquet"):  # plain lists by then
        table = pq.read_table(path)
        typed = table.set_column(1, "image_embedding", pa.array(table["image_embedding"].to_pylist(), kind))
        pq.write_table(typed, path)
    return folder


def test_the_baselines_find_what_they_read(images: Path, clip: Path, embedding: Path, tmp_path: Path) -> None:
    """As DataComp's filters read: a parquet with pandas, the npz of the same name, rows in the same order."""
    config = ExportConfig(
        input=str(images),
        columns=[str(clip), str(embedding)],
        scores=SCORES,
        features={"l14_img": "image_embedding"},
        subset=True,
    )
    stage = Export(config)
    counts = run_here(stage, tmp_path / "out")
    stage.finish(str(tmp_path / "out"))
    assert dict(counts.dropped) == {"timeout": 1, "no_l14_img": 1}
    frame = pd.read_parquet(tmp_path / "out/00000000.parquet")
    arrays = np.load(tmp_path / "out/00000000.npz")["l14_img"]
    assert list(frame.columns) == [
        "uid", "url", "text", "original_width", "original_height", "sha256", "clip_b32_similarity_score",
    ]  # fmt: skip
    assert list(frame["text"]) == [f"picture {n} of shard 0" for n in range(3)]
    assert arrays.dtype == np.float16
    assert arrays.tolist() == np.arange(3 * WIDTH).reshape(3, WIDTH).tolist()
    above = frame["clip_b32_similarity_score"] >= 0.3
    assert list(frame["uid"][above]) == [frame["uid"][1]]
    subset = uids.load(str(tmp_path / "out/uids.npy"))
    assert len(subset) == 4
    assert all(subset.contains(pa.array(frame["uid"])).to_pylist())
    raw = np.load(tmp_path / "out/uids.npy")
    assert raw.dtype == np.dtype("u8,u8")
    assert raw.tolist() == sorted(raw.tolist())


def test_a_rule_selects_what_is_exported(images: Path, clip: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        input=str(images), columns=str(clip), scores=SCORES, where="clip_score >= CAST(0.28 AS FLOAT)"
    )
    counts = run_here(Export(config), tmp_path / "out")
    assert dict(counts.dropped) == {"timeout": 1, "predicate": 1, "predicate_null": 1}
    assert counts.kept == 3
    assert not list((tmp_path / "out").glob("*.npz"))


def test_the_same_input_gives_the_same_bytes(images: Path, embedding: Path, tmp_path: Path) -> None:
    config = ExportConfig(input=str(images), columns=str(embedding), features={"b32_img": "image_embedding"})
    for name in ("one", "two"):
        run_here(Export(config), tmp_path / name)
    one, two = ((tmp_path / name / "00000000.npz").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features": {"h14_img": "image_embedding"}}, "DataComp's arrays are"),
        ({"features": {"l14_img": "clip_score"}}, "no embedding"),
        ({"features": {"l14_img": "nowhere"}}, "no column 'nowhere'"),
        ({"scores": {"uid": "clip_score"}}, "a column of its own"),
        ({"scores": {"clip_l14_similarity_score": "l14_score"}}, "no column 'l14_score'"),
    ],
)
def test_what_cannot_be_exported_is_told(
    images: Path, clip: Path, tmp_path: Path, change: dict, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_here(Export(ExportConfig(input=str(images), columns=str(clip), **change)), tmp_path / "out")
