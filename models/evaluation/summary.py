"""The results of an evaluation as a table for people: with the picture, without it, with a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from models.evaluation.conditions import CONDITIONS

Pick = Callable[[dict[str, Any]], dict[str, Any]]


def summary(results: dict[str, Any]) -> str:
    """Lines of text; `results` are those of `pairmill evaluate` by name, as JSON values."""
    lines = [f"{'in percent':<44}{'picture':>9}{'withheld':>10}{'shuffled':>10}{'chance':>9}"]
    if "retrieval" in results:
        lines += _retrieval(results["retrieval"])
    if "itm" in results:
        accuracy, chance = results["itm"]["accuracy"], results["itm"]["chance"]
        for kind in accuracy["with_picture"]:
            means = [accuracy[c][kind]["mean"] for c in CONDITIONS]
            lines.append(_row(f"matched or not, {kind} wrong picture", means, chance))
    if "mlm" in results:
        accuracy = results["mlm"]["accuracy"]
        for group in accuracy["with_picture"]:
            lines.append(_row(f"masked words, {group}", [accuracy[c][group]["mean"] for c in CONDITIONS]))
    if "captions" in results:
        written = results["captions"]
        lines.append(_row("captions, CIDEr-D (1.0 = 100)", [written["cider_d"][c] for c in CONDITIONS]))
        lines.append(_row("captions equal to a reference", [written["exact"][c] for c in CONDITIONS]))
    return "\n".join(lines)


def _retrieval(found: dict[str, Any]) -> list[str]:
    pool = found["pool"]
    by = {"with_picture": found, "withheld": found["withheld"], "shuffled": found["shuffled"]}

    def rows(title: str, pick: Pick) -> list[str]:
        return [
            _row(f"{title}, {name}, {k.upper()}", [pick(by[c])[key][k] for c in CONDITIONS], chance)
            for key, name in (("tr", "picture -> text"), ("ir", "text -> picture"))
            for k, chance in found["chance"].items()
        ]

    lines = [f"retrieval over {pool['pictures']} pictures and {pool['captions']} captions"]
    lines += rows("features", lambda values: values["itc"])
    if found["reranked"]:
        lines += rows(f"top {found['top_k']} matched anew", lambda values: values)
    return lines


def _row(name: str, shares: Sequence[float], chance: float | None = None) -> str:
    cells = "".join(f"{100 * share:>{width}.1f}" for share, width in zip(shares, (9, 10, 10), strict=True))
    return f"{name:<44}{cells}{'' if chance is None else f'{100 * chance:>9.1f}'}"
