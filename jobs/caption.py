"""Writes synthetic captions of pictures and judges them: `pairmill caption`, or `python -m jobs.caption`."""

from __future__ import annotations

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stage import Stage
from pipeline.stages.caption import CaptionConfig, CaptionStage


def stages(config: CaptionConfig, output: str) -> list[tuple[Stage, str]]:
    return [(CaptionStage(config), output)]


def run(config: CaptionConfig, request: Request) -> int:
    return run_stages(stages(config, request.output), request)


VERB = Verb(config=CaptionConfig, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("caption")
