"""torch.compile of the transformer blocks, where nearly all time goes.

Blocks and not whole models: masks, draws and gathers between them would break one graph into many, and a
block is compiled once for all its copies. `auto` is on for GPUs with a compiler and whole weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from models.recipes.base import System
from models.training.combinations import compiler
from models.training.config import TrainConfig

log = logging.getLogger(__name__)

#: forms of one block: student and teacher, picture, text and fusion, with and without a mask, each size
FORMS = 64


def compile_system(system: System, config: TrainConfig, device: torch.device) -> bool:
    """Compiles the blocks of the model, and of its teacher, on their first use. Returns whether it does."""
    wanted = config.compile == "on"
    if config.compile == "auto" and device.type == "cuda" and config.zero.stage < 3:
        wanted = compiler() is not None
        if not wanted:
            log.warning("no C++ compiler here: blocks are not compiled (apt install g++; or --compile off)")
    if wanted:
        torch._dynamo.config.recompile_limit = FORMS
        teacher = getattr(system, "teacher", None)
        for module in (system.model, *([] if teacher is None else [teacher.module])):
            for block in blocks(module):
                block.compile()
    return wanted


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts: what stands in a ModuleList that lies in no other."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)
