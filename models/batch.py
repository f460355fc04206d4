"""What every model receives: one batch of image-text pairs, and where training stands.

Shape suffixes used in `models`: B batch, C channels, H/W pixels, N image tokens, T text tokens,
D width, E joint embedding, Q queue length, V vocabulary, G global batch (all ranks),
M memories, X picked rows.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one (local) batch.

    image_BCHW: normalised floats; None in a batch of texts alone.
    text_ids_BT: int64 token ids, padded on the right.
    text_mask_BT: int64, 1 for a token, 0 for padding.
    image_id_B: int64; equal ids mean the same picture, so their captions are all positives.
    row_B: int64, place of each sample in the global batch of its optimizer step. It keys the random draws of
        that sample, so that they do not depend on how samples are dealt to ranks and micro batches. Left
        out: 0, 1, 2, ... (the batch is the whole step).
    """

    image_BCHW: Tensor | None
    text_ids_BT: Tensor
    text_mask_BT: Tensor
    image_id_B: Tensor
    row_B: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.row_B is None:
            rows = torch.arange(len(self.text_ids_BT), device=self.text_ids_BT.device)
            object.__setattr__(self, "row_B", rows)

    def __len__(self) -> int:
        return self.text_ids_BT.shape[0]

    @property
    def pictures(self) -> Tensor:
        """The pictures; raises ValueError for a batch of texts alone."""
        if self.image_BCHW is None:
            raise ValueError(
                "texts without pictures reached a system that needs both; give shards with pictures"
            )
        return self.image_BCHW

    def to(self, device: torch.device | str, *, image_dtype: torch.dtype | None = None) -> Batch:
        """The same batch on `device`; only the pictures change their dtype."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: None if v is None else v.to(device, non_blocking=True) for name, v in values.items()
        }
        if image_dtype is not None and moved["image_BCHW"] is not None:
            moved["image_BCHW"] = moved["image_BCHW"].to(image_dtype)
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where training stands when a step is computed; the only source of randomness in a model.

    Draws that belong to a sample (masks, negatives, dropped patches) come from `uniform`: a pure function
    of (seed, step, purpose, row of the sample in the global batch), the same for every number of ranks and
    micro batches. A resumed run repeats the draws of an undisturbed one.
    """

    seed: int
    step: int  # optimizer steps done before this one
    micro_step: int = 0  # position inside gradient accumulation
    epoch_steps: int = 1  # optimizer steps in one epoch, for ramps
    rank: int = 0
    world_size: int = 1

    def uniform(self, purpose: str, row_B: Tensor, columns: int = 1) -> Tensor:
        """Uniform numbers in [0, 1), float64 [B, columns], on the device of `row_B`.

        Entry (b, c) is a hash (splitmix64, Steele et al. 2014) of seed, step, purpose, row_B[b] and c: no
        generator state, no wait for the device, and more columns change nothing in the first ones.
        """
        key = zlib.crc32(f"{self.seed}:{self.step}:{purpose}".encode())
        column_C = torch.arange(columns, device=row_B.device)
        hashed_B1 = _mix(row_B[:, None] + _signed((key + 1) * _GOLDEN))
        hashed_BC = _mix(hashed_B1 + (column_C[None, :] + 1) * _signed(_GOLDEN))
        return _shift(hashed_BC, 11).double() * 2.0**-53


_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, whose own shift copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 products wrap around as wanted."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)
