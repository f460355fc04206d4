"""The blocks: what each does to shapes, masks and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.blocks.attention import CrossAttention, SelfAttention, key_mask
from models.blocks.block import BlockConfig, TransformerBlock, run_blocks
from models.blocks.bounded import bounded
from models.blocks.embedders import BertEmbedder, PatchEmbedder, resize_positions
from models.blocks.feedforward import FeedForward
from models.blocks.text import CausalTextTower, last_token
from models.blocks.vision import VisionTransformer

SMALL = BlockConfig(width=16, heads=4, hidden=32)


def test_self_attention_is_softmax_of_scaled_scores_and_ignores_padding() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 2)
    x_BTD, mask_BT = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    q_BTD, k_BTD, v_BTD = attention.qkv(x_BTD).chunk(3, dim=-1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        score_BTT = q_BTD[..., part] @ k_BTD[..., part].transpose(1, 2) / math.sqrt(4)
        score_BTT = score_BTT + (1 - mask_BT[:, None, :]) * -10000.0  # the reference's additive mask
        heads.append(score_BTT.softmax(-1) @ v_BTD[..., part])
    expected = attention.out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x_BTD, mask=key_mask(mask_BT)), expected)


def test_fused_and_separate_projections_agree() -> None:
    torch.manual_seed(0)
    fused, separate = SelfAttention(8, 2), SelfAttention(8, 2, fused=False)
    for name, weight, bias in zip(
        ("query", "key", "value"), fused.qkv.weight.chunk(3), fused.qkv.bias.chunk(3), strict=True
    ):
        getattr(separate, name).load_state_dict({"weight": weight, "bias": bias})
    separate.out.load_state_dict(fused.out.state_dict())
    x_BTD = torch.randn(2, 5, 8)
    torch.testing.assert_close(fused(x_BTD), separate(x_BTD))


def test_cross_attention_rows_equal_repeating_the_memories() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 2, memory_width=12)
    x_BTD, memory_MND, rows_B = torch.randn(5, 3, 8), torch.randn(2, 7, 12), torch.tensor([1, 0, 0, 1, 1])
    torch.testing.assert_close(
        attention(x_BTD, memory_MND, rows_B=rows_B), attention(x_BTD, memory_MND[rows_B])
    )


def test_where_the_norm_stands() -> None:
    x_BTD = torch.randn(2, 5, 16) * 10
    post = TransformerBlock(BlockConfig(width=16, heads=4, hidden=32, norm="post"))
    assert post(x_BTD).std(dim=-1, unbiased=False).allclose(torch.ones(2, 5), atol=1e-3)
    pre = TransformerBlock(SMALL)
    for layer in (pre.attention.out, pre.feed_forward.down):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.testing.assert_close(pre(x_BTD), x_BTD)  # the residual path of a pre-norm block is bare


def test_a_block_with_cross_attention_works_as_text_only_without_a_memory() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(BlockConfig(width=16, heads=4, hidden=32, memory_width=16))
    plain = TransformerBlock(SMALL)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("cross_")})
    x_BTD = torch.randn(2, 5, 16)
    torch.testing.assert_close(block(x_BTD), plain(x_BTD))
    assert not torch.allclose(block(x_BTD, memory_MND=torch.randn(2, 3, 16)), plain(x_BTD))


def test_recomputing_gives_the_same_gradient() -> None:
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(
        TransformerBlock(BlockConfig(width=16, heads=4, hidden=32, memory_width=16)) for _ in range(2)
    )
    memory_MND, rows_B = torch.randn(2, 3, 16, requires_grad=True), torch.tensor([0, 1, 1, 0])
    gradients = []
    for recompute in (False, True):
        x_BTD = torch.ones(4, 5, 16, requires_grad=True)
        blocks.zero_grad()
        run_blocks(
            blocks, x_BTD, recompute=recompute, memory_MND=memory_MND, rows_B=rows_B
        ).square().sum().backward()
        gradients.append([x_BTD.grad, *(p.grad.clone() for p in blocks.parameters())])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_patch_embedder_cuts_row_by_row_and_puts_cls_first() -> None:
    embed = PatchEmbedder(image_size=4, patch_size=2, width=3, bias=False)
    torch.nn.init.ones_(embed.patch.weight)
    image_BCHW = torch.zeros(1, 3, 4, 4)
    image_BCHW[0, :, 0, 2] = 1.0  # upper right patch
    torch.nn.init.constant_(embed.cls, 7.0)
    assert embed(image_BCHW)[0, :, 0].tolist() == [7.0, 0.0, 3.0, 0.0, 0.0]


def test_patch_embedder_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="patch_size 5 must divide image_size 16"):
        PatchEmbedder(image_size=16, patch_size=5, width=4)
    with pytest.raises(ValueError, match="image_size is 16"):
        PatchEmbedder(image_size=16, patch_size=4, width=4)(torch.zeros(1, 3, 24, 24))


def test_resize_positions_is_bicubic_and_keeps_cls() -> None:
    ramp_HW = torch.arange(4.0).repeat(4, 1)
    positions_1ND = torch.cat([torch.full((1, 1, 1), 9.0), ramp_HW.reshape(1, 16, 1)], dim=1)
    resized_1ND = resize_positions(positions_1ND, 8)
    assert resized_1ND.shape == (1, 65, 1)
    assert resized_1ND[0, 0, 0] == 9.0
    middle_W = resized_1ND[0, 1:, 0].reshape(8, 8)[4, 3:5]
    # Keys' kernel with a = -0.75 at 1.25 and 1.75 on the ramp 0 1 2 3; bilinear would give 1.25 and 1.75.
    torch.testing.assert_close(middle_W, torch.tensor([1.296875, 1.703125]))
    assert resize_positions(positions_1ND, 4) is positions_1ND
    with pytest.raises(ValueError, match="square"):
        resize_positions(torch.zeros(1, 8, 1), 4)


def test_a_text_longer_than_the_positions_is_refused() -> None:
    embed = BertEmbedder(vocab_size=9, positions=4, token_types=2, width=8, pad_id=0, eps=1e-12)
    with pytest.raises(ValueError, match="5 tokens, but the position table has 4"):
        embed(torch.ones(1, 5, dtype=torch.int64))


def test_activations_differ_and_unknown_ones_are_named() -> None:
    x = torch.tensor([[1.0]])
    values = {}
    for activation in ("gelu", "quick_gelu"):
        feed_forward = FeedForward(1, 1, activation=activation)
        for part in (feed_forward.up, feed_forward.down):
            torch.nn.init.ones_(part.weight)
            torch.nn.init.zeros_(part.bias)
        values[activation] = feed_forward(x).item()
    assert values["gelu"] == pytest.approx(0.841345, abs=1e-5)
    assert values["quick_gelu"] == pytest.approx(0.845796, abs=1e-5)
    with pytest.raises(ValueError, match="'swish'; use one of gelu, quick_gelu"):
        FeedForward(4, 4, activation="swish")


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads 3 must divide width 8"):
        SelfAttention(8, 3)


def test_causal_tower_reads_the_last_token_and_never_the_padding() -> None:
    torch.manual_seed(0)
    tower = CausalTextTower(SMALL, vocab_size=20, positions=8, depth=2)
    short, padded = torch.tensor([[3, 7, 2]]), torch.tensor([[3, 7, 2, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(tower(short, torch.ones_like(short)), tower(padded, mask))
    x_BTD = torch.arange(6.0).reshape(1, 6, 1)
    assert last_token(x_BTD, mask).item() == 2.0
    assert last_token(x_BTD, torch.ones_like(mask)).item() == 5.0


def test_vision_transformer_in_bfloat16_takes_float32_pictures() -> None:
    vision = VisionTransformer(SMALL, image_size=8, patch_size=4, depth=1).bfloat16()
    tokens_BND = vision(torch.randn(2, 3, 8, 8))
    assert tokens_BND.shape == (2, 5, 16)
    assert tokens_BND.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("start", "slope", "moves"), [(0.6, 1.0, True), (0.6, -1.0, False), (0.3, -1.0, True)]
)
def test_bounded_returns_from_beyond_its_bound(start: float, slope: float, moves: bool) -> None:
    x = torch.tensor(start, requires_grad=True)
    y = bounded(x, low=0.001, high=0.5)
    assert y.item() == pytest.approx(min(start, 0.5))
    (slope * y).backward()
    assert (x.grad != 0).item() is moves  # descent on a positive slope leads down, back inside


def test_padding_embedding_row_gets_no_gradient_from_the_lookup() -> None:
    embed = BertEmbedder(vocab_size=9, positions=4, token_types=2, width=8, pad_id=0, eps=1e-12)
    F.mse_loss(embed(torch.tensor([[2, 3, 0]])), torch.randn(1, 3, 8)).backward()
    assert embed.word.weight.grad[0].abs().sum() == 0
    assert embed.word.weight.grad[3].abs().sum() > 0
