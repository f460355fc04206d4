"""The vision transformer (arXiv 2010.11929) as ALBEF and CLIP use it, and FLIP's dropping of patches.

Both are pre-norm with a [CLS] token and learnt positions. They differ in the epsilon (1e-6, 1e-5), the
bias of the patch projection, the activation, and in CLIP's extra layer norm before the first block.

Shapes: B batch, C channels, H/W pixels, N image tokens ([CLS] first), K kept patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks.block import BlockConfig, TransformerBlock, run_blocks
from models.blocks.embedders import PatchEmbedder


class VisionTransformer(nn.Module):
    """[B, 3, H, W] to normed tokens [B, N, D], the [CLS] token first.

    `entry_norm` is CLIP's layer norm on the embedded patches; `recompute` checkpoints every block.
    """

    def __init__(
        self,
        block: BlockConfig,
        *,
        image_size: int,
        patch_size: int,
        depth: int,
        patch_bias: bool = True,
        entry_norm: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.embed = PatchEmbedder(
            image_size=image_size, patch_size=patch_size, width=block.width, bias=patch_bias
        )
        self.entry_norm = nn.LayerNorm(block.width, eps=block.eps) if entry_norm else None
        self.blocks = nn.ModuleList(TransformerBlock(block) for _ in range(depth))
        self.norm = nn.LayerNorm(block.width, eps=block.eps)

    def forward(self, image_BCHW: Tensor, *, kept_BK: Tensor | None = None) -> Tensor:
        """`kept_BK` (from `kept_patches`): patches that stay; positions are added before."""
        x_BND = self.embed(image_BCHW)
        if kept_BK is not None:
            x_BND = keep_patches(x_BND, kept_BK)
        if self.entry_norm is not None:
            x_BND = self.entry_norm(x_BND)
        return self.norm(run_blocks(self.blocks, x_BND, recompute=self.recompute))


def kept_patches(uniform_BN: Tensor, share: float) -> Tensor:
    """Which patches of each picture stay, int64 [B, K] in raster order: those of the largest numbers.

    FLIP (arXiv 2212.00794) masks at random, anew for each picture and step. `uniform_BN` has a number for
    every patch; K is `share` of them, rounded down, at least 1.
    """
    count = max(1, int(uniform_BN.shape[1] * share))
    return uniform_BN.topk(count, dim=1).indices.sort(dim=1).values


def keep_patches(x_BND: Tensor, kept_BK: Tensor) -> Tensor:
    """[CLS] and the patches `kept_BK` (counted without [CLS]): [B, 1 + K, D]."""
    index_BKD = (kept_BK + 1)[:, :, None].expand(-1, -1, x_BND.shape[2])
    return torch.cat([x_BND[:, :1], x_BND.gather(1, index_BKD)], dim=1)
