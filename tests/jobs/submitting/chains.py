"""Chains whose submission is tested, and what their jobs would leave behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import cli
from jobs.slurm import books

STEPS: dict[str, dict[str, Any]] = {
    "dedup": {"input": "{root}/images", "output": "{root}/columns/dedup"},
    "pack": {
        "input": "{root}/images", "columns": ["{root}/columns/dedup"], "where": "duplicate_of IS NULL",
        "output": "{root}/shards", "group": 1,
    },
    "clip": {
        "job": "train", "shards": "{root}/shards", "output": "{root}/runs/clip", "recipe": "clip",
        "size": "tiny", "steps": 3, "batch_size": 4,
    },
    "evaluate": {"model": "{root}/runs/clip", "shards": "{root}/shards", "pool": 0},
    "report": {"images": "{root}/images", "shards": "{root}/shards", "output": "{root}/report.html"},
}  # fmt: skip
NAMES = list(STEPS)

Write = Callable[..., str]
Run = Callable[[str, str], None]


def submit(*words: str) -> int:
    return cli.main(["submit", *words])


def run_dir(chain: str) -> Path:
    return Path(chain).parent / "slurm"


def end_well(chain: str, job: int, code: int = 0) -> None:
    books.note_end(
        run_dir(chain),
        books.End(
            job=str(job), restart=0, verb="", code=code, requeued=False, why="", mark="", began=0, ended=1,
            node="n1",
        ),
    )  # fmt: skip


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}
