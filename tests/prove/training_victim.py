"""Run as a program by test_training_resume.py: one process of a run that is killed in the middle of a save.

    python -m tests.prove.training_victim CONFIG.json FRACTION

The second save of this life is killed after FRACTION of the time that the first one took.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from jobs.train import train
from models.training import checkpoint
from models.training.config import TrainConfig, from_dict

original, took = checkpoint.save, [0.0]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save(*args: Any, **kwargs: Any) -> Path:
    if took[0]:
        threading.Timer(took[0] * float(sys.argv[2]), kill).start()
    began = time.monotonic()
    path = original(*args, **kwargs)
    if took[0]:
        kill()  # it was faster than the first one
    took[0] = time.monotonic() - began
    return path


if __name__ == "__main__":
    checkpoint.save = save
    config = from_dict(TrainConfig, json.loads(Path(sys.argv[1]).read_text()))
    os._exit(train(config))
