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


def resize_table(table_RX: Tensor, *, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The table for a picture or a text of another size; each pair is (old, new).

    Patch offsets as BEiT and VLMo do between 224 px and 384 px: the old offsets are spread in a geometric
    progression that ends where the new ones end, so that near offsets mean nearly what they meant, and a
    cubic spline runs through them. Token offsets are cut, or continue with the farthest known one. The rest
    stays.
    Raises ValueError when the table is not one of the old sizes.
    """
    (old_grid, new_grid), (old_window, new_window) = grid, window
    offsets, tokens = (2 * old_grid - 1) ** 2, 2 * old_window - 3
    sizes = (offsets, CLS_ROWS + CROSS_ROWS, tokens, CLS_ROWS)
    if sum(sizes) != len(table_RX):
        raise ValueError(
            f"a table of {len(table_RX)} rows, but a grid of {old_grid} and a window of {old_window} tokens "
            f"have {sum(sizes)}"
        )
    patch, middle, token, end = table_RX.split(sizes)
    if old_grid != new_grid:
        spread = _spread(old_grid - 1, new_grid - 1)
        target = torch.arange(1.0 - new_grid, new_grid, dtype=torch.float64)
        weigh = _spline(torch.cat([-spread.flip(0), torch.zeros(1), spread]).double(), target)
        image_OOX = patch.double().cpu().unflatten(0, (2 * old_grid - 1, 2 * old_grid - 1))
        image_OOX = torch.einsum("ai,bj,ijx->abx", weigh, weigh, image_OOX)
        patch = image_OOX.flatten(0, 1).to(table_RX)
    reach = torch.arange(2 - new_window, new_window - 1, device=token.device)
    token = token[reach.clamp(2 - old_window, old_window - 2) + old_window - 2]
    return torch.cat([patch, middle, token, end])


def _spread(count: int, reach: int) -> Tensor:
    """Distances 1, 1 + q, 1 + q + q^2, ... (`count` of them) whose last is `reach`."""
    low, high = 0.0, 10.0
    power = torch.arange(count, dtype=torch.float64)
    while high - low > 1e-9:
        q = (low + high) / 2
        low, high = (q, high) if (q**power).sum() < reach else (low, q)
    return (((low + high) / 2) ** power).cumsum(0)


def _spline(x_I: Tensor, target_A: Tensor) -> Tensor:
    """Weights [A, I] that give a cubic spline through values at `x_I` (not-a-knot ends) at `target_A`.

    With fewer than four points the second derivative is 0 at the ends; with one, the value is everywhere.
    """
    count = len(x_I)
    if count == 1:
        return torch.ones(len(target_A), 1, dtype=x_I.dtype)
    step = x_I.diff()
    slope_II = torch.diff(torch.eye(count, dtype=x_I.dtype), dim=0) / step[:, None]
    left, right = torch.zeros(count, count, dtype=x_I.dtype), torch.zeros(count, count, dtype=x_I.dtype)
    for i in range(1, count - 1):
        left[i, i - 1], left[i, i], left[i, i + 1] = step[i - 1], 2 * (step[i - 1] + step[i]), step[i]
        right[i] = 6 * (slope_II[i] - slope_II[i - 1])
    if count < 4:
        left[0, 0] = left[-1, -1] = 1
    else:
        left[0, :3] = torch.stack([step[1], -step[0] - step[1], step[0]])
        left[-1, -3:] = torch.stack([step[-1], -step[-2] - step[-1], step[-2]])
    bend_II = torch.linalg.solve(left, right)  # second derivatives at the points
    cell_A = (torch.searchsorted(x_I, target_A, right=True) - 1).clamp(0, count - 2)
    width, unit = step[cell_A][:, None], torch.eye(count, dtype=x_I.dtype)
    after, before = (target_A - x_I[cell_A])[:, None], (x_I[cell_A + 1] - target_A)[:, None]
    return (
        (before * unit[cell_A] + after * unit[cell_A + 1]) / width
        + (before**3 / width - width * before) / 6 * bend_II[cell_A]
        + (after**3 / width - width * after) / 6 * bend_II[cell_A + 1]
    )
