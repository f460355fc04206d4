"""A run whose bytes are others every time: `python -m tests.prove.restless OUTPUT`."""

from __future__ import annotations

import sys

from pipeline.runner import run_stage
from pipeline.runner_options import RayOptions, RunOptions
from tests.prove.bad_stage import BadConfig, BadStage

if __name__ == "__main__":
    config = BadConfig(units=24, seconds=0.3, volatile_salt=True)
    options = RunOptions(workers=1, ray=RayOptions(cpus=1))
    sys.exit(run_stage(BadStage(config), sys.argv[1], options).exit_code)
