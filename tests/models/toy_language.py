"""A language of few words without a network: the next token follows from the picture and the last two."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORDS, END = 12, 3


def tables(seed: int, *, pictures: int, end: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of the next token by picture, last and last but one token; `end` raises the end token's."""
    draw = np.random.RandomState(seed)
    of_picture, of_last, of_other = (
        draw.randn(rows, WORDS).round(3) * scale
        for rows, scale in ((pictures, 1.0), (WORDS, 1.5), (WORDS, 0.7))
    )
    of_last[:, END] += end
    return of_picture, of_last, of_other


class TableDecoder:
    """A decoder as `models.inference.generation` wants it."""

    def __init__(self, seed: int, *, pictures: int, end: float) -> None:
        self.of_picture, self.of_last, self.of_other = (
            torch.from_numpy(t).float() for t in tables(seed, pictures=pictures, end=end)
        )
        self.picture_M = torch.arange(pictures)
        self.seen_MCL = torch.zeros(pictures, 1, 0, dtype=torch.int64)

    def advance(self, ids_MCT: Tensor) -> Tensor:
        self.seen_MCL = torch.cat([self.seen_MCL, ids_MCT], dim=2)
        other_MC = self.seen_MCL[:, :, -2] if self.seen_MCL.shape[2] > 1 else self.seen_MCL[:, :, -1]
        last_MC = self.seen_MCL[:, :, -1]
        return self.of_picture[self.picture_M][:, None] + self.of_last[last_MC] + self.of_other[other_MC]

    def keep(self, picture_K: Tensor, parent_KC: Tensor) -> None:
        self.picture_M = self.picture_M[picture_K]
        seen_KCL = self.seen_MCL[picture_K]
        self.seen_MCL = seen_KCL.gather(1, parent_KC[:, :, None].expand(-1, -1, seen_KCL.shape[2]))
