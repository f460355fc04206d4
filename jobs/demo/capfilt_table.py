"""The figures of the CapFilt experiment as Markdown tables: each seed, their mean, the least and the most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: figure -> what it is called
FIGURES = {
    "tr_r1": "picture to text R@1",
    "ir_r1": "text to picture R@1",
    "tr_r10": "picture to text R@10",
    "ir_r10": "text to picture R@10",
    "itm": "matched or not, random wrong picture",
    "cider_d": "captions, CIDEr-D",
}
FILTER = {
    "wrong captions of the web dropped (recall)": lambda f: f["web"]["recall"],
    "of the dropped ones, wrong (precision)": lambda f: f["web"]["precision"],
    "ROC AUC of the matching probability": lambda f: f["web"]["auc"],
    "web captions right, before the filter": lambda f: f["packed"]["web_right_before"],
    "web captions right, after it": lambda f: f["packed"]["web_right"],
    "texts left, web's and written ones, right": lambda f: f["packed"]["texts_right"],
    "pictures with a text left": lambda f: f["packed"]["pictures"],
    "written texts that pass": lambda f: f["written"]["kept"],
    "written: right objects, before and after": lambda f: _pair(f, "objects"),
    "written: right colour, before and after": lambda f: _pair(f, "colour"),
    "written: right in everything, before and after": lambda f: _pair(f, "all"),
}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Two tables: what each model can do on held-out scenes, and what captioner and filter did."""
    seeds = [f"seed {r['seed']}" for r in results]
    head = ["model", "figure", *seeds, "mean", "least to most"]
    lines = [f"\n| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in results[0]["models"]:
        for figure, title in FIGURES.items():
            values = [r["models"][model][figure] for r in results]
            lines.append(f"| {' | '.join([model, title, *_cells(values)])} |")
    head = ["captioner and filter", *seeds]
    lines += [f"\n| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for title, value in FILTER.items():
        lines.append(f"| {' | '.join([title, *(_shown(value, r['filter']) for r in results)])} |")
    return "\n".join(lines)


def _cells(values: Sequence[float]) -> list[str]:
    mean = sum(values) / len(values)
    return [*(f"{v:.3f}" for v in values), f"{mean:.3f}", f"{min(values):.3f} to {max(values):.3f}"]


def _shown(value: Callable[[dict[str, Any]], Any], found: dict[str, Any]) -> str:
    shown = value(found)
    return shown if isinstance(shown, str) else f"{shown:,}" if isinstance(shown, int) else f"{shown:.3f}"


def _pair(found: dict[str, Any], name: str) -> str:
    return f"{found['written']['before'][name]:.3f}, {found['written']['after'][name]:.3f}"
