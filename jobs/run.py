"""Runs a whole chain: `pairmill run chain.yaml [--from STEP | --only STEP] [--STEP.option value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.chain import run_chain
from jobs.words import add_chain, ask


def main(argv: Sequence[str]) -> int:
    """Parses, then runs; returns the exit code of the step that ended the chain, or 0."""
    parser = argparse.ArgumentParser(
        prog="pairmill run",
        allow_abbrev=False,
        description="Run the steps of a chain in order; what is done already is not done again.",
        epilog="--STEP.option value changes an option of one step, --set.NAME value a variable of the file.",
    )
    add_chain(parser, verb="run")
    return run_chain(ask(parser, argv).chosen)
