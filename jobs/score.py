"""Scores pictures with their captions: `pairmill score`, or `python -m jobs.score`."""

from __future__ import annotations

import sys

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stages.score.stage import ScoreConfig, ScoreStage


def run(config: ScoreConfig, request: Request) -> int:
    return run_stages([(ScoreStage(config), request.output)], request)


VERB = Verb(config=ScoreConfig, run=run, stage=True)

if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["score", *sys.argv[1:]]))
