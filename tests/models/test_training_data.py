"""Batches are a function of (seed, step), whatever the number of processes; damaged samples are told."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from models.images import CorruptImageError, ImageTransform, decode, random_crop
from models.training.config import CLIP_MEAN, CLIP_STD
from models.training.data import BatchPlan, Collator, PairDataset, RankSampler, training_loader
from models.training.stopping import TrainingError
from models.training.table import SampleTable, build_table, find_shards
from tests.models.toy_shards import add, draw_scene, write_shards

TRANSFORM = ImageTransform(size=16, mean=CLIP_MEAN, std=CLIP_STD, crop_scale=(0.4, 1.0), flip=True)


class LetterTokenizer:
    """One id per letter."""

    def encode(self, texts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[ord(c) for c in t[:max_length]] for t in texts]
        width = max(map(len, rows))
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        return ids, (ids > 0).long()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), shards=3, samples=20)


@pytest.fixture(scope="module")
def table(shards: Path) -> SampleTable:
    return build_table(find_shards(str(shards)))


def load(table: SampleTable, *, first: int, steps: int, rank: int = 0, world: int = 1, workers: int = 0):
    plan = BatchPlan(len(table), 12, seed=5)
    sampler = RankSampler(plan, first, steps, rank, world, 2)
    dataset = PairDataset(table, TRANSFORM, seed=5)
    loader = training_loader(dataset, sampler, Collator(LetterTokenizer(), 40), workers=workers, pin=False)
    return [loaded.batch for loaded in loader]


def test_an_epoch_shows_each_sample_at_most_once_and_epochs_differ() -> None:
    plan = BatchPlan(samples=50, batch_size=8, seed=1)
    assert plan.epoch_steps == 6
    first = np.concatenate([plan.indices(s) for s in range(6)])
    second = np.concatenate([plan.indices(s) for s in range(6, 12)])
    assert len(set(first)) == 48
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.concatenate([BatchPlan(50, 8, 2).indices(s) for s in range(6)]))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranks_and_micro_batches_make_up_the_global_batch(world: int, accumulation: int) -> None:
    plan = BatchPlan(samples=100, batch_size=16, seed=3)
    for step in (0, 4, 9):
        ranks = [
            plan.micro_batches(step, rank=rank, world_size=world, accumulation=accumulation)
            for rank in range(world)
        ]
        parts = [ranks[rank][micro] for micro in range(accumulation) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), plan.indices(step))


def test_a_resumed_loader_gives_the_batches_of_an_undisturbed_one(table: SampleTable) -> None:
    whole, resumed = load(table, first=0, steps=7), load(table, first=4, steps=7)
    for ours, theirs in zip(whole[8:], resumed, strict=True):
        assert torch.equal(ours.image_BCHW, theirs.image_BCHW)
        assert torch.equal(ours.text_ids_BT, theirs.text_ids_BT)
        assert torch.equal(ours.image_id_B, theirs.image_id_B)


def test_augmentation_does_not_depend_on_workers_or_world_size(table: SampleTable) -> None:
    alone = torch.cat([b.image_BCHW for b in load(table, first=0, steps=2)])
    with_workers = torch.cat([b.image_BCHW for b in load(table, first=0, steps=2, workers=2)])
    assert torch.equal(alone, with_workers)
    ranks = [load(table, first=0, steps=2, rank=r, world=2) for r in range(2)]
    # per micro batch: rank 0's share, then rank 1's
    spread = torch.cat([ranks[r][m].image_BCHW for m in range(4) for r in range(2)])
    assert torch.equal(alone, spread)


@pytest.mark.parametrize("world", [1, 2])
def test_rows_are_the_places_in_the_global_batch(table: SampleTable, world: int) -> None:
    loaded = [load(table, first=1, steps=3, rank=r, world=world) for r in range(world)]
    for step in range(2):
        rows = [b.row_B for m in range(2) for r in range(world) for b in [loaded[r][2 * step + m]]]
        assert torch.equal(torch.cat(rows), torch.arange(12))


def test_one_read_gives_what_the_members_hold(shards: Path, table: SampleTable) -> None:
    sample = table.read(25)
    with tarfile.open(shards / "00000001.tar") as tar:
        assert sample.image == tar.extractfile("000000010005.jpg").read()
        assert sample.caption == tar.extractfile("000000010005.txt").read().decode()
    assert sample.meta["key"] == sample.key == "000000010005"
    assert 0 <= sample.image_id < 2**63
    assert list(table.captions())[25] == sample.caption


def test_samples_without_a_pair_are_counted(tmp_path: Path) -> None:
    image, caption = draw_scene(np.random.default_rng(0), 32)
    with tarfile.open(tmp_path / "00000000.tar", "w") as tar:
        add(tar, "a.jpg", image)
        add(tar, "a.txt", caption.encode())
        add(tar, "b.txt", b"no picture")
        add(tar, "c.jpg", image)
    table = build_table(find_shards(str(tmp_path)))
    assert table.keys == ["a"]
    assert table.skipped == {"no_image": 1, "no_caption": 1}


def test_a_corrupt_picture_is_replaced_by_the_next_and_named(tmp_path: Path) -> None:
    image, caption = draw_scene(np.random.default_rng(0), 32)
    with tarfile.open(tmp_path / "00000000.tar", "w") as tar:
        for key, data in (("a", image[:200]), ("b", image)):
            add(tar, f"{key}.jpg", data)
            add(tar, f"{key}.txt", f"{caption} {key}".encode())
    dataset = PairDataset(build_table(find_shards(str(tmp_path))), TRANSFORM)
    _, got, _, _, corrupt = dataset[(0, 0, 0)]
    assert got == f"{caption} b"
    assert [(Path(shard).name, key) for shard, key, _ in corrupt] == [("00000000.tar", "a")]


@pytest.mark.parametrize("keep", [0, 5000])
def test_a_damaged_shard_is_an_error(tmp_path: Path, keep: int) -> None:
    path = write_shards(tmp_path, shards=1) / "00000000.tar"
    path.write_bytes(path.read_bytes()[:keep] or b"\x01" * 4000)
    with pytest.raises(TrainingError, match=r"00000000\.tar"):
        build_table([str(path)])


def test_no_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.tar files"):
        find_shards(str(tmp_path))


def test_decoding_refuses_what_is_no_picture() -> None:
    image, _ = draw_scene(np.random.default_rng(0), 64)
    assert decode(image).size == (64, 64)
    assert min(decode(image, least_side=10).size) >= 10
    for bad in (b"", b"<html>", image[: len(image) // 2], b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        with pytest.raises(CorruptImageError):
            decode(bad)


def test_the_transform_normalises_and_the_crop_stays_inside() -> None:
    image = decode(draw_scene(np.random.default_rng(0), 64)[0])
    plain = ImageTransform(size=16, mean=CLIP_MEAN, std=CLIP_STD)
    pixels = plain(image)
    assert pixels.shape == (3, 16, 16)
    assert torch.equal(pixels, plain(image))
    restored = pixels * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    assert restored.min() > -1e-5
    assert restored.max() < 1 + 1e-5
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_crop(80, 50, (0.2, 1.0), rng)
        assert 0 <= left < right <= 80
        assert 0 <= top < bottom <= 50
        assert (right - left) * (bottom - top) >= 0.199 * 80 * 50
