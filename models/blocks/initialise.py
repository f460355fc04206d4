"""How fresh weights are drawn, per family. Every function changes its module in place."""

from __future__ import annotations

from torch import nn

from models.blocks.block import TransformerBlock
from models.blocks.text import CausalTextTower
from models.blocks.vision import VisionTransformer


def init_bert_(module: nn.Module, *, std: float = 0.02) -> None:
    """BERT: normal weights, zero biases, a zero row for padding."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if part.padding_idx is not None:
                nn.init.zeros_(part.weight[part.padding_idx].detach())


def init_vit_(vision: VisionTransformer, *, std: float = 0.02) -> None:
    """ViT and DeiT: truncated normal weights, positions and [CLS]; the patch projection keeps torch's."""
    for part in vision.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
    nn.init.trunc_normal_(vision.embed.positions, std=std)
    nn.init.trunc_normal_(vision.embed.cls, std=std)


def init_clip_(tower: VisionTransformer | CausalTextTower) -> None:
    """CLIP (arXiv 2103.00020, released code): deviations by width and depth, smaller at branch ends."""
    width, depth = tower.norm.normalized_shape[0], len(tower.blocks)
    inner, ending = width**-0.5, width**-0.5 * (2 * depth) ** -0.5
    for block in tower.blocks:
        assert isinstance(block, TransformerBlock)
        attention, feed_forward = block.attention, block.feed_forward
        nn.init.normal_(attention.qkv.weight, std=inner)
        nn.init.normal_(attention.out.weight, std=ending)
        nn.init.normal_(feed_forward.up.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(feed_forward.down.weight, std=ending)
        for part in (attention.qkv, attention.out, feed_forward.up, feed_forward.down):
            nn.init.zeros_(part.bias)
    if isinstance(tower, VisionTransformer):
        nn.init.normal_(tower.embed.cls, std=inner)
        nn.init.normal_(tower.embed.positions, std=inner)
    else:
        nn.init.normal_(tower.embed.word.weight, std=0.02)
        nn.init.normal_(tower.embed.position, std=0.01)
