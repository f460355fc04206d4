"""BERT as text encoder, image-grounded encoder and image-grounded decoder in one (BLIP, arXiv 2201.12086).

The three share the embedding, the cross-attention and the feed-forward network of every layer; the decoder
has a self-attention (and its norm) of its own, which looks back only. Each weight exists once: nothing is
tied, so nothing can come apart.

    text mode       encoder's self-attention, no cross-attention
    grounded mode   encoder's self-attention, cross-attention to a picture
    decoder         decoder's self-attention, causal, cross-attention to a picture

Encoding and decoding rows go through a layer together: keys and values of a picture are projected once for
both. `models.blocks.decoding` runs the decoder token by token.

Shapes: B batch, R rows, T text tokens, D width, M pictures, N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.blocks.attention import CrossAttention, SelfAttention, key_mask
from models.blocks.block import BlockConfig
from models.blocks.embedders import BertEmbedder
from models.blocks.feedforward import FeedForward


class TiedLayer(nn.Module):
    """One post-norm layer with two self-attentions, [R, T, D] to [R, T, D]."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        if config.norm != "post" or config.memory_width is None:
            raise ValueError(
                f"a tied layer is post-norm and looks at pictures; got norm {config.norm!r} "
                f"and memory_width {config.memory_width}"
            )
        width, heads, dropout = config.width, config.heads, config.dropout
        self.attention = SelfAttention(width, heads, fused=False, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width, eps=config.eps)
        self.decoder_attention = SelfAttention(width, heads, fused=False, dropout=dropout)
        self.decoder_attention_norm = nn.LayerNorm(width, eps=config.eps)
        self.cross_attention = CrossAttention(width, heads, memory_width=config.memory_width, dropout=dropout)
        self.cross_norm = nn.LayerNorm(width, eps=config.eps)
        self.feed_forward = FeedForward(width, config.hidden, activation=config.activation)
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.eps)
        self.dropout = dropout

    def forward(
        self,
        x_RTD: Tensor,
        *,
        mask: Tensor | None,
        memory_MND: Tensor | None,
        rows_R: Tensor | None,
        decoding: int,
    ) -> Tensor:
        """The last `decoding` rows go through the decoder's self-attention, the others through the encoder's.

        `mask` (of the encoding rows) and `rows_R` are those of `SelfAttention` and `CrossAttention`.
        """
        encoding = len(x_RTD) - decoding
        parts = []
        if encoding:
            parts.append(
                self.residual(x_RTD[:encoding], self.attention_norm, lambda y: self.attention(y, mask=mask))
            )
        if decoding:
            parts.append(
                self.residual(
                    x_RTD[encoding:],
                    self.decoder_attention_norm,
                    lambda y: self.decoder_attention(y, causal=True),
                )
            )
        x_RTD = parts[0] if len(parts) == 1 else torch.cat(parts)
        if memory_MND is not None:
            x_RTD = self.residual(
                x_RTD, self.cross_norm, lambda y: self.cross_attention(y, memory_MND, rows_B=rows_R)
            )
        return self.residual(x_RTD, self.feed_forward_norm, self.feed_forward)

    def residual(self, x_RTD: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """norm(x + dropout(branch(x)))."""
        return norm(x_RTD + F.dropout(branch(x_RTD), self.dropout, self.training))


class TiedBert(nn.Module):
    """The three modes over one embedder and one stack of tied layers."""

    def __init__(
        self, block: BlockConfig, *, embedder: BertEmbedder, depth: int, recompute: bool = False
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.embed = embedder
        self.layers = nn.ModuleList(TiedLayer(block) for _ in range(depth))

    def encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Text mode: states [B, T, D] that have seen no picture."""
        return self.run(self.embed(ids_BT), mask_BT)

    def run(
        self,
        x_RTD: Tensor,
        mask_RT: Tensor,
        memory_MND: Tensor | None = None,
        *,
        rows_R: Tensor | None = None,
        decoding: int = 0,
    ) -> Tensor:
        """Through all layers; the last `decoding` rows decode, all look at picture rows_R[i] (i without it).

        Padding stands on the right, where the decoder never looks: the mask concerns encoding rows.
        """
        encoding = len(x_RTD) - decoding
        options: dict[str, Any] = {
            "mask": key_mask(mask_RT[:encoding]) if encoding else None,
            "memory_MND": memory_MND,
            "rows_R": rows_R,
            "decoding": decoding,
        }
        for layer in self.layers:
            if self.recompute and x_RTD.requires_grad:
                x_RTD = checkpoint(layer, x_RTD, use_reentrant=False, **options)
            else:
                x_RTD = layer(x_RTD, **options)
        return x_RTD
