"""One process of a local run: `python -m models.training.worker CONFIG.json`, started by `jobs.train`.

The configuration comes as a file, never as command line text. Handlers stand before anything slow is
imported, so a signal in the first seconds is remembered.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path

from models.training import verdicts
from models.training.config import TrainConfig, from_dict
from models.training.stopping import (
    EXIT_CONFIG,
    EXIT_CRASHED,
    EXIT_FAILED,
    LocalError,
    StopRequest,
    TrainingError,
    die_with_parent,
)

#: said by gloo and NCCL in every process when one has ended: hundreds of tracebacks would hide why it did
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def main(path: str) -> int:
    config = from_dict(TrainConfig, json.loads(Path(path).read_text(encoding="utf-8")))
    return train_here(config)


def train_here(config: TrainConfig) -> int:
    """Trains as one of WORLD_SIZE processes and returns the exit code; errors are told once, and to whoever
    reads verdicts by every process."""
    main_process = os.environ.get("RANK", "0") == "0"
    stop = StopRequest(Path(config.output), look=main_process)
    # `force`: where the command itself is the process (torchrun), it has set up another one
    level = logging.INFO if main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", force=True)
    for noisy in ("httpx", "fsspec", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from models.training.trainer import run

    try:
        return run(config, stop)
    except (ValueError, TrainingError) as error:
        if main_process or isinstance(error, LocalError):
            print(f"error: {error}", file=sys.stderr)
        code = EXIT_FAILED if isinstance(error, TrainingError) else EXIT_CONFIG
        verdicts.tell(code, str(error))
        return code
    except Exception as error:
        # the edge of the process: tell everything, fail honestly
        if any(words in str(error) for words in LOST):
            rank = os.environ.get("RANK", "0")
            print(f"process {rank} lost the others, of which one has ended", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        verdicts.tell(EXIT_CRASHED, f"{type(error).__name__}: {error}")
        return EXIT_CRASHED


if __name__ == "__main__":
    if parent := os.environ.get("PAIRMILL_LAUNCHER"):
        die_with_parent(int(parent))
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # without the interpreter's teardown, which takes seconds once DeepSpeed is loaded
    os._exit(code)
