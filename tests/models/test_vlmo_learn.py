"""Does VLMo learn what its losses are for? Coloured squares at places, seconds to learn."""

from __future__ import annotations

import torch

from models.batch import StepContext
from models.recipes import vlmo
from tests.models.test_recipes_learn import CLS, MASK, SEP, scenes

CONFIG = vlmo.Config(
    image_size=16, patch_size=8, width=48, depth=2, heads=4, joint_start=1, positions="absolute",
    layer_scale=0.0, drop_path=0.0, embed_dim=24, vocab_size=15, cls_id=CLS, sep_id=SEP, mask_id=MASK,
    max_text_length=4, mlm_probability=0.3,
)  # fmt: skip


def test_vlmo_learns_to_retrieve_to_match_and_to_fill_in() -> None:
    torch.manual_seed(0)
    system = vlmo.build(CONFIG)
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=1.5e-3)
    g = torch.Generator().manual_seed(0)
    for step in range(280):
        batch = scenes(torch.randperm(24, generator=g)[:16], g)
        context = StepContext(seed=0, step=step, epoch_steps=100)
        [extras] = system.prepare([batch], context)
        system.model(batch, context, extras)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    model = system.model.eval()
    batch = scenes(torch.arange(24), g)
    with torch.no_grad():
        image = model.encode_image(batch.pictures)
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
        blank = model.encode_image(torch.zeros_like(batch.pictures)).tokens_BND
        guess = model.mlm_logits(holes, batch.text_mask_BT, blank)[:, 2].argmax(dim=-1)
    own, truth = torch.arange(24), batch.text_ids_BT[:, 2]
    assert (nearest[:, 0] == own).float().mean() > 0.9
    assert (nearest.gather(1, best)[:, 0] == own).float().mean() > 0.9
    assert (place == truth).float().mean() > 0.9
    assert (guess == truth).float().mean() < 0.5, "places are named without a picture"
