"""Two gloo processes against one: the same loss, and after averaging the same gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from models.batch import Batch, StepContext
from models.objectives.gather import gather, gather_with_grad, longest, mean_over_ranks, pad_columns
from models.objectives.itc import Keys, in_batch_itc, queue_itc
from models.objectives.itm import Rows
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


def counted(rank: int) -> dict[str, Tensor]:
    """A mean over values of which the ranks have 3 and 1, with weights 1 and 0, and over none at all."""
    values = torch.tensor([[1.0, 2.0, 6.0], [10.0]][rank], requires_grad=True)
    mean = mean_over_ranks(values)
    mean.backward()
    weighted = mean_over_ranks(values.detach(), torch.tensor([[1.0, 0.0, 1.0], [0.0]][rank]))
    nothing = torch.zeros(0, requires_grad=True)
    none = mean_over_ranks(nothing)
    none.backward()
    return {"mean": mean.detach(), "mean x": values.grad, "weighted": weighted, "none": none.detach()}


def picked(rank: int) -> dict[str, Tensor]:
    """Pictures and texts of the other rank, and the gradient that comes back."""
    pictures = torch.full((2, 1, 1), 10.0 * rank) + torch.tensor([0.0, 1.0])[:, None, None]
    pictures.requires_grad_()
    other_B = torch.tensor([[2, 3], [1, 1]][rank])
    memories, rows_B = Rows.of("global").memories(pictures, other_B)
    memories[rows_B].sum().backward()
    length = 3 - rank  # texts of 3 and of 2 tokens
    states, mask = torch.full((2, length, 1), rank + 1.0), torch.ones(2, length, dtype=torch.int64)
    texts, masks = Rows.of("global").texts(states, mask, other_B)
    local, own_B = Rows.of("local").memories(pictures, torch.tensor([1, 0]))
    assert local is pictures
    assert own_B.tolist() == [1, 0]
    assert longest(length, torch.device("cpu")) == 3
    return {
        "memories": memories.detach().flatten(), "memory rows": rows_B, "pictures": pictures.grad.flatten(),
        "texts": texts[:, :, 0], "masks": masks,
        "own": Rows.of("local").own(gather(pictures.detach()), 2).flatten(),
    }  # fmt: skip


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
    found |= {"ordered": ordered, "x": x.grad} | counted(rank) | picked(rank)
    dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
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


def test_a_mean_counts_every_value_alike_wherever_it_lies(two_ranks: list[dict[str, Tensor]]) -> None:
    def average(name: str) -> float:
        return (two_ranks[0][name] + two_ranks[1][name]).item() / 2

    assert average("mean") == pytest.approx((1 + 2 + 6 + 10) / 4)
    assert average("weighted") == pytest.approx((1 + 6) / 2)
    assert average("none") == 0
    for found in two_ranks:  # the trainer's average halves them: a quarter for each of four values
        assert set(found["mean x"].tolist()) == {0.5}


def test_wrong_pictures_and_texts_come_from_the_other_rank(two_ranks: list[dict[str, Tensor]]) -> None:
    first, second = two_ranks
    assert first["memories"].tolist() == [0, 1, 10, 11]
    assert second["memories"].tolist() == [10, 11, 1, 1]
    assert first["memory rows"].tolist() == second["memory rows"].tolist() == [2, 3]
    assert first["pictures"].tolist() == [0, 2]  # the other rank picked the second one twice
    assert second["pictures"].tolist() == [1, 1]
    assert first["texts"].tolist() == [[2, 2, 0]] * 2
    assert first["masks"].tolist() == [[1, 1, 0]] * 2
    assert second["texts"].tolist() == [[1, 1, 1]] * 2
    assert first["own"].tolist() == [0, 1]
    assert second["own"].tolist() == [10, 11]


def test_columns_are_padded_with_zeros() -> None:
    assert pad_columns(torch.ones(1, 2, dtype=torch.int64), 4).tolist() == [[1, 1, 0, 0]]
    assert pad_columns(torch.ones(1, 2, 3), 3).sum(dim=2).tolist() == [[3, 3, 0]]


def contrast(rank: int, world_size: int, *, theirs: bool) -> dict[str, Tensor]:
    """CLIP's loss of features that a weight has turned; open_clip's, or ours."""
    import open_clip

    g = torch.Generator().manual_seed(4)
    image_GE, text_GE = (torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(5, 5, generator=g, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    share = 6 // world_size
    rows = slice(rank * share, (rank + 1) * share)
    image_BE, text_BE = (F.normalize(x @ weight, dim=1) for x in (image_GE[rows], text_GE[rows]))
    if theirs:
        loss = open_clip.loss.ClipLoss(
            local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size
        )(image_BE, text_BE, scale)
    else:
        loss = in_batch_itc(image_BE, text_BE, torch.arange(6)[rows], scale=scale)
    loss.backward()
    return {"loss": loss.detach(), "weight": weight.grad, "scale": scale.grad}


def contrast_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {theirs: contrast(rank, 2, theirs=theirs) for theirs in (True, False)}
    dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.prove
def test_in_batch_contrast_over_two_processes_is_open_clips(tmp_path: Path) -> None:
    """Rank by rank, with local_loss and gather_with_grad; and the mean of both is that of one process."""
    mp.spawn(contrast_worker, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = contrast(0, 1, theirs=True)
    for name, value in alone.items():
        for found in ranks:
            torch.testing.assert_close(found[False][name], found[True][name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            (ranks[0][False][name] + ranks[1][False][name]) / 2, value, rtol=1e-9, atol=1e-12
        )
