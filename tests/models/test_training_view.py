"""Training from a view: the batches are those of the packed tars, bit for bit; changed images end the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train import shard_fingerprints
from models.images import ImageTransform
from models.training.catalogue import TrainingData, open_data
from models.training.config import CLIP_MEAN, CLIP_STD, TrainConfig
from models.training.data import LocalError, PairDataset, RankSampler
from models.training.index import IndexFolder, index_shard
from models.training.stopping import TrainingError
from models.training.table import build_table, find_shards
from pipeline.errors import ConfigError
from pipeline.stages.pack import PackConfig, pack_stages
from pipeline.takedown import Folders, take_down
from pipeline.tombstones import make_entry
from tests.pipeline.folders import crawled, make_images, run_here

STEPS = 9
_TRANSFORM = ImageTransform(size=32, mean=CLIP_MEAN, std=CLIP_STD, crop_scale=(0.5, 1.0), flip=True)


class _Letters:
    """A tokenizer without a vocabulary."""

    def encode(self, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([[ord(c) % 997 for c in text[:length].ljust(length)] for text in texts])
        return ids, torch.ones_like(ids)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    images = {
        n: [crawled(n, i) for i in range(9)] + [crawled(n, 9, caption=""), crawled(n, 10, reason="timeout")]
        for n in range(5)
    }
    make_images(tmp_path / "images", images)
    for name, view in (("packed", False), ("view", True)):
        config = PackConfig(input=str(tmp_path / "images"), group=2, view=view)
        for stage, output in pack_stages(config, str(tmp_path / name)):
            run_here(stage, output)
    return {"images": tmp_path / "images", "packed": tmp_path / "packed", "view": tmp_path / "view"}


def _open(shards: Path, run: Path, **changes: Any) -> TrainingData:
    config = TrainConfig(shards=str(shards), output="", batch_size=6, steps=1, seed=5, **changes)
    return open_data(config, run)


def _batches(data: TrainingData) -> Iterator[Any]:
    dataset = PairDataset(data.reader, _TRANSFORM, _Letters(), max_text_tokens=24, seed=1)
    sampler = RankSampler(data.plan, 0, STEPS, 0, 1, 1)
    for places in sampler:
        yield dataset.__getitems__(places)


def test_batches_are_those_of_the_packed_tars(folders: dict[str, Path], tmp_path: Path) -> None:
    packed = list(_batches(_open(folders["packed"], tmp_path / "one")))
    viewed = list(_batches(_open(folders["view"], tmp_path / "two")))
    assert len(packed) == len(viewed) == STEPS
    for one, other in zip(packed, viewed, strict=True):
        assert not one.corrupt
        assert not other.corrupt
        for name, value in vars(one.batch).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other.batch, name)), name


def test_indexes_and_samples_agree(folders: dict[str, Path], tmp_path: Path) -> None:
    one, other = (build_table(find_shards(str(folders[name]))) for name in ("packed", "view"))
    assert one.keys == other.keys
    assert one.skipped == other.skipped == {"no_caption": 5}
    for at in range(len(one)):
        mine, theirs = one.read(at), other.read(at)
        assert (mine.key, mine.image, mine.caption, mine.meta) == (
            theirs.key,
            theirs.image,
            theirs.caption,
            theirs.meta,
        )
        assert mine.image_id == theirs.image_id
    texts = [list(_open(folders[n], tmp_path / n).captions(20)) for n in ("packed", "view")]
    assert texts[0] == texts[1] != []
    url = find_shards(str(folders["view"]))[0]
    kept = IndexFolder(tmp_path / "kept")
    for _ in range(2):  # made, then read
        found = kept.get(url, kind="pairs", needs="txt")
        fresh = index_shard(url, kind="pairs", needs="txt")
        assert (found.keys_S == fresh.keys_S).all()
        assert found.pictures is not None
        assert found.pictures.tars == fresh.pictures.tars
        assert (found.pictures.tar_S == fresh.pictures.tar_S).all()


def test_changed_images_end_the_run(folders: dict[str, Path], tmp_path: Path) -> None:
    data = _open(folders["view"], tmp_path / "run")
    before = shard_fingerprints(str(folders["view"]))
    assert len(before) == 3
    entries = [make_entry("url", crawled(n, 2)["url"]) for n in range(5)]
    take_down(Folders(images=(str(folders["images"]),)), entries)
    with pytest.raises((TrainingError, LocalError), match="the images changed since the view was made"):
        list(_batches(data))
    with pytest.raises(ConfigError, match=r"\.tar: the images changed since the view was made"):
        shard_fingerprints(str(folders["view"]))
    take_down(Folders(images=(str(folders["images"]),), shards=(str(folders["view"]),)), entries)
    after = shard_fingerprints(str(folders["view"]))
    assert len(set(before) & set(after)) == 0
    assert len(list(_batches(_open(folders["view"], tmp_path / "again")))) == STEPS
