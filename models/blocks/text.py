"""Text encoders: BERT split into a text half and a fusion half, and CLIP's causal tower.

Shapes: B batch, T text tokens, D width, M pictures, N image tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.attention import key_mask
from models.blocks.block import BlockConfig, TransformerBlock, run_blocks
from models.blocks.embedders import BertEmbedder, TokenEmbedder


class BertEncoder(nn.Module):
    """A post-norm BERT cut in two at `split` (ALBEF, arXiv 2107.07651, section 3.1).

    Layers [0, split) see text only and have no cross-attention. Layers [split, depth) let every text
    position ask the picture: text gives the queries, the image tokens give keys and values.
    """

    def __init__(
        self,
        block: BlockConfig,
        *,
        embedder: BertEmbedder,
        depth: int,
        split: int,
        memory_width: int,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= split <= depth:
            raise ValueError(f"split {split} must lie between 0 and depth {depth}")
        self.split = split
        self.recompute = recompute
        self.embed = embedder
        fusion = replace(block, memory_width=memory_width)
        self.layers = nn.ModuleList(
            TransformerBlock(block if index < split else fusion) for index in range(depth)
        )

    def encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The text half: token ids to states [B, T, D]."""
        layers = self.layers[: self.split]
        return run_blocks(layers, self.embed(ids_BT), mask=key_mask(mask_BT), recompute=self.recompute)

    def fuse(
        self, states_BTD: Tensor, mask_BT: Tensor, image_MND: Tensor, *, rows_B: Tensor | None = None
    ) -> Tensor:
        """The fusion half: text states go on, looking at picture `rows_B[i]` (picture i without it)."""
        return run_blocks(
            self.layers[self.split :],
            states_BTD,
            mask=key_mask(mask_BT),
            memory_MND=image_MND,
            rows_B=rows_B,
            recompute=self.recompute,
        )


class MlmHead(nn.Module):
    """BERT's word predictor: dense, GELU, layer norm, then the word embedding itself plus a bias.

    The tied embedding comes in with each call instead of being held twice, so there is nothing to tie,
    to de-duplicate on export or to lose under ZeRO.
    """

    def __init__(self, width: int, vocab_size: int, *, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states_XD: Tensor, word_VD: Tensor) -> Tensor:
        """[..., D] to logits [..., V]."""
        return F.linear(self.norm(F.gelu(self.dense(states_XD))), word_VD, self.bias)


class CausalTextTower(nn.Module):
    """CLIP's text transformer: pre-norm, causal, read out at the last token.

    The mask is needed for the read-out alone: padding stands on the right, where a causal layer never
    looks. OpenAI's rule (the largest id, which is end-of-text) and [SEP] of a WordPiece tokenizer are
    both the last token that is no padding.
    """

    def __init__(
        self, block: BlockConfig, *, vocab_size: int, positions: int, depth: int, recompute: bool = False
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.embed = TokenEmbedder(vocab_size=vocab_size, positions=positions, width=block.width)
        self.blocks = nn.ModuleList(TransformerBlock(block) for _ in range(depth))
        self.norm = nn.LayerNorm(block.width, eps=block.eps)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Token ids to the normed state [B, D] of the last token."""
        x_BTD = run_blocks(self.blocks, self.embed(ids_BT), causal=True, recompute=self.recompute)
        return self.norm(last_token(x_BTD, mask_BT))


def last_token(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, D]: the state at the last position whose mask is 1."""
    index_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (mask_BT * index_T).argmax(dim=1)
    return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), last_B]
