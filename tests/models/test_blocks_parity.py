"""The blocks against other implementations with the same weights, loaded by the recipes' key maps.

Tolerances are relative to the largest value of the reference: 1e-5 in float32, 1e-9 in float64, where a
wrong epsilon or a tanh GELU can no longer hide in rounding.
"""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from models.recipes import albef, albef_keys, clip, clip_keys

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def assert_near(ours: Tensor, reference: Tensor, bound: float) -> None:
    error = (ours - reference).abs().max() / reference.abs().max()
    assert error < bound, f"relative error {error:.2e}, allowed {bound}"


def shake(module: nn.Module) -> None:
    """Random values everywhere, so that no bias of 0 or gain of 1 hides a missing part."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)


def small_albef(*, fusion_start: int, depth: int) -> albef.AlbefModel:
    return albef.AlbefModel(
        albef.Config(
            image_size=32, patch_size=8, vision_width=32, vision_depth=3, vision_heads=4, text_width=32,
            text_depth=depth, fusion_start=fusion_start, text_heads=4, embed_dim=16, vocab_size=120,
            text_positions=24, max_text_length=12,
        )
    ).eval()  # fmt: skip


def bert_config(depth: int, **extra: Any) -> BertConfig:
    return BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=24, hidden_act="gelu", layer_norm_eps=1e-12, pad_token_id=0, **extra,
    )  # fmt: skip


def load_by_map(model: nn.Module, reference: nn.Module, *, prefix: str) -> None:
    """Copies every weight of `reference` that the ALBEF key map places, and checks that all were placed."""
    state = {}
    for name, value in reference.state_dict().items():
        ours = albef_keys.KEYS.ours(prefix + name)
        if ours is not None:
            state[ours] = value
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys


IDS = torch.tensor([[101, 7, 8, 9, 102, 0, 0], [101, 11, 12, 13, 14, 15, 102]])
MASK = (IDS > 0).long()


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_text_half_and_word_predictor_equal_bert(dtype: torch.dtype, bound: float) -> None:
    reference = BertForMaskedLM(bert_config(3)).eval()
    shake(reference)
    model = small_albef(fusion_start=3, depth=3)
    load_by_map(model, reference, prefix="text_encoder.")
    model, reference = model.to(dtype), reference.to(dtype)
    with torch.no_grad():
        expected = reference(IDS, attention_mask=MASK, output_hidden_states=True)
        states_BTD = model.text.encode(IDS, MASK)
        assert_near(states_BTD[MASK.bool()], expected.hidden_states[-1][MASK.bool()], bound)
        assert_near(model.words(states_BTD)[MASK.bool()], expected.logits[MASK.bool()], bound)


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_fusion_half_equals_bert_with_cross_attention(dtype: torch.dtype, bound: float) -> None:
    config = bert_config(2, is_decoder=True, add_cross_attention=True)
    reference = BertModel(config, add_pooling_layer=False).eval()
    shake(reference)
    model = small_albef(fusion_start=0, depth=2)
    load_by_map(model, reference, prefix="text_encoder.bert.")
    model, reference = model.to(dtype), reference.to(dtype)
    image_BND = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    # The reference is a decoder, causal by itself; a full 4-d mask makes it look both ways as ALBEF does.
    open_mask = torch.where(MASK[:, None, None, :].bool(), 0.0, -10000.0).to(dtype).expand(-1, 1, 7, -1)
    with torch.no_grad():
        expected = reference(
            IDS, attention_mask=open_mask, encoder_hidden_states=image_BND, use_cache=False
        ).last_hidden_state
        ours = model.text.fuse(model.text.encode(IDS, MASK), MASK, image_BND)
    assert_near(ours[MASK.bool()], expected[MASK.bool()], bound)


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_image_tower_of_albef_equals_timm(dtype: torch.dtype, bound: float) -> None:
    reference = TimmViT(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0).eval()
    shake(reference)
    model = small_albef(fusion_start=1, depth=2)
    load_by_map(model, reference, prefix="visual_encoder.")
    model, reference = model.to(dtype), reference.to(dtype)
    image_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.no_grad():
        assert_near(model.vision(image_BCHW), reference.forward_features(image_BCHW), bound)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_clip_equals_open_clip(quick: bool, dtype: torch.dtype, bound: float) -> None:
    reference = open_clip.model.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8},
        text_cfg={"context_length": 10, "vocab_size": 50, "width": 16, "layers": 2, "heads": 2},
        quick_gelu=quick,
    ).eval()
    shake(reference)
    model = clip.ClipModel(
        clip.Config(
            image_size=32, patch_size=8, vision_width=32, vision_depth=2, vision_heads=4, text_width=16,
            text_depth=2, text_heads=2, embed_dim=24, vocab_size=50, max_text_length=10,
            activation="quick_gelu" if quick else "gelu",
        )
    ).eval()  # fmt: skip
    state = {}
    for name, value in reference.state_dict().items():
        ours, change = clip_keys.KEYS.ours(name), clip_keys.KEYS.change(name)
        if ours is not None:
            state[ours] = value if change is None else change.to_ours(value)
    model.load_state_dict(state, strict=True)
    model, reference = model.to(dtype), reference.to(dtype)
    image_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    ids_BT = torch.tensor([[48, 5, 6, 49, 0, 0, 0, 0, 0, 0], [48, 7, 8, 9, 10, 49, 0, 0, 0, 0]])
    mask_BT = torch.tensor([[1] * 4 + [0] * 6, [1] * 6 + [0] * 4])  # open_clip goes by the largest id
    with torch.no_grad():
        # Features before normalisation, which our model does in float32.
        ours_image = model.image_projection(model.vision(image_BCHW)[:, 0])
        ours_text = model.text_projection(model.text(ids_BT, mask_BT))
        assert_near(ours_image, reference.encode_image(image_BCHW), bound)
        assert_near(ours_text, reference.encode_text(ids_BT), bound)
        scale = reference.logit_scale.clamp(max=torch.tensor(100.0).log()).exp()
    torch.testing.assert_close(model.scale(), scale, rtol=1e-5, atol=0)
