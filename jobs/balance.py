"""Balances captions over query entries: `pairmill balance`, or `python -m jobs.balance`."""

from __future__ import annotations

from jobs.stages import run_stages
from jobs.verb import Request, Verb
from pipeline.stages.balance import BalanceConfig, balance_stages


def run(config: BalanceConfig, request: Request) -> int:
    return run_stages(balance_stages(config, request.output), request)


VERB = Verb(config=BalanceConfig, run=run, stage=True, stages=balance_stages)

if __name__ == "__main__":
    from jobs.cli import entry

    entry("balance")
