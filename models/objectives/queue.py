"""The feature queue: the teacher's features of recent batches, as extra keys for contrast (MoCo, ALBEF).

A ring with modular indices: the batch need not divide the length. Features enter gathered from all ranks
in rank order, so every rank holds the same queue and any one's state is the whole state. A fresh queue is
empty, and `read` gives only what was written: no random vectors pass for negatives.

Shapes: Q length, E joint embedding, G global batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The id of a key whose picture is not known (a queue from a published checkpoint): never a positive.
UNKNOWN_ID = torch.iinfo(torch.int64).min


class FeatureQueue:
    """Unit features of pictures and texts with the ids of the pictures; a length of 0 switches it off."""

    def __init__(self, length: int, width: int) -> None:
        if length < 0:
            raise ValueError(f"queue length {length} must be 0 (no queue) or more")
        self.length = length
        self.image_QE = torch.zeros(length, width)
        self.text_QE = torch.zeros(length, width)
        self.id_Q = torch.full((length,), UNKNOWN_ID, dtype=torch.int64)
        self.cursor = 0
        self.filled = 0

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """(image features, text features, image ids) of the filled part; views, valid until `enqueue`."""
        return self.image_QE[: self.filled], self.text_QE[: self.filled], self.id_Q[: self.filled]

    @torch.no_grad()
    def enqueue(self, image_GE: Tensor, text_GE: Tensor, image_id_G: Tensor) -> None:
        """Writes features gathered from all ranks over the oldest ones; call after they were used as keys."""
        if self.length == 0:
            return
        image_GE, text_GE, image_id_G = (x[-self.length :] for x in (image_GE, text_GE, image_id_G))
        count = len(image_id_G)
        slot_G = (self.cursor + torch.arange(count, device=self.id_Q.device)) % self.length
        self.image_QE[slot_G] = image_GE.to(self.image_QE)
        self.text_QE[slot_G] = text_GE.to(self.text_QE)
        self.id_Q[slot_G] = image_id_G.to(self.id_Q)
        self.cursor = (self.cursor + count) % self.length
        self.filled = min(self.filled + count, self.length)

    def to(self, device: Any) -> None:
        self.image_QE, self.text_QE = self.image_QE.to(device), self.text_QE.to(device)
        self.id_Q = self.id_Q.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "image": self.image_QE,
            "text": self.text_QE,
            "id": self.id_Q,
            "cursor": torch.tensor(self.cursor),
            "filled": torch.tensor(self.filled),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError when the saved queue has another length or width."""
        if state["image"].shape != self.image_QE.shape:
            raise ValueError(
                f"saved queue of shape {tuple(state['image'].shape)}, expected {tuple(self.image_QE.shape)}; "
                "keep queue_size and the embedding width of the run that is resumed"
            )
        self.image_QE.copy_(state["image"])
        self.text_QE.copy_(state["text"])
        self.id_Q.copy_(state["id"])
        self.cursor, self.filled = int(state["cursor"]), int(state["filled"])
