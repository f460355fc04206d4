"""One optimizer step, in the order that `models.recipes.base.System` states: for trainer and benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from models.batch import Batch, StepContext
from models.recipes.base import System
from models.training.engine import Engine


def optimizer_step(
    system: System, engine: Engine, micro_batches: Iterable[Batch], context: StepContext, *, contrast: str
) -> dict[str, Tensor]:
    """One step over this process's micro batches (as many as `accumulation`), on the engine's device.

    Args:
        contrast: `micro`: each micro batch stands alone, and is asked for when its turn comes. `step`:
            all are prepared together and contrasted with each other, and all are held at once.

    Returns:
        The values for the log, averaged over the micro batches; no gradient.
    """
    count = engine.accumulation
    with engine.whole_model() if engine.has_teacher else nullcontext(system.model) as student:
        system.begin_step(context, student)
    groups = [list(micro_batches)] if contrast == "step" else ([batch] for batch in micro_batches)
    sums: dict[str, Tensor] = {}
    done = 0
    for group in groups:
        here = replace(context, micro_step=done)
        with torch.no_grad():
            prepared = system.prepare(group, here)
        for batch, extras in zip(group, prepared, strict=True):
            loss, values = engine.losses(batch, replace(context, micro_step=done), extras)
            system.after_micro_step(batch, extras)
            engine.backward_and_step(loss)
            for name, value in values.items():
                part = value.float() / count
                sums[name] = sums[name] + part if name in sums else part
            done += 1
    assert done == count, f"{done} micro batches for {count} accumulations"
    return sums
