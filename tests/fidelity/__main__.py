"""Runs every comparison and writes docs/fidelity.md: `make fidelity`, or `python -m tests.fidelity`.

A few minutes on two cores, most of them for the published sizes. Exits with 1 when a bound is passed.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from tests.fidelity.case import BOUNDS, KINDS, Case
from tests.fidelity.every import cases, largest, modules

REPORT = Path(__file__).parents[2] / "docs" / "fidelity.md"
INTRODUCTION = """# Fidelity

Written by `make fidelity`; `tests/models/test_fidelity.py` asserts every row. Do not edit it.

The same weights, shaken so that no bias is 0 and no gain 1, and the same input go through this project's code
and through another implementation. A figure is the largest difference of a tensor's values, relative to the
largest value of the reference, over all tensors of the row: outputs, losses, and the gradient of every weight
(a module's weight and bias count as one tensor). Bounds: {bounds}. In float64 an epsilon or an activation
that is not the same shows at once; in float32 it may hide in rounding.
"""
FILES = """
## Published files

Where this was made, no published weights could be downloaded: no row says that a *file* of the authors was
read. Names, shapes and layouts of those files are tested (`tests/models/test_recipes.py`,
`tests/models/test_published_*.py`), and outputs are compared with weights made here.
"""


def main() -> int:
    torch.set_num_threads(min(2, torch.get_num_threads()))
    rows, over = [], []
    for name, case in cases().items():
        cells = []
        for dtype, bound in BOUNDS.items():
            found = largest(case, dtype)
            cells += [f"{found[kind][0]:.0e}" if kind in found else "-" for kind in KINDS]
            far = {kind: value for kind, value in found.items() if not value[0] <= bound}
            over += [f"{name}, {dtype}: {kind} {what} {x:.1e}" for kind, (x, what) in far.items()]
        print(name, *cells, flush=True)
        rows.append(f"| {case.system} | {oracle(case)} | {case.size} | " + " | ".join(cells) + " |")
    REPORT.write_text(report(rows))
    for line in over:
        print(f"beyond the bound: {line}", file=sys.stderr)
    print(f"{REPORT}: {len(rows)} comparisons, {len(over)} beyond their bounds")
    return 1 if over else 0


def oracle(case: Case) -> str:
    return f"{case.oracle} ({case.package} {version(case.package)})" if case.package else case.oracle


def report(rows: list[str]) -> str:
    bounds = ", ".join(f"{bound:.0e} in {str(dtype)[6:]}" for dtype, bound in BOUNDS.items())
    heads = [f"{kind}, {str(dtype)[6:]}" for dtype in BOUNDS for kind in KINDS]
    table = [
        "| system and part | reference | size | " + " | ".join(heads) + " |",
        "|" + "---|" * (3 + len(heads)),
        *rows,
    ]
    made = f"torch {torch.__version__.split('+')[0]}, {platform.machine()}, on the CPU"
    text = INTRODUCTION.format(bounds=bounds) + "\n" + "\n".join(table) + f"\n\nMade with {made}.\n"
    notes = {name: getattr(module, "WITHOUT_ORACLE", []) for name, module in modules().items()}
    if any(notes.values()):
        text += "\n## What has no other implementation to be compared with\n\n"
        text += "\n".join(f"- {name}: {line}" for name, lines in notes.items() for line in lines) + "\n"
    return text + FILES


if __name__ == "__main__":
    sys.exit(main())
