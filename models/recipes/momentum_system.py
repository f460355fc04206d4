"""A model with a momentum teacher and a queue: the state that ALBEF and BLIP keep beside the weights.

Not a recipe: what `System` asks of a recipe with such a state, given what its teacher says of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.batch import Batch, StepContext
from models.objectives.gather import gather
from models.objectives.itc import Keys
from models.objectives.momentum import MomentumTeacher
from models.objectives.queue import FeatureQueue


class MomentumConfig(Protocol):
    """What a recipe's Config says about its teacher and its queue."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def queue_size(self) -> int: ...
    @property
    def momentum(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def alpha_warmup(self) -> float: ...


ModelT = TypeVar("ModelT", bound=nn.Module)
ConfigT = TypeVar("ConfigT", bound=MomentumConfig)


class MomentumSystem(Generic[ModelT, ConfigT]):
    """The model, its teacher and its queue; the trainer's order of calls stands in `recipes.base.System`.

    A recipe's own system says in `ask_teacher` what the teacher makes of a micro batch.
    """

    def __init__(self, *, model: ModelT, config: ConfigT) -> None:
        self.config = config
        self.model = model
        self.teacher = MomentumTeacher(model)
        self.queue = FeatureQueue(config.queue_size, config.embed_dim)

    def ask_teacher(self, batch: Batch, context: StepContext) -> dict[str, Any]:
        """Extras that concern one micro batch alone, without gradient. Two of them are used here:
        teacher_image_BE and teacher_text_BE, unit features."""
        raise NotImplementedError

    def begin_step(self, context: StepContext, student: nn.Module) -> None:
        self.teacher.update(student, momentum=self.config.momentum)

    def prepare(self, batches: Sequence[Batch], context: StepContext) -> list[dict[str, Any]]:
        """What the teacher says, the keys, and alpha; no gradient.

        `batch_keys` are features and ids of all ranks; those of all micro batches of the group are keys
        of each.
        """
        group = [self.ask_teacher(batch, context) for batch in batches]
        for extras, batch in zip(group, batches, strict=True):
            features = (extras["teacher_image_BE"], extras["teacher_text_BE"], batch.image_id_B)
            extras["batch_keys"] = [gather(x) for x in features]
        past = self.queue.read()
        keys = [torch.cat([*(e["batch_keys"][i] for e in group), past[i]]) for i in range(3)]
        shared = {
            "alpha": alpha_at(context, self.config),
            "keys": Keys(image_KE=keys[0], text_KE=keys[1], id_K=keys[2]),
        }
        return [extras | shared for extras in group]

    def after_micro_step(self, batch: Batch, extras: dict[str, Any]) -> None:
        self.queue.enqueue(*extras["batch_keys"])

    def to(self, device: Any) -> None:
        self.teacher.to(device)
        self.queue.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        teacher = {f"teacher.{name}": value for name, value in self.teacher.state_dict().items()}
        return teacher | {f"queue.{name}": value for name, value in self.queue.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}

        self.teacher.load_state_dict(part("teacher."))
        self.queue.load_state_dict(part("queue."))

    def reset_teacher(self) -> None:
        self.teacher.reset(self.model)


def alpha_at(context: StepContext, config: MomentumConfig) -> float:
    """The weight of soft targets: rises linearly over `alpha_warmup` epochs, then stays."""
    ramp = config.alpha_warmup * context.epoch_steps
    return config.alpha * (min(1.0, context.step / ramp) if ramp > 0 else 1.0)
