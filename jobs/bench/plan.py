"""What a chain of so many pairs comes to, reckoned from measured figures: nothing is run.

    pairmill bench plan --pairs 5e9
    pairmill bench plan --pairs 1e8 --group 16 --core_hour 0.01
    pairmill bench plan --assumptions

Every assumption is an option. docs/scale.md says what the table means, and where the design pinches.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from types import SimpleNamespace

from jobs.bench.plan_assumptions import ASSUMPTIONS, with_values
from jobs.bench.plan_stages import Cost, stages
from pipeline.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns 0."""
    parser = argparse.ArgumentParser(prog="pairmill bench plan", description=__doc__.split("\n")[0])
    parser.add_argument("--assumptions", action="store_true", help="print the assumptions instead")
    for name, known in ASSUMPTIONS.items():
        text = f"{known.unit} ({known.value:g}; {known.source})".replace("%", "%%")
        parser.add_argument(f"--{name}", type=float, default=known.value, help=text)
    given = vars(parser.parse_args(list(argv)))
    told = given.pop("assumptions")
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--{name} {value} must be above 0: {ASSUMPTIONS[name].unit}")
    for name in ("fetched", "selected", "kept"):
        if given[name] > 1:
            raise ConfigError(f"--{name} {given[name]} is a share, and must be at most 1")
    values = with_values(given)
    print(assumptions(values) if told else table(stages(values), values))
    return 0


def assumptions(values: dict[str, float]) -> str:
    """The assumptions as Markdown."""
    lines = ["| name | value | | source |", "|---|---|---|---|"]
    for name, known in ASSUMPTIONS.items():
        source = known.source if values[name] == known.value else "given"
        lines.append(f"| {name} | {values[name]:g} | {known.unit} | {source} |")
    return "\n".join(lines)


def table(costs: Sequence[Cost], values: dict[str, float]) -> str:
    """The stages and their sum as Markdown."""
    a = SimpleNamespace(**values)
    lines = [
        "| stage | units | objects | requests, read | written | TB read | TB written "
        "| core hours | GPU hours | GB a worker | $ |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        figures = [cost.units, cost.objects, cost.reads, cost.writes]
        bytes_ = [cost.taken / 1e12, cost.given / 1e12]
        memory = f"{cost.memory / 1e9:.1f}"
        cells = [*map(_number, [*figures, *bytes_, cost.cores, cost.gpus]), memory]
        lines.append(f"| {cost.name} | {' | '.join(cells)} | {_number(cost.dollars(a))} |")
    sums = [
        sum(getattr(cost, name) for cost in costs)
        for name in ("units", "objects", "reads", "writes", "taken", "given", "cores", "gpus")
    ]
    sums[4:6] = [sums[4] / 1e12, sums[5] / 1e12]
    dollars = sum(cost.dollars(a) for cost in costs)
    lines.append(f"| **all** | {' | '.join(map(_number, sums))} | | {_number(dollars)} |")
    stored = sum(cost.given for cost in costs)
    most = max(cost.units for cost in costs)
    lines += [
        "",
        f"All that is written, kept for a month: ${_number(stored * a.month_price)}. The largest plan has "
        f"{_number(most)} units: {most * a.unit_memory / 1e9:.1f} GB of the driver and "
        f"{most * a.plan_unit_us / 1e6:.0f} s, each time the command is started.",
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    if value >= 1e6:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{round(value, 3 - 1 - math.floor(math.log10(value))):,.{min(digits, 3)}f}"
