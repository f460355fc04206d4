"""Relative positions as a learnt bias on attention scores: BEiT's for pictures, VLMo's for both modalities.

One table holds the biases of all layers and heads; an index says which row of it a (query, key) pair reads.
Rows, for a grid of W x W patches and a text window of S tokens (arXiv 2111.02358, released code):

    (2W-1)^2    patch to patch, by offset of rows and of columns (query minus key)
    3           image [CLS] to all; all to image [CLS]; image [CLS] to itself
    2           text to image; image to text
    2S - 3      token to token, by offset (key minus query)
    3           text [CLS] to all; all to text [CLS]; text [CLS] to itself

Columns are layer-major: layer l, head h is column l * heads + h.

Shapes: T text tokens, N image tokens ([CLS] first), L = T + N sequence, R table rows, K layers, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Rows behind the patch offsets, and behind the token offsets, for a modality's [CLS].
CLS_ROWS = 3
#: Rows for pairs of different modalities.
CROSS_ROWS = 2


def image_rows(grid: int) -> int:
    """Table rows for pairs of image tokens."""
    return (2 * grid - 1) ** 2 + CLS_ROWS


def text_rows(window: int) -> int:
    """Table rows for pairs of text tokens."""
    return 2 * window - 3 + CLS_ROWS


def image_index(grid: int) -> Tensor:
    """Rows [N, N] for pairs of image tokens."""
    place_N = torch.arange(grid * grid)
    row_NN = place_N[:, None] // grid - place_N[None, :] // grid + grid - 1
    column_NN = place_N[:, None] % grid - place_N[None, :] % grid + grid - 1
    return _with_cls(row_NN * (2 * grid - 1) + column_NN, first=(2 * grid - 1) ** 2)


def text_index(length: int, *, grid: int, window: int) -> Tensor:
    """Rows [T, T] for pairs of text tokens; raises ValueError when the text exceeds the window."""
    if length > window:
        raise ValueError(f"max_text_length {length} exceeds text_window {window}; widen the window")
    start = image_rows(grid) + CROSS_ROWS
    place_T = torch.arange(length - 1)
    offset_TT = place_T[None, :] - place_T[:, None]
    return _with_cls(start + offset_TT + window - 2, first=start + 2 * window - 3)


def joint_index(length: int, *, grid: int, window: int) -> Tensor:
    """Rows [L, L] for a text followed by a picture."""
    text_TT, image_NN = text_index(length, grid=grid, window=window), image_index(grid)
    text_to_image = torch.full((length, len(image_NN)), image_rows(grid))
    image_to_text = torch.full((len(image_NN), length), image_rows(grid) + 1)
    return torch.cat([
        torch.cat([text_TT, text_to_image], dim=1),
        torch.cat([image_to_text, image_NN], dim=1),
    ])  # fmt: skip


def _with_cls(pairs_XX: Tensor, *, first: int) -> Tensor:
    """The pairs behind a [CLS], whose row, column and corner read `first`, `first` + 1, `first` + 2."""
    index = pairs_XX.new_empty(len(pairs_XX) + 1, len(pairs_XX) + 1)
    index[1:, 1:] = pairs_XX
    index[0, :], index[:, 0], index[0, 0] = first, first + 1, first + 2
    return index


class RelativePositions(nn.Module):
    """The table, and its biases for a text, a picture, or a text followed by a picture."""

    index: Tensor

    def __init__(self, *, grid: int, window: int, max_text_length: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers, self.max_text_length = layers, max_text_length
        rows = image_rows(grid) + CROSS_ROWS + text_rows(window)
        self.table = nn.Parameter(torch.zeros(rows, layers * heads))
        index = joint_index(max_text_length, grid=grid, window=window)
        self.register_buffer("index", index, persistent=False)

    def forward(self, text_length: int, *, picture: bool) -> Tensor:
        """Biases [K, H, L, L] for `text_length` tokens (0: no text), and for a picture if there is one.

        A text shorter than the longest reads the first rows and columns: offsets do not depend on padding.
        """
        end = len(self.index) if picture else self.max_text_length
        place_L = torch.cat([
            torch.arange(text_length, device=self.index.device),
            torch.arange(self.max_text_length, end, device=self.index.device),
        ])  # fmt: skip
        index_LL = self.index[place_L[:, None], place_L[None, :]]
        bias_LLX = nn.functional.embedding(index_LL, self.table)
        return bias_LLX.permute(2, 0, 1).unflatten(0, (self.layers, -1)).contiguous()
