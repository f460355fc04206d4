"""Parameters without dimensions (temperatures) under DeepSpeed, which broadcasts weights as bytes.

A tensor of no dimensions has no view as bytes. While DeepSpeed takes a model over, such a parameter is seen
as a vector of one: the same memory, so that what is broadcast lands in the parameter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def scalars_as_vectors() -> Iterator[None]:
    """For the time of `deepspeed.initialize`."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partition_parameters import Init

    broadcast, convert = DeepSpeedEngine._broadcast_model, Init._convert_to_deepspeed_param

    def broadcast_model(engine: Any) -> None:
        """Stages 0, 1, 2."""
        scalars = [p for p in engine.module.parameters() if p.ndim == 0]
        shapes = [p.data for p in scalars]
        for p in scalars:
            p.data = p.data.view(1)
        try:
            broadcast(engine)
        finally:
            for p, data in zip(scalars, shapes, strict=True):
                p.data = data

    def convert_parameter(init: Any, parameter: Any) -> None:
        """Stage 3: the shape that a gathered parameter gets back is noted before, and is the true one."""
        convert(init, parameter)
        if parameter.ndim == 0:
            parameter.data = parameter.data.view(1)

    DeepSpeedEngine._broadcast_model = broadcast_model
    Init._convert_to_deepspeed_param = convert_parameter
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = broadcast
        Init._convert_to_deepspeed_param = convert
