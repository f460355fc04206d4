"""All comparisons: the modules of this package that list `CASES`, and what each answers."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import torch

import tests.fidelity as package
from tests.fidelity.case import KINDS, Case, difference


def modules() -> dict[str, ModuleType]:
    """name -> module, for every module of this package with `CASES`."""
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith(("make_", "__"))]
    found = {name: importlib.import_module(f"tests.fidelity.{name}") for name in names}
    return {name: module for name, module in found.items() if hasattr(module, "CASES")}


def cases() -> dict[str, Case]:
    """`FLIP, half of the patches, small` -> case; equal names would hide one another and are refused."""
    listed = [case for module in modules().values() for case in module.CASES]
    named = {f"{case.system}, {case.size}": case for case in listed}
    assert len(named) == len(listed), "two cases have the same system and size"
    return named


def is_small(case: Case) -> bool:
    """Runs in about a second; the others are proofs."""
    return case.size.startswith("small")


def largest(case: Case, dtype: torch.dtype) -> dict[str, tuple[float, str]]:
    """kind -> (largest relative difference, of which value), for the kinds that the case compares.

    A value that is no number counts as infinitely far.
    """
    answers = case.run(dtype)
    assert set(answers) <= set(KINDS), f"kinds {sorted(answers)}, known are {KINDS}"
    found = {}
    for kind in KINDS:
        far = {name: difference(*pair) for name, pair in answers.get(kind, {}).items()}
        if far:
            name = max(far, key=lambda n: float("inf") if far[n] != far[n] else far[n])
            found[kind] = (float("inf") if far[name] != far[name] else far[name], name)
    assert found, "nothing was compared"
    return found
