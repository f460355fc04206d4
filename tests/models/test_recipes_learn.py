"""Do the losses teach what they are for? A world of coloured cloths, seconds to learn."""

from __future__ import annotations

import itertools

import torch

from models.batch import Batch, StepContext
from models.recipes import albef

COLOURS = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1], [1, -1, 1]]).float()
CLS, SEP, MASK, FIRST_COLOUR, FIRST_WEAVE = 2, 3, 4, 5, 11
WORLD = list(itertools.product(range(6), range(4)))


def weave(kind: int) -> torch.Tensor:
    """Rows, columns, checks or nothing, [16, 16] of -1 and 1."""
    y_HW, x_HW = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    stripes = (y_HW // 2, x_HW // 2, x_HW // 2 + y_HW // 2, torch.zeros_like(x_HW))[kind]
    return 1.0 - 2.0 * (stripes % 2)


CONFIG = albef.Config(
    image_size=16, patch_size=8, vision_width=48, vision_depth=2, vision_heads=4, text_width=48, text_depth=3,
    fusion_start=1, text_heads=4, embed_dim=24, vocab_size=15, cls_id=CLS, mask_id=MASK, max_text_length=4,
    text_positions=4, queue_size=64, mlm_probability=0.3, momentum=0.98,
)  # fmt: skip


def scenes(indices: torch.Tensor, generator: torch.Generator) -> Batch:
    """A cloth of one of six colours in one of four weaves, and the caption 'colour weave'."""
    image_BCHW = 0.1 * torch.randn(len(indices), 3, 16, 16, generator=generator)
    ids_BT = torch.zeros(len(indices), 4, dtype=torch.int64)
    for row, index in enumerate(indices.tolist()):
        colour, kind = WORLD[index]
        image_BCHW[row] += COLOURS[colour][:, None, None] + weave(kind)
        ids_BT[row] = torch.tensor([CLS, FIRST_COLOUR + colour, FIRST_WEAVE + kind, SEP])
    return Batch(
        image_BCHW=image_BCHW, text_ids_BT=ids_BT, text_mask_BT=torch.ones_like(ids_BT), image_id_B=indices
    )


def test_albef_learns_to_retrieve_to_match_and_to_fill_in() -> None:
    torch.manual_seed(0)
    system = albef.build(CONFIG)
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=2e-3)
    g = torch.Generator().manual_seed(0)
    for step in range(200):
        batch = scenes(torch.randperm(24, generator=g)[:16], g)
        context = StepContext(seed=0, step=step, epoch_steps=100)
        system.begin_step(context, system.model)
        extras = system.prepare(batch, context)
        system.model(batch, context, extras)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        system.after_micro_step(batch, extras)

    model = system.model.eval()
    batch = scenes(torch.arange(24), g)
    with torch.no_grad():
        image = model.encode_image(batch.image_BCHW)
        text = model.encode_text(batch.text_ids_BT, batch.text_mask_BT)
        nearest = (image.feature_BE @ text.feature_BE.T).topk(6, dim=1).indices
        match = model.match(  # re-rank the six nearest texts of each picture
            image.tokens_BND,
            text.states_BTD[nearest.flatten()],
            batch.text_mask_BT[nearest.flatten()],
            rows_B=torch.arange(24).repeat_interleave(6),
        )
        best = match.softmax(-1)[:, 1].reshape(24, 6).argmax(dim=1, keepdim=True)
        holes = batch.text_ids_BT.clone()
        holes[:, 1] = MASK
        colour = model.mlm_logits(holes, batch.text_mask_BT, image.tokens_BND)[:, 1].argmax(dim=-1)
    own = torch.arange(24)
    assert (nearest[:, 0] == own).float().mean() > 0.9
    assert (nearest.gather(1, best)[:, 0] == own).float().mean() > 0.9
    assert (colour == batch.text_ids_BT[:, 1]).float().mean() > 0.9
