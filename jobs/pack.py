"""Writes training shards: `pairmill pack`, or `python -m jobs.pack`."""

from __future__ import annotations

import dataclasses
import sys

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline import session
from pipeline.stage import Stage
from pipeline.stages.pack import PackConfig, pack_stages
from pipeline.tombstones import with_book


def stages(config: PackConfig, output: str) -> list[tuple[Stage, str]]:
    return pack_stages(with_book(config, output), output)


def run(config: PackConfig, request: Request) -> int:
    *before, pack = stages(config, request.output)
    with session.shared_session():
        # what is chosen among all samples needs all of them, however few groups are wanted for a taste
        whole = dataclasses.replace(request, options=dataclasses.replace(request.options, limit=None))
        return run_stages(before, whole) or run_stages([pack], request)


VERB = Verb(config=PackConfig, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["pack", *sys.argv[1:]]))
