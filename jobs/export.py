"""Writes metadata as DataComp does: `pairmill export`, or `python -m jobs.export`."""

from __future__ import annotations

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stage import Stage
from pipeline.stages.export import Export, ExportConfig


def stages(config: ExportConfig, output: str) -> list[tuple[Stage, str]]:
    return [(Export(config), output)]


def run(config: ExportConfig, request: Request) -> int:
    return run_stages(stages(config, request.output), request)


VERB = Verb(config=ExportConfig, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("export")
