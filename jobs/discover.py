"""Finds image-text pairs in web archives: `pairmill discover`, or `python -m jobs.discover`."""

from __future__ import annotations

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stage import Stage
from pipeline.stages.discover.stage import DiscoverConfig, DiscoverStage


def stages(config: DiscoverConfig, output: str) -> list[tuple[Stage, str]]:
    return [(DiscoverStage(config), output)]


def run(config: DiscoverConfig, request: Request) -> int:
    return run_stages(stages(config, request.output), request)


VERB = Verb(config=DiscoverConfig, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("discover")
