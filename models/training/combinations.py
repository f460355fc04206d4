"""Options that do not go together, refused before anything is started: facts and one table, without torch.

pairmill train --recipe albef --zero.stage 3 ...
pairmill train: zero.stage 3 keeps no whole weights, which the momentum teacher of albef averages; use ...
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.training.config import TrainConfig

#: recipes with a momentum teacher: it averages the whole student in each process, once a step
TEACHERS = frozenset({"albef", "blip"})
#: recipes whose `prepare` contrasts the micro batches of a step with each other
CONTRAST_OVER_STEP = frozenset({"albef", "blip", "clip", "vlmo"})

CHOICES: dict[str, tuple[object, ...]] = {
    "zero.stage": (0, 1, 2, 3),
    "zero.offload_optimizer": ("none", "cpu"),
    "zero.offload_parameters": ("none", "cpu"),
    "precision": ("auto", "fp32", "bf16"),
    "compile": ("auto", "on", "off"),
    "contrast": ("micro", "step"),
    "schedule": ("cosine", "linear", "exponential"),
    "decay": ("matrices", "all"),
}


def check_combinations(config: TrainConfig) -> None:
    """Refuses the first impossible option or pair of options.

    Raises:
        ValueError: names the options, why they do not go together, and what would.
    """
    for name, choices in CHOICES.items():
        value = _value(config, name)
        if value not in choices:
            *others, last = map(str, choices)
            raise ValueError(f"{name} {value!r}: use {', '.join(others)} or {last}")
    for impossible, why in _conflicts(config):
        if impossible:
            raise ValueError(why)


def _conflicts(config: TrainConfig) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what to tell) for every pair of options that cannot be had together."""
    recipe, zero = config.recipe, config.zero
    yield (
        zero.stage == 3 and recipe in TEACHERS,
        f"zero.stage 3 keeps no whole weights, which the momentum teacher of {recipe} averages; "
        "use zero.stage 2 (with zero.offload_optimizer cpu if memory is short)",
    )
    yield (
        zero.offload_optimizer == "cpu" and zero.stage == 0,
        "zero.offload_optimizer cpu needs a sharded optimizer; use zero.stage 1, 2 or 3",
    )
    yield (
        zero.offload_parameters == "cpu" and zero.stage != 3,
        f"zero.offload_parameters cpu moves the parts of weights that stage 3 makes, and zero.stage is "
        f"{zero.stage}; use zero.stage 3, or zero.offload_optimizer cpu alone",
    )
    yield (
        config.contrast == "step" and recipe not in CONTRAST_OVER_STEP,
        f"contrast step: {recipe} does not contrast the micro batches of a step with each other; "
        f"use contrast micro, or one of {', '.join(sorted(CONTRAST_OVER_STEP))}",
    )
    yield (
        config.contrast == "step" and zero.stage == 3,
        "contrast step computes features outside of DeepSpeed's engine, where zero.stage 3 has no weights; "
        "use zero.stage 2",
    )
    yield (
        config.compile == "on" and zero.stage == 3,
        "compile on: zero.stage 3 fetches weights by hooks that torch.compile cannot see; use compile off, "
        "or zero.stage 2",
    )
    yield (
        config.compile == "on" and compiler() is None,
        "compile on needs a C++ compiler, and there is no g++ or clang++ here (CXX may name one); "
        "install one (Debian, Ubuntu: apt install g++), or use compile off",
    )
    yield (
        any(factor < 0 for factor in config.lr_multipliers.values()),
        f"lr_multipliers {config.lr_multipliers}: factors must be at least 0",
    )
    yield (not 0 < config.lr_decay <= 1, f"lr_decay {config.lr_decay} must be above 0 and at most 1")
    yield (config.eps <= 0, f"eps {config.eps} must be above 0")


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call; None where there is none."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")


def _value(config: TrainConfig, name: str) -> object:
    found: object = config
    for part in name.split("."):
        found = getattr(found, part)
    return found
