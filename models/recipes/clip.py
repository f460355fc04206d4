"""CLIP: two towers, one contrast (Radford et al., arXiv 2103.00020).

Blocks      pre-norm ViT with an entry norm and a bias-free patch projection; causal text transformer read
            out at its last token; one bias-free projection each.
Objective   in-batch ITC over all ranks, learnt logit scale (initially 1/0.07, at most 100).
Sizes       `base` is ViT-B/16 with the paper's text tower; `tiny` learns small pictures on two CPU cores.
State       none beside the weights.

Deviations from the paper
- Positives go by picture, not by the diagonal (equal for batches without repeated pictures).
- GELU is the exact one by default; `activation="quick_gelu"` is that of OpenAI's weights.
- The read-out is the last token of the mask, not the largest id (equal for OpenAI's vocabulary).
- The logit scale is bounded in the forward pass instead of being clamped in place after the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, StepContext
from models.blocks.block import BlockConfig
from models.blocks.bounded import bounded
from models.blocks.initialise import init_clip_
from models.blocks.text import CausalTextTower
from models.blocks.vision import VisionTransformer
from models.objectives.itc import in_batch_itc
from models.precision import upcast
from models.recipes.base import ImageOutput, StatelessSystem, TextOutput


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every dimension of a CLIP; the defaults are the paper's ViT-B/16.

    Attributes:
        image_size: Side of the square pictures, in pixels.
        patch_size: Side of a patch, in pixels.
        vision_width: Width of the image tower.
        vision_depth: Blocks of the image tower.
        vision_heads: Attention heads of the image tower.
        text_width: Width of the text tower.
        text_depth: Blocks of the text tower.
        text_heads: Attention heads of the text tower.
        mlp_ratio: Inner width of the feed-forward networks over the width.
        embed_dim: Width of the joint embedding.
        vocab_size: Entries of the tokenizer.
        max_text_length: Tokens of a text, special tokens included.
        activation: gelu (exact) or quick_gelu (OpenAI's weights).
        temperature: Initial temperature; the logit scale starts at its inverse.
        max_logit_scale: Upper bound of the logit scale.
        gradient_checkpointing: Recompute the blocks in the backward pass to save memory.
    """

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    mlp_ratio: int = 4
    embed_dim: int = 512
    vocab_size: int = 49408
    max_text_length: int = 77
    activation: str = "gelu"
    temperature: float = 0.07
    max_logit_scale: float = 100.0
    gradient_checkpointing: bool = False


SIZES: dict[str, Config] = {
    "tiny": Config(
        image_size=64, patch_size=8, vision_width=128, vision_depth=4, vision_heads=4,
        text_width=128, text_depth=2, text_heads=4, embed_dim=128, vocab_size=2048, max_text_length=32,
    ),
    "base": Config(),
}  # fmt: skip

LAYER_NORM_EPS = 1e-5


class ClipModel(nn.Module):
    """The two towers; `forward` is the loss, `encode_*` are what search and scoring use."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

        def block(width: int, heads: int) -> BlockConfig:
            return BlockConfig(
                width=width, heads=heads, hidden=config.mlp_ratio * width, eps=LAYER_NORM_EPS,
                activation=config.activation,
            )  # fmt: skip

        self.vision = VisionTransformer(
            block(config.vision_width, config.vision_heads),
            image_size=config.image_size,
            patch_size=config.patch_size,
            depth=config.vision_depth,
            patch_bias=False,
            entry_norm=True,
            recompute=config.gradient_checkpointing,
        )
        self.text = CausalTextTower(
            block(config.text_width, config.text_heads),
            vocab_size=config.vocab_size,
            positions=config.max_text_length,
            depth=config.text_depth,
            recompute=config.gradient_checkpointing,
        )
        self.image_projection = nn.Linear(config.vision_width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))  # its logarithm
        init_clip_(self.vision)
        init_clip_(self.text)
        nn.init.normal_(self.image_projection.weight, std=config.vision_width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=config.text_width**-0.5)

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput:
        cls_BD = self.vision(image_BCHW)[:, 0]
        return ImageOutput(
            feature_BE=F.normalize(upcast(self.image_projection(cls_BD)), dim=-1), tokens_BND=None
        )

    def encode_text(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> TextOutput:
        last_BD = self.text(text_ids_BT, text_mask_BT)
        return TextOutput(
            feature_BE=F.normalize(upcast(self.text_projection(last_BD)), dim=-1), states_BTD=None
        )

    def scale(self) -> Tensor:
        """The factor on the inner products, float32."""
        return bounded(self.logit_scale, high=math.log(self.config.max_logit_scale)).exp()

    def forward(self, batch: Batch, context: StepContext, extras: dict[str, Any]) -> dict[str, Tensor]:
        scale = self.scale()
        itc = in_batch_itc(
            self.encode_image(batch.pictures).feature_BE,
            self.encode_text(batch.text_ids_BT, batch.text_mask_BT).feature_BE,
            batch.image_id_B,
            scale=scale,
        )
        return {"loss": itc, "itc": itc.detach(), "temperature": 1 / scale.detach()}


def build(config: Config) -> StatelessSystem:
    """A fresh CLIP; seed torch before."""
    return StatelessSystem(model=ClipModel(config), config=config)
