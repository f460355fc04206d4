"""Finished shards in the hands of the libraries that people read them with: these do the reading."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
import webdataset
from PIL import Image

from pipeline.stages.pack import Pack, PackConfig
from tests.pipeline.folders import crawled, make_columns, make_images, read_tar, run_here

SHARDS, ROWS = 4, 12


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training shards of 40 samples in all. The json's fields differ: some pages are unknown, and one
    score is missing."""
    base = tmp_path_factory.mktemp("packed")
    images = {
        n: [crawled(n, i, page_url=None if i % 3 else f"http://p.example/{i}") for i in range(ROWS - 2)]
        + [crawled(n, ROWS - 2, reason="timeout"), crawled(n, ROWS - 1, reason="too_small")]
        for n in range(SHARDS)
    }
    make_images(base / "images", images)
    scores = {
        n: {"key": [r["key"] for r in rows[:-2]], "clip_score": [0.1 * i or None for i in range(ROWS - 2)]}
        for n, rows in images.items()
    }
    make_columns(base / "clip", scores)
    config = PackConfig(input=str(base / "images"), columns=(str(base / "clip"),), group=2)
    run_here(Pack(config), base / "shards")
    return base / "shards"


@pytest.fixture(scope="module")
def expected(packed: Path) -> dict[str, dict[str, bytes]]:
    found = {key: m for path in sorted(packed.glob("*.tar")) for key, m in read_tar(path).items()}
    assert len(found) == SHARDS * (ROWS - 2)
    return found


def test_webdataset(packed: Path, expected: dict[str, dict[str, bytes]]) -> None:
    urls = str(packed / "{00000000..00000001}.tar")
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
    found = {sample["__key__"]: sample for sample in dataset}
    assert found.keys() == expected.keys()
    for key, sample in found.items():
        assert sample["txt"] == expected[key]["txt"].decode()
        assert sample["json"]["key"] == key
        assert sample["jpg"].size == (48, 48)


def test_open_clip_training_loader(
    packed: Path, expected: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`open_clip_train.data.get_data` without `--train-num-samples`: the size comes from our sizes.json.

    open_clip 3.3 asks for webdataset <= 0.2.86; newer ones send a mark at the end of each tar that its loader
    does not know. With those the mark is turned off; with 0.2.86 nothing is changed.
    """
    import open_clip_train.data

    expander = open_clip_train.data.tar_file_expander
    if "eof_value" in inspect.signature(expander).parameters:
        quiet = functools.partial(expander, eof_value=None)
        monkeypatch.setattr(open_clip_train.data, "tar_file_expander", quiet)
    args = SimpleNamespace(
        train_data=str(packed / "{00000000..00000001}.tar"),
        train_data_upsampling_factors=None,
        train_num_samples=None,
        dataset_type="webdataset",
        dataset_resampled=False,
        val_data=None,
        imagenet_val=None,
        imagenet_v2=None,
        seed=0,
        batch_size=10,
        workers=1,
        world_size=1,
        rank=0,
        distributed=False,
    )

    def preprocess(image: Image.Image) -> torch.Tensor:
        assert image.mode == "RGB"
        return torch.tensor(image.size)

    data = open_clip_train.data.get_data(args, (preprocess, preprocess), tokenizer=lambda text: [text])
    loader = data["train"].dataloader
    assert loader.num_samples == len(expected)
    batches = list(loader)
    texts = [text for _, captions in batches for text in captions]
    assert sorted(texts) == sorted(m["txt"].decode() for m in expected.values())
    assert all(torch.equal(images, torch.full((10, 2), 48)) for images, _ in batches)


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets(
    packed: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path, streaming: bool
) -> None:
    import datasets

    files = str(packed / "*.tar")
    dataset = datasets.load_dataset(
        "webdataset", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path)
    )
    found = {sample["__key__"].rpartition("/")[2]: sample for sample in dataset}
    assert found.keys() == expected.keys()
    for key, sample in found.items():
        meta = json.loads(expected[key]["json"])
        assert sample["txt"] == expected[key]["txt"].decode()
        assert sample["jpg"].size == (48, 48)
        assert {k: v for k, v in sample["json"].items() if v is not None} == meta


def test_wids(packed: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    import wids

    dataset = wids.ShardListDataset(str(packed / "wids.json"), cache_dir=str(tmp_path), keep=True)
    assert len(dataset) == len(expected)
    for at in (0, 7, len(dataset) - 1):
        sample = dataset[at]
        key = sample["__key__"]
        assert sample[".txt"] == expected[key]["txt"].decode()
        assert sample[".jpg"].size == (48, 48)


def test_parquet_is_a_table_for_everybody(packed: Path, expected: dict[str, dict[str, bytes]]) -> None:
    import pandas as pd
    import pyarrow.parquet as pq

    table = pa.concat_tables(pq.read_table(path) for path in sorted(packed.glob("*.parquet")))
    assert set(table["key"].to_pylist()) == expected.keys()
    frame = pd.read_parquet(packed / "00000000.parquet")
    assert {"key", "uid", "clip_score", "page_url", "url", "caption", "sha256"} <= set(frame.columns)
