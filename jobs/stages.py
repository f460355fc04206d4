"""Runs stages for the verbs: saves the resolved config beside the output, then hands over to the runner."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.saved import name_stage
from jobs.verb import Request
from pipeline import manifest, session, storage
from pipeline.runner import run_stage
from pipeline.stage import Stage
from pipeline.summary import Summary


def run_stages(stages: Sequence[tuple[Stage, str]], request: Request) -> int:
    """Runs (stage, output folder) pairs one after the other, on one Ray; the first exit code that is not 0
    ends it."""
    with session.shared_session():
        for stage, output in stages:
            resolved = name_stage(request.resolved, stage) if request.resolved else ""
            summary = run_stage(stage, output, request.options, resolved=resolved)
            report_failed(stage.name, output, summary)
            if summary.exit_code:
                return summary.exit_code
    return 0


def report_failed(name: str, output: str, summary: Summary) -> None:
    """Says on stderr which units failed in a run of `pairmill NAME`."""
    for number, message in sorted(summary.failed.items())[:5]:
        print(f"pairmill {name}: unit {number} failed: {message}", file=sys.stderr)
    if summary.failed:
        books = storage.join(output, manifest.BOOKS, "quarantine")
        print(
            f"pairmill {name}: {len(summary.failed)} units failed, see {books}; "
            "rerun the command to try them again",
            file=sys.stderr,
        )
