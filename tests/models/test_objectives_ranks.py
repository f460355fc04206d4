"""Two gloo processes against one: the same loss, and after averaging the same gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from models.batch import Batch, StepContext
from models.objectives.gather import gather, gather_with_grad
from models.objectives.itc import Keys, queue_itc
from models.recipes import clip

CONFIG = clip.Config(
    image_size=16, patch_size=8, vision_width=16, vision_depth=1, vision_heads=2, text_width=16, text_depth=1,
    text_heads=2, embed_dim=8, vocab_size=30, max_text_length=6,
)  # fmt: skip


def whole_batch() -> Batch:
    g = torch.Generator().manual_seed(5)
    return Batch(
        image_BCHW=torch.randn(8, 3, 16, 16, generator=g),
        text_ids_BT=torch.randint(5, 30, (8, 6), generator=g),
        text_mask_BT=torch.ones(8, 6, dtype=torch.int64),
        image_id_B=torch.tensor([0, 1, 2, 3, 1, 5, 6, 0]),  # positives across the ranks
    )


def part(batch: Batch, rank: int) -> Batch:
    rows = slice(4 * rank, 4 * rank + 4)
    return Batch(
        image_BCHW=batch.image_BCHW[rows],
        text_ids_BT=batch.text_ids_BT[rows],
        text_mask_BT=batch.text_mask_BT[rows],
        image_id_B=batch.image_id_B[rows],
    )


def clip_gradients(batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = clip.build(CONFIG).model
    loss = model(batch, StepContext(seed=0, step=0), {})["loss"]
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def queue_gradients(rows: slice) -> dict[str, Tensor]:
    """Contrast with a queue from features that a weight has turned, the local rows' part of it."""
    g = torch.Generator().manual_seed(6)
    x_GE, teacher_GE, past_QE = (torch.randn(n, 8, generator=g) for n in (8, 8, 5))
    weight = torch.eye(8).requires_grad_()
    ids_G = torch.tensor([0, 1, 2, 3, 1, 5, 6, 0])
    keys_KE = torch.cat([gather(teacher_GE[rows]), past_QE])
    loss = queue_itc(
        x_GE[rows] @ weight,
        x_GE[rows] @ weight.T,
        ids_G[rows],
        teacher_image_BE=teacher_GE[rows],
        teacher_text_BE=teacher_GE[rows],
        keys=Keys(
            image_KE=keys_KE, text_KE=keys_KE, id_K=torch.cat([gather(ids_G[rows]), torch.arange(50, 55)])
        ),
        temperature=torch.tensor(0.5),
        alpha=0.4,
    )
    loss.backward()
    return {"queue loss": loss.detach(), "queue weight": weight.grad}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = clip_gradients(part(whole_batch(), rank)) | queue_gradients(slice(4 * rank, 4 * rank + 4))
    for value in found.values():  # what the trainer does with gradients: the mean over ranks
        dist.all_reduce(value)
        value /= 2
    ordered = gather(torch.full((2,), rank))
    x = torch.ones(2, requires_grad=True)
    (gather_with_grad(x) * torch.arange(4.0) * (rank + 1)).sum().backward()
    dist.barrier()
    torch.save(found | {"ordered": ordered, "x": x.grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_gather_is_in_rank_order(two_ranks: list[dict[str, Tensor]]) -> None:
    for found in two_ranks:
        assert found["ordered"].tolist() == [0, 0, 1, 1]


def test_each_rank_receives_the_sum_of_all_ranks_gradients(two_ranks: list[dict[str, Tensor]]) -> None:
    assert two_ranks[0]["x"].tolist() == [0.0, 3.0]
    assert two_ranks[1]["x"].tolist() == [6.0, 9.0]


def test_two_ranks_have_the_loss_and_gradient_of_one(two_ranks: list[dict[str, Tensor]]) -> None:
    alone = clip_gradients(whole_batch()) | queue_gradients(slice(0, 8))
    assert len(alone) > 20
    for found in two_ranks:
        for name, value in alone.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
