"""What a training run left behind: curves from metrics.jsonl, results from eval/*.json, its configuration.

Another part of the project writes these files, and later systems will log other losses, so nothing here
knows their names: every numeric field of a row becomes a curve, every result file a table.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from jobs.reporting.books import read_text
from pipeline import storage

MAX_POINTS = 240  # of a curve in the page; longer ones are averaged down
MAX_CURVES = 16
#: fields of a row that tell when it was logged, not how training went
NO_CURVES = ("step", "seconds")
#: what evaluate leaves beside its results to know them again
NO_RESULTS = ("evaluation.json",)
#: the order in which curves are shown; unknown ones follow by name
ORDER = ("loss", "itc", "itm", "mlm", "lm", "accuracy", "lr", "grad_norm", "temperature", "samples_per_s")
UNITS = {
    **dict.fromkeys(("loss", "itc", "itm", "mlm", "lm"), "nats"),
    "samples_per_s": "samples/s",
    "memory_gb": "GB",
}
NAMES = {
    "loss": "total loss",
    "itc": "ITC loss (contrastive)",
    "itm": "ITM loss (matching)",
    "mlm": "MLM loss (masked words)",
    "lm": "LM loss (next word)",
    "lr": "learning rate",
    "samples_per_s": "throughput",
    "grad_norm": "gradient norm",
    "data_wait": "share of the time that waits for data",
    "memory_gb": "most memory of a process",
    "val_loss": "total loss, held-out pairs",
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One logged quantity over the steps, averaged down to `MAX_POINTS` points."""

    name: str
    title: str
    unit: str
    points: tuple[tuple[float, float], ...]
    last: float


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One folder of runs.

    Attributes:
        name: the folder's own name.
        folder: its location.
        exists: whether there is such a folder.
        state: what run.json says: running, finished; empty where unknown.
        steps: the last logged step.
        curves: what was logged.
        torn: lines of metrics.jsonl that are no JSON (a run killed while it wrote).
        results: (name of the file under eval/, its content).
        resolved: config.yaml.
        evaluated: eval/config.yaml, how the results were made.
        summary: a few words on what was trained.
    """

    name: str
    folder: str
    exists: bool = False
    state: str = ""
    steps: int = 0
    curves: tuple[Curve, ...] = ()
    torn: int = 0
    results: tuple[tuple[str, dict[str, Any]], ...] = ()
    resolved: str = ""
    evaluated: str = ""
    summary: str = ""


def read_run(folder: str) -> RunFacts:
    """Reads one run; whatever is not there (yet) is left empty."""
    name = storage.basename(folder)
    if not storage.isdir(folder):
        return RunFacts(name=name, folder=folder)
    record = _object(read_text(storage.join(folder, "run.json")))
    rows, torn = _rows(read_text(storage.join(folder, "metrics.jsonl")))
    return RunFacts(
        name=name,
        folder=folder,
        exists=True,
        state=str(record.get("state", "")),
        steps=max((int(r["step"]) for r in rows), default=0),
        curves=curves(rows),
        torn=torn,
        results=_results(storage.join(folder, "eval")),
        resolved=read_text(storage.join(folder, "config.yaml")),
        evaluated=read_text(storage.join(folder, "eval", "config.yaml")),
        summary=_summary(record.get("semantic", {}), record.get("zero_stage")),
    )


def curves(rows: list[dict[str, Any]]) -> tuple[Curve, ...]:
    """Every numeric field but the step as a curve, in the order a person wants to see them."""
    names = {n for row in rows for n, v in row.items() if n not in NO_CURVES and _is_number(v)}
    rank = {name: i for i, name in enumerate(ORDER)}
    found = []
    for name in sorted(names, key=lambda n: (rank.get(n, len(rank)), n))[:MAX_CURVES]:
        points = [(float(r["step"]), float(r[name])) for r in rows if _is_number(r.get(name))]
        curve = Curve(
            name=name,
            title=NAMES.get(name, name.replace("_", " ")),
            unit=UNITS.get(name, ""),
            points=tuple(averaged(points, MAX_POINTS)),
            last=points[-1][1],
        )
        found.append(curve)
    return tuple(found)


def averaged(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smoothed(points: tuple[tuple[float, float], ...], reach: int) -> list[tuple[float, float]]:
    """A centred moving average over `2 reach + 1` points, fewer at the ends."""
    values = [y for _, y in points]
    found = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(values) - 1 - i)
        window = values[i - near : i + near + 1]
        found.append((x, sum(window) / len(window)))
    return found


def _rows(text: str) -> tuple[list[dict[str, Any]], int]:
    """Rows by step; where a step was logged twice, the later row stands."""
    by_step: dict[float, dict[str, Any]] = {}
    torn = 0
    for line in text.splitlines():
        row = _object(line)
        if _is_number(row.get("step")):
            by_step[float(row["step"])] = row
        elif line.strip():
            torn += 1
    return [by_step[step] for step in sorted(by_step)], torn


def _results(folder: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    found = []
    for info in storage.list_files(folder):
        name = storage.basename(info.url)
        if name.endswith(".json") and name not in NO_RESULTS:
            value = _object(read_text(info.url))
            if value:
                found.append((name.removesuffix(".json"), value))
    return tuple(found)


def _summary(semantic: dict[str, Any], stage: Any) -> str:
    """`albef tiny, 600 steps of 64 pairs, ZeRO 2`, as far as it is known."""
    steps, epochs, batch = (semantic.get(k) for k in ("steps", "epochs", "batch_size"))
    length = f"{steps:,} steps" if isinstance(steps, int) else f"{epochs} epochs" if epochs else ""
    words = [
        " ".join(str(semantic[k]) for k in ("recipe", "size") if semantic.get(k)),
        f"{length} of {batch} pairs" if length and batch else length,
        f"ZeRO {stage}" if stage is not None else "",
    ]
    return ", ".join(w for w in words if w)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
