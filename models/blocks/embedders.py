"""From pixels and token ids to sequences of vectors.

`PatchEmbedder`: a picture as [CLS] and its patches, with learnt absolute positions.
`BertEmbedder`: word + position + token type, then a layer norm.
`TokenEmbedder`: word + position, as in CLIP.

Shapes: B batch, C channels, H/W pixels, N image tokens ([CLS] first), T text tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbedder(nn.Module):
    """[B, 3, H, W] to [B, 1 + (H/P)(W/P), D].

    Raises ValueError when the patch does not divide the picture, or a picture has another size.
    """

    def __init__(self, *, image_size: int, patch_size: int, width: int, bias: bool = True) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"patch_size {patch_size} must divide image_size {image_size}; change one of them"
            )
        self.image_size = image_size
        self.grid = image_size // patch_size
        self.patch = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        if image_BCHW.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pictures of {tuple(image_BCHW.shape[-2:])} pixels, but image_size is {self.image_size}; "
                "resize the pictures, or build the model at their size and resize its positions"
            )
        patches_BND = self.patch(image_BCHW.to(self.patch.weight.dtype)).flatten(2).transpose(1, 2)
        cls_B1D = self.cls.to(patches_BND.dtype).expand(len(patches_BND), -1, -1)
        return torch.cat([cls_B1D, patches_BND], dim=1) + self.positions


def resize_positions(positions_1ND: Tensor, grid: int) -> Tensor:
    """Position embeddings for a `grid` x `grid` picture, the [CLS] row kept.

    Bicubic, align_corners=False and without antialiasing, as ALBEF and BLIP do between 256 px
    pre-training and 384 px fine-tuning. Raises ValueError when the old grid is not square.
    """
    cls_11D, patches_1ND = positions_1ND[:, :1], positions_1ND[:, 1:]
    old = round(patches_1ND.shape[1] ** 0.5)
    if old**2 != patches_1ND.shape[1]:
        raise ValueError(f"{patches_1ND.shape[1]} patch positions do not form a square grid behind one [CLS]")
    if old == grid:
        return positions_1ND
    patches_1DHW = patches_1ND.float().transpose(1, 2).unflatten(2, (old, old))
    resized_1DHW = F.interpolate(patches_1DHW, size=(grid, grid), mode="bicubic", align_corners=False)
    resized_1ND = resized_1DHW.flatten(2).transpose(1, 2).to(positions_1ND.dtype)
    return torch.cat([cls_11D, resized_1ND], dim=1)


class BertEmbedder(nn.Module):
    """BERT's input: word + position + token type (always 0 here; BLIP has none), a layer norm, dropout."""

    def __init__(
        self,
        *,
        vocab_size: int,
        positions: int,
        token_types: int,
        width: int,
        pad_id: int,
        eps: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, width, padding_idx=pad_id)
        self.position = nn.Embedding(positions, width)
        self.token_type = nn.Embedding(token_types, width) if token_types else None
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = dropout

    def forward(self, ids_BT: Tensor, *, first: int = 0) -> Tensor:
        """`first` is the position of the first column: above 0 where a text goes on."""
        position_TD = table_rows(self.position.weight, first + ids_BT.shape[1])[first:]
        word_BTD = self.word(ids_BT)
        if self.token_type is not None:
            word_BTD = word_BTD + self.token_type.weight[0]
        return F.dropout(self.norm(word_BTD + position_TD), self.dropout, self.training)


class TokenEmbedder(nn.Module):
    """CLIP's input: word + position."""

    def __init__(self, *, vocab_size: int, positions: int, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.zeros(positions, width))

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.word(ids_BT) + table_rows(self.position, ids_BT.shape[1])


def table_rows(table_PD: Tensor, length: int) -> Tensor:
    """The first `length` rows; raises ValueError when the text is longer than the table."""
    if length > len(table_PD):
        raise ValueError(
            f"text of {length} tokens, but the position table has {len(table_PD)} rows; "
            "tokenise with a smaller max_length"
        )
    return table_PD[:length]
