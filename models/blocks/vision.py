"""The vision transformer (arXiv 2010.11929) as ALBEF and CLIP use it.

Both are pre-norm with a [CLS] token and learnt positions. They differ in the epsilon (1e-6, 1e-5), the
bias of the patch projection, the activation, and in CLIP's extra layer norm before the first block.
"""

from __future__ import annotations

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

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BND = self.embed(image_BCHW)
        if self.entry_norm is not None:
            x_BND = self.entry_norm(x_BND)
        return self.norm(run_blocks(self.blocks, x_BND, recompute=self.recompute))
