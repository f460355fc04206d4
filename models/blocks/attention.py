"""Attention, named by its mechanics: who gives the queries, who gives the keys and values.

`SelfAttention`: one sequence gives all three. `CrossAttention`: one sequence gives the queries, another
(the memory) gives the keys and values. Both end in torch's scaled_dot_product_attention, which picks a
flash or memory-efficient kernel, with scores scaled by 1/sqrt(head width).

Shapes: B batch, M memories, H heads, T query positions, N memory positions, D width, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def key_mask(mask_BT: Tensor) -> Tensor:
    """The padding mask (1 token, 0 padding) as the boolean [B, 1, 1, T] that attention takes.

    Every row must hold at least one token: a softmax over nothing is NaN.
    """
    return mask_BT.bool()[:, None, None, :]


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless the heads share the width evenly."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads {heads} must divide width {width}; change one of them")


class SelfAttention(nn.Module):
    """Queries, keys and values from one sequence.

    `fused` keeps the three projections in one matrix (query, key, value rows in this order), as ViT and
    CLIP do; BERT's checkpoints hold three. BEiT's and VLMo's fused matrix has no `key_bias`.
    """

    def __init__(
        self, width: int, heads: int, *, fused: bool = True, key_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.fused = fused
        self.dropout = dropout
        self.q_bias: nn.Parameter | None = None
        self.v_bias: nn.Parameter | None = None
        if fused:
            self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
            if not key_bias:
                self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        else:
            self.query = nn.Linear(width, width)
            self.key = nn.Linear(width, width)
            self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`mask` is broadcastable to [B, H, T, T]: boolean, True where a key may be seen, or floats that are
        added to the scores.

        It excludes `causal`: with padding on the right, causal attention alone keeps every token from
        seeing padding.
        """
        if self.fused:
            q_BTD, k_BTD, v_BTD = self.qkv(x_BTD).chunk(3, dim=-1)
            if self.q_bias is not None and self.v_bias is not None:
                q_BTD, v_BTD = q_BTD + self.q_bias, v_BTD + self.v_bias
        else:
            q_BTD, k_BTD, v_BTD = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        q_BHTd, k_BHTd, v_BHTd = (split_heads(t, self.heads) for t in (q_BTD, k_BTD, v_BTD))
        y_BHTd = F.scaled_dot_product_attention(
            q_BHTd, k_BHTd, v_BHTd, attn_mask=mask, is_causal=causal, dropout_p=_active(self, self.dropout)
        )
        return self.out(join_heads(y_BHTd))


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from a memory, which may have its own width."""

    def __init__(self, width: int, heads: int, *, memory_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, memory_MND: Tensor, *, rows_B: Tensor | None = None) -> Tensor:
        """`rows_B` says which memory each sequence looks at; without it, sequence i looks at memory i.

        Keys and values are projected once per memory, however many sequences look at it. That is the
        costly part: a picture has hundreds of tokens, a caption a few dozen.
        """
        q_BHTd = split_heads(self.query(x_BTD), self.heads)
        k_MND, v_MND = self.key(memory_MND), self.value(memory_MND)
        if rows_B is not None:
            k_MND, v_MND = k_MND.index_select(0, rows_B), v_MND.index_select(0, rows_B)
        k_BHNd, v_BHNd = split_heads(k_MND, self.heads), split_heads(v_MND, self.heads)
        y_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHNd, v_BHNd, dropout_p=_active(self, self.dropout))
        return self.out(join_heads(y_BHTd))


def _active(module: nn.Module, dropout: float) -> float:
    """Dropout of attention weights: in training alone."""
    return dropout if module.training else 0.0


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """[B, T, D] to [B, H, T, D/H]."""
    return x_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_BHTd: Tensor) -> Tensor:
    """[B, H, T, D/H] to [B, T, D]."""
    return x_BHTd.transpose(1, 2).flatten(2)
