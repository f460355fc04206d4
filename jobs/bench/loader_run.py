"""One side of `pairmill bench loader`: loads so many samples and says what came.

python -m jobs.bench.loader_run SIDE SHARDS.json      (a `jobs.bench.loader.Work` as JSON)
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.bench.loader import Work


def main(side: str, path: str) -> None:
    """Prints how many samples came, in which shape, and how many different texts among them."""
    work = Work(**json.loads(Path(path).read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    samples = 0
    texts: set[tuple[int, ...]] = set()
    shapes: set[tuple[Any, ...]] = set()
    total = torch.zeros((), dtype=torch.float64)
    for pixels, ids in SIDES[side](work):
        samples += len(pixels)
        shapes.add((str(pixels.dtype), *pixels.shape[1:]))
        texts.update(map(tuple, ids[:, :16].tolist()))
        total += pixels[:, :, ::56, ::56].double().mean()  # it is there
    print(json.dumps({"samples": samples, "shapes": sorted(shapes), "texts": len(texts)}))


def ours(work: Work, *, normalise: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """The trainer's loader, alone in its world."""
    from models.images import ImageTransform
    from models.training.catalogue import open_data
    from models.training.config import CLIP_MEAN, CLIP_STD, TrainConfig
    from models.training.data import PairDataset, RankSampler, training_loader

    steps = work.samples // work.batch_size
    config = TrainConfig(shards=work.shards, output="", batch_size=work.batch_size, steps=steps)
    low, high = work.crop_scale
    transform = ImageTransform(size=work.size, mean=CLIP_MEAN, std=CLIP_STD, crop_scale=(low, high))
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
        data = open_data(config, Path(folder))
        dataset = PairDataset(
            data.reader, transform, _OpenClipTokenizer(), max_text_tokens=77, seed=config.seed
        )
        sampler = RankSampler(data.plan, 0, steps, 0, 1, 1)
        for loaded in training_loader(dataset, sampler, workers=work.workers, pin=False):
            batch = loaded.to("cpu") if normalise else loaded.batch
            yield batch.pictures, batch.text_ids_BT


def ours_as_bytes(work: Work) -> Iterator[tuple[Tensor, Tensor]]:
    """The same up to the device, which normalises."""
    yield from ours(work, normalise=False)


def peer(work: Work) -> Iterator[tuple[Tensor, Tensor]]:
    """open_clip's loader over webdataset, as its training calls it."""
    import open_clip
    from open_clip.transform import AugmentationCfg, image_transform
    from open_clip_train.data import get_wds_dataset

    transform = image_transform(work.size, is_train=True, aug_cfg=AugmentationCfg(scale=work.crop_scale))
    args = Namespace(
        train_data=work.braces, train_num_samples=work.samples, train_data_upsampling_factors=None,
        dataset_resampled=False, seed=0, batch_size=work.batch_size, workers=work.workers, world_size=1,
    )  # fmt: skip
    found = get_wds_dataset(args, transform, True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    yield from found.dataloader


class _OpenClipTokenizer:
    """The peer's tokenizer in the place of ours."""

    def __init__(self) -> None:
        import open_clip

        self.tokenize: Any = open_clip.get_tokenizer("ViT-B-32")

    def encode(self, texts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
        ids_BT = self.tokenize(texts, max_length)
        return ids_BT, (ids_BT > 0).long()


SIDES = {"ours": ours, "bytes": ours_as_bytes, "peer": peer}

if __name__ == "__main__":
    main(*sys.argv[1:])
