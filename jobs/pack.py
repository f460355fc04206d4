"""Writes training shards: `pairmill pack`, or `python -m jobs.pack`."""

from __future__ import annotations

import sys

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stage import Stage
from pipeline.stages.pack import Pack, PackConfig
from pipeline.tombstones import with_book


def stages(config: PackConfig, output: str) -> list[tuple[Stage, str]]:
    return [(Pack(with_book(config, output)), output)]


def run(config: PackConfig, request: Request) -> int:
    return run_stages(stages(config, request.output), request)


VERB = Verb(config=PackConfig, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["pack", *sys.argv[1:]]))
