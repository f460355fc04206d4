"""What every model receives: one batch of image-text pairs, and where training stands.

Shape suffixes used in `models`: B batch, C channels, H/W pixels, N image tokens, T text tokens,
D width, E joint embedding, Q queue length, V vocabulary.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one (local) batch.

    image_BCHW: normalised floats.
    text_ids_BT: int64 token ids, padded.
    text_mask_BT: int64, 1 for a token, 0 for padding.
    image_id_B: int64; equal ids mean the same picture, so their captions are all positives.
    """

    image_BCHW: Tensor
    text_ids_BT: Tensor
    text_mask_BT: Tensor
    image_id_B: Tensor

    def __len__(self) -> int:
        return self.text_ids_BT.shape[0]

    def to(self, device: torch.device | str, *, image_dtype: torch.dtype | None = None) -> Batch:
        """The same batch on `device`; only the pictures change their dtype."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        batch = replace(self, **moved)
        if image_dtype is None:
            return batch
        return replace(batch, image_BCHW=batch.image_BCHW.to(image_dtype))


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where training stands when a step is computed; the only source of randomness in a model.

    Every random draw (masks, negatives) comes from `generator`, so a resumed run repeats the draws of
    an undisturbed one.
    """

    seed: int
    step: int  # optimizer steps done before this one
    micro_step: int = 0  # position inside gradient accumulation
    epoch_steps: int = 1  # optimizer steps in one epoch, for ramps
    rank: int = 0
    world_size: int = 1

    def generator(self, purpose: str, *, shared: bool = False) -> torch.Generator:
        """A CPU generator for one purpose of this step.

        With `shared` all ranks draw the same numbers (draw for the global batch, then slice);
        otherwise each rank has its own stream.
        """
        rank = -1 if shared else self.rank
        label = f"{self.seed}:{self.step}:{self.micro_step}:{rank}:{purpose}"
        return torch.Generator().manual_seed(zlib.crc32(label.encode()) + (self.seed << 32))
