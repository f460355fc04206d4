"""Marks duplicates over all shards: `pairmill dedup`, or `python -m jobs.dedup`."""

from __future__ import annotations

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stages.dedup import DedupConfig, dedup_stages


def run(config: DedupConfig, request: Request) -> int:
    return run_stages(dedup_stages(config, request.output), request)


VERB = Verb(config=DedupConfig, run=run, stage=True, stages=dedup_stages)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("dedup")
