"""The one transformer block: self-attention, optional cross-attention, feed-forward.

Each part is a residual branch with its own norm. Where the norm stands is the difference between the
families: `pre` (ViT, CLIP) x + f(norm(x)); `post` (BERT) norm(x + f(x)). Systems that want another
placement, per-modality feed-forwards or a scale on the branch add it here, in `_residual` and in the
choice of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.blocks.attention import CrossAttention, SelfAttention
from models.blocks.feedforward import FeedForward


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What one block is made of.

    Attributes:
        width: Width of the sequence.
        heads: Attention heads.
        hidden: Inner width of the feed-forward network.
        norm: Where the layer norms stand.
        eps: Epsilon of the layer norms.
        activation: Activation of the feed-forward network.
        fused_qkv: One matrix for query, key and value.
        memory_width: Width of the memory of the cross-attention; None for a block without one.
        dropout: Of the attention weights and of the end of each branch (BERT: 0.1); in training alone.
        drop_path: Probability that a sample skips a branch, in training alone (arXiv 1603.09382).
    """

    width: int
    heads: int
    hidden: int
    norm: Literal["pre", "post"] = "pre"
    eps: float = 1e-6
    activation: str = "gelu"
    fused_qkv: bool = True
    memory_width: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0


class TransformerBlock(nn.Module):
    """[B, T, D] to [B, T, D]."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        if config.norm not in ("pre", "post"):
            raise ValueError(f"unknown norm placement {config.norm!r}; use 'pre' or 'post'")
        self.norm_first = config.norm == "pre"
        width, eps = config.width, config.eps
        self.attention = SelfAttention(width, config.heads, fused=config.fused_qkv, dropout=config.dropout)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attention: CrossAttention | None = None
        self.cross_norm: nn.LayerNorm | None = None
        if config.memory_width is not None:
            self.cross_attention = CrossAttention(
                width, config.heads, memory_width=config.memory_width, dropout=config.dropout
            )
            self.cross_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = FeedForward(width, config.hidden, activation=config.activation)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = config.dropout
        self.drop_path = config.drop_path

    def forward(
        self,
        x_BTD: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        memory_MND: Tensor | None = None,
        rows_B: Tensor | None = None,
    ) -> Tensor:
        """Without a memory the cross-attention is passed over, as a text-only mode wants it."""
        x_BTD = self._residual(
            x_BTD, self.attention_norm, lambda y: self.attention(y, mask=mask, causal=causal)
        )
        if memory_MND is not None:
            cross, norm = self.cross_attention, self.cross_norm
            assert cross is not None, "a memory was given to a block built without memory_width"
            assert norm is not None
            x_BTD = self._residual(x_BTD, norm, lambda y: cross(y, memory_MND, rows_B=rows_B))
        return self._residual(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _residual(self, x_BTD: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x_BTD + self._thinned(branch(norm(x_BTD)))
        return norm(x_BTD + self._thinned(branch(x_BTD)))

    def _thinned(self, branch_BTD: Tensor) -> Tensor:
        branch_BTD = F.dropout(branch_BTD, self.dropout, self.training)
        return drop_path(branch_BTD, self.drop_path, training=self.training)


def drop_path(branch_BTD: Tensor, probability: float, *, training: bool) -> Tensor:
    """Zeroes the whole branch of a sample with `probability` and scales up the others (stochastic depth)."""
    if not training or probability == 0.0:
        return branch_BTD
    kept_B11 = torch.rand(len(branch_BTD), 1, 1, device=branch_BTD.device) >= probability
    return branch_BTD * (kept_B11.to(branch_BTD.dtype) / (1.0 - probability))


def run_blocks(
    blocks: Iterable[nn.Module],
    x_BTD: Tensor,
    *,
    recompute: bool = False,
    mask: Tensor | None = None,
    causal: bool = False,
    memory_MND: Tensor | None = None,
    rows_B: Tensor | None = None,
) -> Tensor:
    """The blocks one after another; `recompute` trades a second forward for the memory of activations."""
    options: dict[str, Any] = {"mask": mask, "causal": causal, "memory_MND": memory_MND, "rows_B": rows_B}
    for block in blocks:
        if recompute and x_BTD.requires_grad:
            x_BTD = checkpoint(block, x_BTD, use_reentrant=False, **options)
        else:
            x_BTD = block(x_BTD, **options)
    return x_BTD
