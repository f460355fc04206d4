"""CLIP and FLIP against open_clip: features, loss and the gradient of every weight."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import open_clip
import torch
import torch.nn.functional as F

from models.batch import Batch, StepContext
from models.recipes import clip, clip_keys
from tests.fidelity.case import Answers, Case, gradients, load, shake

SMALL = clip.Config(
    image_size=32, patch_size=8, vision_width=32, vision_depth=2, vision_heads=4, text_width=16, text_depth=2,
    text_heads=2, embed_dim=24, vocab_size=50, max_text_length=10,
)  # fmt: skip
CONTEXT = StepContext(seed=2, step=7)


def open_clip_of(config: clip.Config) -> Any:
    """The same model there."""
    c = config
    return open_clip.model.CLIP(
        embed_dim=c.embed_dim,
        vision_cfg={
            "image_size": c.image_size, "patch_size": c.patch_size, "width": c.vision_width,
            "layers": c.vision_depth, "head_width": c.vision_width // c.vision_heads,
            "patch_dropout": c.patch_dropout,
        },
        text_cfg={
            "context_length": c.max_text_length, "vocab_size": c.vocab_size, "width": c.text_width,
            "layers": c.text_depth, "heads": c.text_heads,
        },
        quick_gelu=c.activation == "quick_gelu",
    )  # fmt: skip


def batch_for(config: clip.Config, dtype: torch.dtype, size: int) -> Batch:
    """Texts of different lengths that end in the largest id, by which open_clip finds their end."""
    g = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(1, config.vocab_size - 1, (size, config.max_text_length), generator=g)
    mask_BT = torch.ones_like(ids_BT)
    for row in range(size):
        length = config.max_text_length - row
        ids_BT[row, length - 1] = config.vocab_size - 1
        ids_BT[row, length:], mask_BT[row, length:] = 0, 0
    pixels = torch.randn(size, 3, config.image_size, config.image_size, generator=g, dtype=torch.float64)
    return Batch(
        image_BCHW=pixels.to(dtype), text_ids_BT=ids_BT, text_mask_BT=mask_BT, image_id_B=torch.arange(size)
    )


def compare(dtype: torch.dtype, *, config: clip.Config, size: int = 4, shaken: float = 0.1) -> Answers:
    torch.manual_seed(0)
    reference = open_clip_of(config)
    shake(reference, by=shaken)
    system = clip.build(config)
    load(system.model, clip_keys.KEYS, reference.state_dict())
    model, reference = system.model.to(dtype), reference.to(dtype)
    batch = batch_for(config, dtype, size)

    # open_clip keeps the patches of the largest torch.randn; with our numbers there, both keep the same ones
    numbers = CONTEXT.uniform("patches", batch.row_B, model.vision.embed.grid**2)
    with mock.patch("torch.randn", return_value=numbers):
        their_image = reference.encode_image(batch.pictures)
    their_text = reference.encode_text(batch.text_ids_BT)
    their_scale = reference.logit_scale.exp()
    features = F.normalize(their_image, dim=-1), F.normalize(their_text, dim=-1)
    loss = open_clip.loss.ClipLoss()(*features, their_scale)
    loss.backward()

    our_image = model.image_projection(model.vision(batch.pictures, kept_BK=model.kept(batch, CONTEXT))[:, 0])
    our_text = model.text_projection(model.text(batch.text_ids_BT, batch.text_mask_BT))
    ours = model(batch, CONTEXT, system.prepare([batch], CONTEXT)[0])
    ours["loss"].backward()
    return {
        "outputs": {
            "image": (our_image, their_image),
            "text": (our_text, their_text),
            "scale": (model.scale(), their_scale),
        },
        "losses": {"itc": (ours["loss"], loss)},
        "gradients": gradients(
            model, clip_keys.KEYS, {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
        ),
    }


def case(system: str, config: clip.Config, **options: Any) -> Case:
    size = options.pop("size_name", "small")
    return Case(
        system=system, oracle="open_clip CLIP and ClipLoss", package="open_clip_torch", size=size,
        run=partial(compare, config=config, **options),
    )  # fmt: skip


def changed(**fields: Any) -> clip.Config:
    return clip.Config(**{**vars(SMALL), **fields})


CASES = [
    case("CLIP", SMALL),
    case("CLIP, QuickGELU", changed(activation="quick_gelu")),
    case("FLIP, half of the patches", changed(patch_dropout=0.5)),
    case("FLIP, a quarter of the patches", changed(patch_dropout=0.75)),
    case("CLIP", clip.SIZES["base"], size_name="base (ViT-B/16)", size=2, shaken=0.03),
]

WITHOUT_ORACLE = [
    "repeated pictures share the target evenly (open_clip goes by the diagonal): against the formula in "
    "`tests/models/test_objectives.py`.",
    "contrast over two processes: open_clip's ClipLoss with local_loss and gather_with_grad, in "
    "`tests/models/test_objectives_ranks.py`; one process against two, every weight, in "
    "`tests/models/test_recipes_ranks.py`.",
    "contrast over micro batches by cached features: against one large batch, 1e-9 in float64, in "
    "`tests/models/test_objectives_cached.py`.",
]
