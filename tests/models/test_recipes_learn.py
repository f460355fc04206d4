"""Do the losses teach what they are for? A world of coloured squares, seconds to learn.

Telling places apart is what small models stall at when their fresh weights are too small.
"""

from __future__ import annotations

import itertools

import torch

from models.batch import Batch, StepContext
from models.recipes import albef

COLOURS = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1], [1, -1, 1]]).float()
CLS, SEP, MASK, FIRST_COLOUR, FIRST_PLACE = 2, 3, 4, 5, 11
WORLD = list(itertools.product(range(6), range(4)))

PLACES = [(0, 0), (0, 8), (8, 0), (8, 8)]

CONFIG = albef.Config(
    image_size=16, patch_size=4, vision_width=48, vision_depth=2, vision_heads=4, text_width=48, text_depth=3,
    fusion_start=1, text_heads=4, embed_dim=24, vocab_size=15, cls_id=CLS, mask_id=MASK, max_text_length=4,
    text_positions=4, queue_size=64, mlm_probability=0.3, momentum=0.98, dropout=0.0,
)  # fmt: skip


def scenes(indices: torch.Tensor, generator: torch.Generator) -> Batch:
    """A square of one of six colours at one of four places, and the caption 'colour place'."""
    image_BCHW = 0.1 * torch.randn(len(indices), 3, 16, 16, generator=generator)
    ids_BT = torch.zeros(len(indices), 4, dtype=torch.int64)
    for row, index in enumerate(indices.tolist()):
        colour, place = WORLD[index]
        top, left = PLACES[place]
        image_BCHW[row, :, top : top + 8, left : left + 8] += COLOURS[colour][:, None, None]
        ids_BT[row] = torch.tensor([CLS, FIRST_COLOUR + colour, FIRST_PLACE + place, SEP])
    return Batch(
        image_BCHW=image_BCHW, text_ids_BT=ids_BT, text_mask_BT=torch.ones_like(ids_BT), image_id_B=indices
    )


def test_albef_learns_to_retrieve_to_match_and_to_fill_in() -> None:
    torch.manual_seed(0)
    system = albef.build(CONFIG)
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=1e-3)
    g = torch.Generator().manual_seed(0)
    for step in range(260):
        batch = scenes(torch.randperm(24, generator=g)[:16], g)
        context = StepContext(seed=0, step=step, epoch_steps=100)
        system.begin_step(context, system.model)
        [extras] = system.prepare([batch], context)
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
        holes[:, 2] = MASK
        place = model.mlm_logits(holes, batch.text_mask_BT, image.tokens_BND)[:, 2].argmax(dim=-1)
    own = torch.arange(24)
    assert (nearest[:, 0] == own).float().mean() > 0.9
    assert (nearest.gather(1, best)[:, 0] == own).float().mean() > 0.9
    assert (place == batch.text_ids_BT[:, 2]).float().mean() > 0.9
