"""Every recipe over two gloo processes against one: losses, the gradient of every weight, and the queues.

In float64, so that a difference is one of the arithmetic and not of its rounding.

The same 8 samples (with pictures that repeat across the processes, and texts whose longest is not the same on
both) are a step of one process, of two, and of two with two micro batches each, alone and as a group.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from models.batch import Batch, StepContext
from models.recipes import RECIPES
from tests.fidelity.case import in_precision
from tests.models.test_recipes import SMALL

ROWS = 8
#: name -> the rows of each process's micro batches, and whether they are prepared as a group
LAYOUTS: dict[str, tuple[list[list[int]], bool]] = {
    "plain": ([[0, 1, 2, 3, 4, 5, 6, 7]], False),
    "two micro batches": ([[0, 1, 2, 3], [4, 5, 6, 7]], False),
    "a group of two": ([[0, 1, 2, 3], [4, 5, 6, 7]], True),
}
CASES = [(name, layout) for name in SMALL for layout in LAYOUTS]


def whole_batch() -> Batch:
    """Texts whose longest differs between the processes, in each layout."""
    g = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(5, 57, (ROWS, 10), generator=g)
    ids_BT[:, 0] = 2
    mask_BT = torch.ones_like(ids_BT)
    for rows, length in ((slice(2, 4), 7), (slice(4, 6), 6), (slice(6, 8), 5)):
        ids_BT[rows, length:], mask_BT[rows, length:] = 0, 0
    return Batch(
        image_BCHW=torch.randn(ROWS, 3, 16, 16, generator=g, dtype=torch.float64),
        text_ids_BT=ids_BT,
        text_mask_BT=mask_BT,
        image_id_B=torch.tensor([0, 1, 2, 3, 1, 5, 6, 0]),
    )


def part(batch: Batch, rows: Sequence[int]) -> Batch:
    """These rows, their padding cut to the longest among them, as the collator of a process does."""
    length = int(batch.text_mask_BT[rows].sum(dim=1).max())
    return Batch(
        image_BCHW=batch.pictures[rows],
        text_ids_BT=batch.text_ids_BT[rows, :length],
        text_mask_BT=batch.text_mask_BT[rows, :length],
        image_id_B=batch.image_id_B[rows],
        row_B=batch.row_B[rows],
    )


def step(name: str, layout: str, rank: int, world_size: int) -> dict[str, Tensor]:
    """The trainer's step with its averages: losses, gradients, and the state beside the weights."""
    torch.manual_seed(0)
    system: Any = in_precision(RECIPES[name].build(SMALL[name]), torch.float64)
    with torch.no_grad():  # a teacher that differs from its student, and no zeros
        for weight in system.model.parameters():
            if weight.ndim:
                weight.add_(0.1 * torch.randn_like(weight))
    micro, grouped = LAYOUTS[layout]
    share = ROWS // len(micro) // world_size  # dealt in row order, as by the trainer
    batches = [part(whole_batch(), rows[rank * share :][:share]) for rows in micro]
    context = StepContext(seed=1, step=3, epoch_steps=4, rank=rank, world_size=world_size)
    system.begin_step(context, system.model)
    sums: dict[str, Any] = {}
    for group in [batches] if grouped else [[batch] for batch in batches]:
        with torch.no_grad():
            prepared = system.prepare(group, context)
        for batch, extras in zip(group, prepared, strict=True):
            losses = system.model(batch, context, extras)
            (losses["loss"] / len(batches)).backward()
            system.after_micro_step(batch, extras)
            for key, value in losses.items():
                sums[key] = sums.get(key, torch.zeros((), dtype=torch.float64)) + value.detach() / len(
                    batches
                )
    found = {f"loss {key}": value for key, value in sums.items()}
    found |= {f"gradient {n}": p.grad for n, p in system.model.named_parameters() if p.grad is not None}
    if world_size > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= world_size
    return found | {f"state {n}": v.clone() for n, v in system.state_dict().items() if "queue" in n}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, layout in CASES:
        try:
            found[f"{name}/{layout}"] = step(name, layout, rank, 2)
        except Exception:  # shown by the test of this recipe, not by those of all
            found[f"{name}/{layout}"] = traceback.format_exc()
    dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


Found = dict[str, Any]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_every_recipe_is_compared() -> None:
    assert SMALL.keys() == RECIPES.keys()


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_two_processes_have_the_losses_and_gradients_of_one(
    name: str, layout: str, two_ranks: list[Found]
) -> None:
    alone = step(name, layout, 0, 1)
    assert sum(key.startswith("gradient") for key in alone) > 20
    for found in two_ranks:
        ours = found[f"{name}/{layout}"]
        assert not isinstance(ours, str), ours
        assert ours.keys() == alone.keys()
        for key, value in alone.items():
            if key.startswith("state"):
                continue
            scale = value.abs().max().clamp(min=1e-6)
            assert (ours[key] - value).abs().max() <= 1e-9 * scale, key


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_queues_are_the_same_everywhere_and_hold_the_whole_batch(
    name: str, layout: str, two_ranks: list[Found]
) -> None:
    assert not any(isinstance(found[f"{name}/{layout}"], str) for found in two_ranks)
    states = [
        {key: value for key, value in found[f"{name}/{layout}"].items() if key.startswith("state")}
        for found in two_ranks
    ]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    if ids := [value for key, value in states[0].items() if key.endswith(".id")]:
        assert sorted(ids[0][:ROWS].tolist()) == sorted(whole_batch().image_id_B.tolist())


@pytest.mark.parametrize("name", SMALL)
def test_a_group_over_two_processes_has_the_contrast_of_one_batch(name: str, two_ranks: list[Found]) -> None:
    """Four parts of two samples against one batch of eight. CLIP has no other loss: its gradients too."""
    alone, group = step(name, "plain", 0, 1), two_ranks[0][f"{name}/a group of two"]
    keys = alone.keys() if name == "clip" else {"loss itc"}
    for key in keys:
        scale = alone[key].abs().max().clamp(min=1e-6)
        assert (group[key] - alone[key]).abs().max() <= 1e-9 * scale, key
    apart = two_ranks[0][f"{name}/two micro batches"]["loss itc"]
    assert (apart - alone["loss itc"]).abs() > 1e-3  # without the group, other negatives
