"""A checkpoint of some number of processes, made loadable by any other: DeepSpeed's universal form.

DeepSpeed's own checkpoint holds one part of the optimizer's state per process. The universal form holds it
per parameter; it lies beside the parts, in `universal/` of the same checkpoint, and is made when it is
needed:

    checkpoints/step_00000500/universal/engine/zero/PARAMETER/{fp32,exp_avg,exp_avg_sq,step}.pt

The converter is DeepSpeed's `ds_to_universal`, in this process and without its pool of processes: it is
called with a process group open, and forked children of that hang.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.training.checkpoint import sync
from models.training.stopping import TrainingError

FOLDER = "universal"


def convert(checkpoint: Path, *, tag: str, scalars: Sequence[str]) -> Path:
    """Makes `checkpoint/universal`, which appears whole or not at all; one process calls it.

    Args:
        tag: DeepSpeed's folder inside the checkpoint.
        scalars: parameters without dimensions, by their names in the wrapped module.

    Raises:
        TrainingError: DeepSpeed cannot read the checkpoint.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    target = checkpoint / FOLDER
    if target.is_dir():
        return target
    temp = checkpoint / f".{FOLDER}.tmp"
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()
    options = Namespace(
        input_folder=str(checkpoint / tag), output_folder=str(temp / tag), num_extract_workers=1,
        num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(options)
        for name in scalars:
            _give_a_dimension(temp / tag / "zero" / name)
    except Exception as error:
        # a foreign converter: whatever it raises means that this checkpoint has no universal form
        raise TrainingError(
            f"{checkpoint}: DeepSpeed cannot convert it for another number of processes ({error!r}); go on "
            f"with the number that saved it, or delete it to go back to the one before"
        ) from error
    sync(temp)
    temp.replace(target)
    return target


def _give_a_dimension(folder: Path) -> None:
    """DeepSpeed's loader cuts each state along its first dimension, and so wants one."""
    for path in folder.glob("*.pt"):
        state = torch.load(path, weights_only=True)
        if isinstance(state, dict) and state["param"].ndim == 0:
            torch.save({**state, "param": state["param"].reshape(1)}, path)


def scalar_names(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.ndim == 0]


def universal_info(module: nn.Module) -> dict[str, Any]:
    """What the converter must know of a module: parameters without dimensions, which it would otherwise
    concatenate, are declared as the same in every process."""
    from deepspeed.checkpoint import constants

    scalars = [f"^{re.escape(name)}$" for name in scalar_names(module)]
    return {
        constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE,
        constants.TP_REPLICATED_PARAMETER_PATTERNS: scalars,
    }


class _Nothing:
    """Stands for the parameters of a group of which this process holds none: nothing to load."""

    def __init__(self) -> None:
        self._hp_mapping = self

    def get_optim_state_keys(self) -> tuple[str, ...]:
        return ()

    def load_hp_checkpoint_state(self, *args: Any, **options: Any) -> None:
        return None


@contextlib.contextmanager
def loading_universal(engine: Any) -> Iterator[None]:
    """Lets a DeepSpeed engine read the universal form, and keeps the optimizer's own options.

    DeepSpeed's stage 3 copies the options of the first parameter group into every group, which would let
    norms and biases decay, and gives all groups one count of steps to advance, which then runs several times
    too fast; its stages 1 and 2 fail where a group is so small that this process holds none of it.
    """
    groups = engine.optimizer.param_groups
    options = [{name: value for name, value in g.items() if name != "params"} for g in groups]
    config = engine._config
    before, config.load_universal_checkpoint = config.load_universal_checkpoint, True
    lists = getattr(engine.optimizer, "bit16_groups", [])
    nothing = _Nothing()
    held_elsewhere = {i: g for i, g in enumerate(lists) if all(p._hp_mapping is None for p in g)}
    for number in held_elsewhere:
        lists[number] = [nothing]
        engine.optimizer.param_names[nothing] = ""
    try:
        yield
    finally:
        config.load_universal_checkpoint = before
        for number, group in held_elsewhere.items():
            lists[number] = group
            engine.optimizer.param_names.pop(nothing, None)
    for group, kept in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(kept)
    for state in engine.optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
