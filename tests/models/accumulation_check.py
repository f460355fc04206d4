"""A model whose answer plain torch gives: steps of 8 samples as 1 x 8 and as 2 x 4, all ZeRO stages, with and
without offload, in float32 and bfloat16. Part of the program tests.models.zero_check.
"""

from __future__ import annotations

import torch
from accelerate.state import AcceleratorState, GradientState

from models.batch import Batch, StepContext
from models.training.config import TrainConfig, ZeroConfig
from models.training.engine import Engine, Processes
from models.training.optim import parameter_groups


class Toy(torch.nn.Module):
    """A mean over samples, so that accumulation must not change the gradient; its scale has no dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: Batch, context: StepContext, extras: dict) -> dict[str, torch.Tensor]:
        part = (self.linear(batch.image_BCHW.flatten(1)) * self.scale - 1).pow(2).mean()
        # a log value that is part of the loss and keeps its gradient: it must not be scaled twice
        return {"loss": part + 0.0, "part": part}


def weights(stage: int, accumulation: int, offload: str, precision: str, output: str) -> list[float]:
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    zero = ZeroConfig(
        stage=stage,
        offload_optimizer="cpu" if offload else "none",
        offload_parameters="cpu" if offload == "all" else "none",
    )
    config = TrainConfig(
        shards="-", output=output, steps=3, batch_size=8, accumulation=accumulation,
        zero=zero, clip_grad=0.3, lr=0.1, betas=(0.9, 0.98), precision=precision,
    )  # fmt: skip
    processes = Processes(config)
    torch.manual_seed(0)
    model = Toy()
    groups = parameter_groups(model, weight_decay=0.1, multipliers={"linear.bias": 0.5})
    engine = Engine(processes, model, groups)
    dtype = torch.bfloat16 if processes.bf16 else torch.float32
    for step in range(3):
        pixels = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(step)).to(dtype)
        engine.set_learning_rate(0.1 / (step + 1))
        for whole in pixels.chunk(accumulation):
            part = whole.chunk(processes.world_size)[processes.rank]
            ids = torch.zeros(len(part), 1, dtype=torch.int64)
            batch = Batch(image_BCHW=part, text_ids_BT=ids, text_mask_BT=ids, image_id_B=ids[:, 0])
            loss, _ = engine.losses(batch, StepContext(seed=0, step=step), {})
            engine.backward_and_step(loss)
    with engine.whole_model() as whole:
        assert {p.dtype for p in whole.parameters()} == {torch.float32}
        assert [p.shape for p in whole.parameters()] == [p.shape for p in Toy().parameters()]
        return torch.cat([p.detach().flatten() for p in whole.parameters()]).tolist()


CASES = [
    (0, 1, "", "fp32"),
    (0, 2, "", "fp32"),
    (1, 2, "", "fp32"),
    (2, 2, "optimizer", "fp32"),
    (3, 2, "", "fp32"),
    (3, 2, "all", "fp32"),
    (0, 2, "", "bf16"),
    (1, 2, "", "bf16"),
    (2, 2, "optimizer", "bf16"),
    (3, 2, "all", "bf16"),
]


def all_weights(output: str) -> dict[str, list[float]]:
    """stage/accumulation/offload/precision -> the whole float32 weights after three steps."""
    return {"/".join(map(str, case)): weights(*case, output) for case in CASES}
