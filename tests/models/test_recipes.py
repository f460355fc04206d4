"""The recipes as the trainer, the evaluation and the checkpoints use them."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.batch import Batch, StepContext
from models.objectives.itm import Rows
from models.recipes import RECIPES, albef, albef_keys

DATA = Path(__file__).parent / "data"

ALBEF = albef.Config(
    image_size=16, patch_size=8, vision_width=32, vision_depth=2, vision_heads=2, text_width=32, text_depth=3,
    fusion_start=1, text_heads=2, embed_dim=16, vocab_size=60, cls_id=2, mask_id=4, max_text_length=10,
    text_positions=12, queue_size=20, mlm_probability=0.4, dropout=0.0,
)  # fmt: skip
SMALL: dict[str, Any] = {
    "albef": ALBEF,
    "blip": RECIPES["blip"].Config(
        image_size=16, patch_size=8, vision_width=32, vision_depth=2, vision_heads=2, text_width=32,
        text_depth=2, text_heads=2, embed_dim=16, vocab_size=60, sep_id=3, dec_id=58, enc_id=59,
        max_text_length=10, text_positions=12, queue_size=20, dropout=0.0,
    ),
    "clip": RECIPES["clip"].Config(
        image_size=16, patch_size=8, vision_width=32, vision_depth=2, vision_heads=2, text_width=32,
        text_depth=2, text_heads=2, embed_dim=16, vocab_size=60, max_text_length=10,
    ),
    "vlmo": RECIPES["vlmo"].Config(
        image_size=16, patch_size=8, width=32, depth=3, heads=2, joint_start=2, embed_dim=16, vocab_size=60,
        cls_id=2, sep_id=3, mask_id=4, max_text_length=10, text_window=12, mlm_probability=0.4,
    ),
}  # fmt: skip


def make_batch(size: int = 6, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(5, 60, (size, 10), generator=g)
    ids_BT[:, 0] = 2
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[::2, 7:], mask_BT[::2, 7:] = 0, 0
    return Batch(
        image_BCHW=torch.randn(size, 3, 16, 16, generator=g),
        text_ids_BT=ids_BT,
        text_mask_BT=mask_BT,
        image_id_B=torch.arange(size) + 100 * seed,
    )


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return RECIPES[name].build(replace(SMALL[name], **changes))


def train(system: Any, steps: int, *, first: int = 0, epoch_steps: int = 4) -> list[dict[str, float]]:
    """The trainer's loop in small, with SGD, so that its state is the weights."""
    curves = []
    for step in range(first, first + steps):
        batch, context = make_batch(seed=step), StepContext(seed=1, step=step, epoch_steps=epoch_steps)
        system.begin_step(context, system.model)
        [extras] = system.prepare([batch], context)
        losses = system.model(batch, context, extras)
        losses["loss"].backward()
        system.after_micro_step(batch, extras)
        with torch.no_grad():
            for weight in system.model.parameters():
                weight.sub_(0.05 * weight.grad)
                weight.grad = None
        curves.append({name: value.item() for name, value in losses.items()})
    return curves


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_the_contract(name: str) -> None:
    recipe = RECIPES[name]
    assert is_dataclass(recipe.Config)
    assert {"tiny", "small", "base", "large"} <= recipe.SIZES.keys()
    needed = {"vocab_size", "image_size", "max_text_length", "embed_dim", "gradient_checkpointing"}
    assert needed <= {f.name for f in fields(recipe.Config)}
    documented = recipe.Config.__doc__
    assert [f.name for f in fields(recipe.Config) if f"\n        {f.name}: " not in documented] == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_weight_learns(name: str) -> None:
    system = build(name)
    batch, context = make_batch(), StepContext(seed=1, step=3, epoch_steps=2)
    losses = system.model(batch, context, system.prepare([batch], context)[0])
    assert all(value.ndim == 0 and math.isfinite(value.item()) for value in losses.values())
    losses["loss"].backward()
    idle = [n for n, p in system.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_depends_on_its_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = train(build(name), 4)
    torch.manual_seed(2)
    assert train(build(name), 4) == first


@pytest.mark.parametrize("name", RECIPES)
def test_recomputation_changes_no_loss(name: str) -> None:
    plain, recomputed = train(build(name), 3), train(build(name, gradient_checkpointing=True), 3)
    for a, b in zip(plain, recomputed, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_bfloat16_gives_float32_losses_near_those_of_float32(name: str) -> None:
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        system = build(name)
        system.model.to(dtype)
        batch, context = make_batch().to("cpu", image_dtype=dtype), StepContext(seed=1, step=0)
        system.begin_step(context, system.model)
        losses[dtype] = system.model(batch, context, system.prepare([batch], context)[0])
        losses[dtype]["loss"].backward()
        assert losses[dtype]["loss"].dtype == torch.float32
        features = system.model.encode_image(batch.image_BCHW).feature_BE
        torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    assert losses[torch.bfloat16]["itc"].item() == pytest.approx(losses[torch.float32]["itc"].item(), rel=0.1)


def test_albef_goes_on_from_its_saved_state_as_if_undisturbed() -> None:
    undisturbed = train(build("albef"), 6)[3:]
    system = build("albef")
    train(system, 3)
    weights = {k: v.clone() for k, v in system.model.state_dict().items()}
    state = {k: v.clone() for k, v in system.state_dict().items()}
    resumed = build("albef")
    resumed.model.load_state_dict(weights, strict=True)
    resumed.load_state_dict(state)
    assert train(resumed, 3, first=3) == undisturbed


def test_albef_teacher_starts_as_the_student_and_is_reset_to_it() -> None:
    system = build("albef")
    train(system, 2)
    drift = (system.teacher.module.itm_head.weight - system.model.itm_head.weight).abs().max()
    assert drift > 0
    system.reset_teacher()
    torch.testing.assert_close(system.teacher.module.itm_head.weight, system.model.itm_head.weight)


def test_albef_reads_the_queue_before_it_enqueues() -> None:
    system = build("albef")
    lengths = []
    for step in range(5):
        batch, context = make_batch(seed=step), StepContext(seed=1, step=step)
        [extras] = system.prepare([batch], context)
        lengths.append(len(extras["keys"].id_K))
        assert torch.equal(extras["keys"].id_K[:6], batch.image_id_B)
        system.after_micro_step(batch, extras)
    assert lengths == [6, 12, 18, 24, 26]  # the batch of 6 and the queue, full at 20


def test_albef_alpha_ramps_over_the_warmup_epochs() -> None:
    config = replace(ALBEF, alpha=0.4, alpha_warmup=2.0)
    at = [albef.alpha_at(StepContext(seed=0, step=s, epoch_steps=10), config) for s in (0, 5, 10, 20, 99)]
    assert at == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4])
    assert albef.alpha_at(StepContext(seed=0, step=0), replace(config, alpha_warmup=0.0)) == 0.4


def test_albef_one_fusion_pass_equals_matching_pair_by_pair() -> None:
    model, batch = build("albef").model.eval(), make_batch()
    image, text = (
        model.encode_image(batch.image_BCHW),
        model.encode_text(batch.text_ids_BT, batch.text_mask_BT),
    )
    no_image, no_text = torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([5, 4, 3, 2, 1, 0])
    masked_ids = batch.text_ids_BT.clone()
    masked_ids[:, 3] = 4
    holes = model.encode_text(masked_ids, batch.text_mask_BT).states_BTD
    pairs, filled = model._fuse(
        image.tokens_BND, text.states_BTD, holes, batch.text_mask_BT, no_image, no_text, Rows.of("global")
    )
    tokens, states, mask = image.tokens_BND, text.states_BTD, batch.text_mask_BT
    separate = torch.cat([
        model.match(tokens, states, mask),
        model.match(tokens[no_image], states, mask),
        model.match(tokens, states[no_text], mask[no_text]),
    ])  # fmt: skip
    torch.testing.assert_close(model.itm_head(pairs[:, 0]), separate)
    torch.testing.assert_close(model.match(tokens, states, mask, rows_B=no_image), separate[6:12])
    torch.testing.assert_close(model.words(filled), model.mlm_logits(masked_ids, mask, tokens))


def test_albef_text_half_does_not_see_the_picture_and_fusion_does() -> None:
    model, batch = build("albef").model.eval(), make_batch()
    tokens = model.encode_image(batch.image_BCHW).tokens_BND
    logits = model.mlm_logits(batch.text_ids_BT, batch.text_mask_BT, tokens)
    assert not torch.allclose(logits, model.mlm_logits(batch.text_ids_BT, batch.text_mask_BT, tokens.flip(0)))


def test_albef_config_refuses_ids_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="cls_id 101 lies outside vocab_size 50"):
        albef.Config(vocab_size=50)
    with pytest.raises(ValueError, match="max_text_length 30 exceeds text_positions 20"):
        albef.Config(max_text_length=30, text_positions=20)


def published_albef() -> tuple[albef.Config, dict[str, list[int]]]:
    saved = json.loads((DATA / "albef_checkpoint.json").read_text())
    sizes = saved["config"]
    config = albef.Config(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        vision_width=sizes["vision_hidden"],
        vision_depth=sizes["vision_layers"],
        vision_heads=sizes["vision_heads"],
        text_width=sizes["text_hidden"],
        text_depth=sizes["text_layers"],
        fusion_start=sizes["fusion_start_layer"],
        text_heads=sizes["text_heads"],
        embed_dim=sizes["projection_dim"],
        vocab_size=sizes["vocab_size"],
        text_positions=sizes["max_position_embeddings"],
        max_text_length=sizes["max_text_length"],
        queue_size=sizes["queue_size"],
    )
    return config, saved["state_dict"]


def test_every_weight_of_a_published_albef_has_its_place_and_every_place_a_weight() -> None:
    config, published = published_albef()
    system = albef.build(config)
    ours = dict(system.model.state_dict()) | system.state_dict()
    placed: dict[str, list[str]] = {}
    for name, shape in published.items():
        place = albef_keys.KEYS.ours(name)
        if place is None:
            assert name.endswith("position_ids")
            continue
        change = albef_keys.KEYS.change(name)
        value = ours[place] if change is None else change.to_published(ours[place])
        assert value.numel() == math.prod(shape), f"{name} -> {place}"
        if name != "queue_ptr":
            assert list(value.shape) == shape, f"{name} -> {place}"
        placed.setdefault(place, []).append(name)
    for place, names in placed.items():
        assert sorted(albef_keys.KEYS.published(place)) == sorted(names)
    # the teacher has no idle copies there, and our queue remembers more
    only_here = {"teacher.itm_head.weight", "teacher.itm_head.bias", "teacher.temperature"}
    assert ours.keys() - placed.keys() == only_here | {"queue.id", "queue.filled"}
    with pytest.raises(KeyError):
        albef_keys.KEYS.ours("text_decoder.bert.embeddings.word_embeddings.weight")


def test_base_sizes_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        clip_model = RECIPES["clip"].ClipModel(RECIPES["clip"].SIZES["base"])
        albef_model = albef.AlbefModel(albef.SIZES["base"])
    assert sum(p.numel() for p in clip_model.parameters()) == 149_620_737  # OpenAI's ViT-B/16
    vision = 85_798_656 + (256 - 196) * 768  # timm's ViT-B/16, with the positions of 256 px
    bert = 109_514_298  # transformers' BertForMaskedLM at bert-base-uncased
    fusion = 6 * (4 * (768 * 768 + 768) + 2 * 768)  # cross-attention and its norm
    heads = 2 * (768 * 256 + 256) + (768 * 2 + 2) + 1
    assert sum(p.numel() for p in albef_model.parameters()) == vision + bert + fusion + heads
