"""Scores pictures with their captions: `pairmill score`, or `python -m jobs.score`."""

from __future__ import annotations

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stage import Stage
from pipeline.stages.score import ScoreConfig, ScoreStage


def stages(config: ScoreConfig, output: str) -> list[tuple[Stage, str]]:
    return [(ScoreStage(config), output)]


def run(config: ScoreConfig, request: Request) -> int:
    return run_stages(stages(config, request.output), request)


VERB = Verb(config=ScoreConfig, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("score")
