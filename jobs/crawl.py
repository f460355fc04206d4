"""Fetches pictures: `pairmill crawl`, or `python -m jobs.crawl`."""

from __future__ import annotations

import sys

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stage import Stage
from pipeline.stages.crawl.stage import CrawlConfig, CrawlStage
from pipeline.tombstones import with_book


def stages(config: CrawlConfig, output: str) -> list[tuple[Stage, str]]:
    return [(CrawlStage(with_book(config, output)), output)]


def run(config: CrawlConfig, request: Request) -> int:
    return run_stages(stages(config, request.output), request)


VERB = Verb(config=CrawlConfig, run=run, stage=True, stages=stages)

if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["crawl", *sys.argv[1:]]))
