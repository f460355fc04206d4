"""The contract between a recipe (what a system is), the trainer, the evaluation and the inference.

A recipe module offers three names, and `models.recipes.RECIPES` lists the module:

    Config   frozen keyword-only dataclass: every dimension of the system, plus vocab_size
    SIZES    dict of name -> Config, at least `tiny` and `base`
    build    build(config) -> System
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from models.batch import Batch, StepContext


@dataclass(frozen=True, kw_only=True)
class ImageOutput:
    feature_BE: Tensor  # L2-normalised joint embedding
    tokens_BND: Tensor | None  # what fusion attends to; None where a system has no fusion


@dataclass(frozen=True, kw_only=True)
class TextOutput:
    feature_BE: Tensor  # L2-normalised joint embedding
    states_BTD: Tensor | None  # text states that fusion continues from


class Model(Protocol):
    """The trained network: an nn.Module that DeepSpeed wraps. Pure: `forward` changes no state."""

    def __call__(self, batch: Batch, context: StepContext, extras: dict[str, Any]) -> dict[str, Tensor]:
        """Named scalar losses; the key `loss` is what is minimised, keys such as `itc` are for logs."""
        ...

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput: ...

    def encode_text(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> TextOutput: ...


class FusionModel(Model, Protocol):
    """A model that also matches a picture with a text token by token."""

    def match(
        self,
        image_tokens_BND: Tensor,
        text_states_BTD: Tensor,
        text_mask_BT: Tensor,
        *,
        rows_B: Tensor | None = None,
    ) -> Tensor:
        """ITM logits [B, 2]; index 1 is `matched`. With `rows_B`, text i looks at picture rows_B[i]."""
        ...

    def mlm_logits(self, text_ids_BT: Tensor, text_mask_BT: Tensor, image_tokens_BND: Tensor) -> Tensor:
        """Logits [B, T, V] for (masked) ids that see the picture."""
        ...


class System(Protocol):
    """A model plus the state that lives outside the gradient: momentum teacher, queues.

    One optimizer step of the trainer is

        system.begin_step(context, student)             # EMA of the teacher; nothing for CLIP
        for each group of micro batches:
            group = system.prepare(batches, context)    # no gradient: teacher's forward, queue reads
            for each batch, extras of the group:
                losses = engine(batch, context, extras) # student; losses["loss"] is back-propagated
                system.after_micro_step(batch, extras)  # enqueue the gathered teacher features
        optimizer step

    A group is one micro batch, or all of the step (`contrast: step`): the micro batches of a group are
    contrasted with each other, so that accumulation enlarges the set of negatives. `losses["loss"]` of the
    micro batches is averaged by the trainer, within the group too.
    """

    model: nn.Module
    config: Any

    def begin_step(self, context: StepContext, student: nn.Module) -> None: ...

    def prepare(self, batches: Sequence[Batch], context: StepContext) -> list[dict[str, Any]]:
        """One `extras` for each micro batch of the group; runs without gradient."""
        ...

    def after_micro_step(self, batch: Batch, extras: dict[str, Any]) -> None: ...

    def to(self, device: Any) -> None:
        """Moves the state outside the model (teacher in fp32, queues)."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Teacher and queues, without the model: saved by the trainer beside the engine's state."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def reset_teacher(self) -> None:
        """Copies the student into the teacher: after weights were loaded into the model."""
        ...


class StatelessSystem:
    """A system whose weights are all it has: nothing to prepare, to update or to save beside them."""

    def __init__(self, *, model: nn.Module, config: Any) -> None:
        self.model = model
        self.config = config

    def begin_step(self, context: StepContext, student: nn.Module) -> None:
        pass

    def prepare(self, batches: Sequence[Batch], context: StepContext) -> list[dict[str, Any]]:
        return [{} for _ in batches]

    def after_micro_step(self, batch: Batch, extras: dict[str, Any]) -> None:
        pass

    def to(self, device: Any) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            raise ValueError(
                f"this system keeps no state, but {len(state)} tensors were given: {sorted(state)[:3]}"
            )

    def reset_teacher(self) -> None:
        pass
