"""Precision and recall of each stage against what was planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.curation_plan import BENCHMARK, SAME, Planted
from jobs.reporting.truth import ranking_auc
from pipeline import candidates, columns

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One line of the table. planted: what should be found. found: what was. right: of these, rightly."""

    stage: str
    what: str
    planted: int
    found: int
    right: int
    words: str = ""

    @property
    def precision(self) -> float | None:
        return self.right / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        return self.right / self.planted if self.planted else None


def judge(root: Path, planted: Planted) -> list[Figure]:
    """The table, in the order of the chain."""
    figures = []
    for geometry, word in planted.geometries.items():
        here = root / word
        if geometry == SAME:
            rows = _rows(here / "images", here / "exact")
            figures.append(_duplicates("exact duplicates", geometry, rows, "duplicate_of"))
        rows = _rows(here / "images", here / "near")
        figures.append(_duplicates("near duplicates", geometry, rows, "near_duplicate_of"))
    for geometry, word in planted.geometries.items():
        rows = _rows(root / word / "images", root / word / "contamination")
        figures.append(_contamination(geometry, rows))
    figures.append(_language(root, "sentence", "sentences"))
    figures.append(_language(root, "short", "two to four words"))
    if planted.shuffled:
        figures.append(_shuffled(_rows(root / "judged/images", root / "columns/clip")))
    return figures


def _rows(images: Path, *sidecars: Path) -> list[Row]:
    found: list[Row] = []
    for path in sorted(images.glob("*.parquet")):
        table = columns.read_joined(str(path), [str(folder / path.name) for folder in sidecars])
        found += [row for row in table.to_pylist() if row["status"] == columns.SUCCESS]
    return found


def _duplicates(stage: str, what: str, rows: Sequence[Row], column: str) -> Figure:
    """Of each photograph and its copy one is to be marked, as a duplicate of the other."""
    group = {row["key"]: row["planted_group"] for row in rows}
    marked = [row for row in rows if row[column] is not None]
    right = [row for row in marked if group[row[column]] == row["planted_group"]]
    return Figure(stage, what, len(set(group.values())), len(marked), len(right))


def _contamination(what: str, rows: Sequence[Row]) -> Figure:
    """Copies of benchmark pictures are to be found, by the name of the picture; the benchmark's own pictures
    stand among the rows too, and are judged with `the same file` alone."""
    asked = [row for row in rows if row["planted_role"] == "copy"]
    found = [row for row in asked if row["contaminated_by"] is not None]
    right = [row for row in found if row["contaminated_by"].startswith(f"{BENCHMARK}/{row['planted_group']}")]
    return Figure(
        "contamination", what, sum(r["planted_in_benchmark"] for r in asked), len(found), len(right)
    )


def _language(root: Path, length: str, what: str) -> Figure:
    part = root / "texts/part-00000000.parquet"
    table = columns.join(
        candidates.read_part(str(part)),
        [("language", columns.read_column(str(root / "columns/language/00000000.parquet")))],
    )
    return _flagged(
        "language",
        f"not English: {what}",
        [row for row in table.to_pylist() if row["planted_length"] == length],
        is_planted=lambda row: row["planted_language"] != "en",
        is_found=lambda row: row["language"] != "en",
    )


def _flagged(
    stage: str,
    what: str,
    rows: Sequence[Row],
    *,
    is_planted: Callable[[Row], bool],
    is_found: Callable[[Row], bool],
    words: str = "",
) -> Figure:
    found = [row for row in rows if is_found(row)]
    right = sum(map(is_planted, found))
    return Figure(stage, what, sum(map(is_planted, rows)), len(found), right, words)


def _shuffled(rows: Sequence[Row]) -> Figure:
    """As many of the lowest scores as captions were exchanged."""
    scores = np.array([row["clip_score"] for row in rows])
    wrong = np.array([row["planted_wrong"] for row in rows])
    last = np.sort(scores)[wrong.sum() - 1]
    auc = ranking_auc(scores[~wrong], scores[wrong])
    return _flagged(
        "clip",
        "exchanged captions",
        rows,
        is_planted=lambda row: row["planted_wrong"],
        is_found=lambda row: row["clip_score"] <= last,
        words=f"ROC AUC {auc:.3f}; the lowest scores, as many as were exchanged",
    )


def table(figures: Sequence[Figure]) -> str:
    """The figures as Markdown."""
    lines = [
        "| stage | planted | number | found | right | precision | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    for f in figures:
        what = f"{f.what} ({f.words})" if f.words else f.what
        shares = [("–" if v is None else f"{v:.3f}") for v in (f.precision, f.recall)]
        lines.append(f"| {f.stage} | {what} | {f.planted} | {f.found} | {f.right} | {' | '.join(shares)} |")
    return "\n".join(lines)


def to_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    return [{**vars(f), "precision": f.precision, "recall": f.recall} for f in figures]
