"""Commits the units of a stage one by one, to be killed at it: `python -m tests.prove.committing OUTPUT`."""

from __future__ import annotations

import sys

from tests.pipeline.folders import run_here
from tests.prove.bad_stage import BadConfig, BadStage

if __name__ == "__main__":
    run_here(BadStage(BadConfig(units=8, seconds=0.1)), sys.argv[1])
