"""CLIP: two towers, one contrast (Radford et al., arXiv 2103.00020); FLIP (Li et al., arXiv 2212.00794).

Blocks      pre-norm ViT with an entry norm and a bias-free patch projection; causal text transformer read
            out at its last token; one bias-free projection each.
Objective   in-batch ITC over all ranks, learnt logit scale (initially 1/0.07, at most 100). The micro batches
            of a group are contrasted with each other by feature caching (`models.objectives.cached`).
FLIP        `patch_dropout` drops this share of each picture's patches in training (the paper: 0.5 or 0.75),
            after positions are added and before the entry norm. A short run with 0 from the weights
            (`--init_from`) is the paper's unmasked tuning.
Sizes       `base` is ViT-B/16, `base32` ViT-B/32, `large` ViT-L/14 with the paper's text towers; `small` is
            open_clip's ViT-S/16; `tiny` learns small pictures on two CPU cores.
State       none beside the weights.

Deviations from the paper
- Positives go by picture, not by the diagonal (equal for batches without repeated pictures).
- GELU is the exact one by default; `activation="quick_gelu"` is that of OpenAI's weights.
- The read-out is the last token of the mask, not the largest id (equal for OpenAI's vocabulary).
- The logit scale is bounded in the forward pass instead of being clamped in place after the step.
- The paper's initial weights are those of the text tower; it leaves torch's in the image tower, where here
  the same rule holds. Biases start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from models.blocks.vision import VisionTransformer, kept_patches
from models.objectives.cached import Cached, cache, surrogate
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
        patch_dropout: Share of the patches dropped in training (FLIP), in [0, 1).
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
    patch_dropout: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(
                f"patch_dropout {self.patch_dropout} must lie in [0, 1); FLIP uses 0.5 and 0.75, 0 keeps all"
            )


SIZES: dict[str, Config] = {
    "tiny": Config(
        image_size=64, patch_size=8, vision_width=128, vision_depth=4, vision_heads=4,
        text_width=128, text_depth=2, text_heads=4, embed_dim=128, vocab_size=2048, max_text_length=32,
    ),
    "small": Config(vision_width=384, vision_heads=6, text_width=384, text_heads=6, embed_dim=384),
    "base": Config(),
    "base32": Config(patch_size=32),
    "large": Config(
        patch_size=14, vision_width=1024, vision_depth=24, vision_heads=16, text_width=768, text_heads=12,
        embed_dim=768,
    ),
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

    def image_feature(self, image_BCHW: Tensor, kept_BK: Tensor | None = None) -> Tensor:
        """The unit joint embedding [B, E], float32; of the patches `kept_BK` alone, where they are given."""
        cls_BD = self.vision(image_BCHW, kept_BK=kept_BK)[:, 0]
        return F.normalize(upcast(self.image_projection(cls_BD)), dim=-1)

    def text_feature(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> Tensor:
        """The unit joint embedding [B, E], float32."""
        return F.normalize(upcast(self.text_projection(self.text(text_ids_BT, text_mask_BT))), dim=-1)

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput:
        return ImageOutput(feature_BE=self.image_feature(image_BCHW), tokens_BND=None)

    def encode_text(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> TextOutput:
        return TextOutput(feature_BE=self.text_feature(text_ids_BT, text_mask_BT), states_BTD=None)

    def kept(self, batch: Batch, context: StepContext) -> Tensor | None:
        """The patches [B, K] that stay of each picture; None for all, as outside training."""
        share = self.config.patch_dropout
        if not self.training or share == 0:
            return None
        patches = self.vision.embed.grid**2
        return kept_patches(context.uniform("patches", batch.row_B, patches), 1 - share)

    def features(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        """What is contrasted: unit features [B, E] of pictures and of texts."""
        return (
            self.image_feature(batch.pictures, self.kept(batch, context)),
            self.text_feature(batch.text_ids_BT, batch.text_mask_BT),
        )

    def scale(self) -> Tensor:
        """The factor on the inner products, float32."""
        return bounded(self.logit_scale, high=math.log(self.config.max_logit_scale)).exp()

    def forward(self, batch: Batch, context: StepContext, extras: dict[str, Any]) -> dict[str, Tensor]:
        """The contrast of the batch; of the whole group where `ClipSystem.prepare` cached it."""
        scale, features = self.scale(), self.features(batch, context)
        cached: Cached | None = extras.get("cached")
        if cached is None:
            itc = in_batch_itc(*features, batch.image_id_B, scale=scale)
        else:
            itc = surrogate(cached, features, [scale])
        return {"loss": itc, "itc": itc.detach(), "temperature": 1 / scale.detach()}


class ClipSystem(StatelessSystem):
    """CLIP, whose micro batches in a group are contrasted with each other."""

    model: ClipModel

    def prepare(self, batches: Sequence[Batch], context: StepContext) -> list[dict[str, Any]]:
        """Nothing for a micro batch alone; for several, the gradient of the contrast over all of them."""
        if len(batches) == 1:
            return [{}]
        features = [self.model.features(batch, context) for batch in batches]
        ids = torch.cat([batch.image_id_B for batch in batches])

        def contrast(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
            return in_batch_itc(image_BE, text_BE, ids, scale=scale)

        return [{"cached": part} for part in cache(features, [self.model.scale()], contrast)]


def build(config: Config) -> ClipSystem:
    """A fresh CLIP; seed torch before."""
    return ClipSystem(model=ClipModel(config), config=config)
