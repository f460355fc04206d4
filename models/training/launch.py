"""Starts the processes of a run on this machine, passes signals on, and returns one exit code.

Instead of torchrun, whose exit code is 1 whatever its workers return (a stop by signal must be 75, so that
a batch script knows to requeue) and which imports torch once more before anything starts. The processes
still join by torchrun's environment variables, so both ways meet in the same code.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from models.training.config import TrainConfig, to_dict
from models.training.stopping import EXIT_CRASHED, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, SIGNALS

#: seconds that the others have to end after one failed
GRACE = 10.0


def launch(config: TrainConfig) -> int:
    """Runs `config.processes` workers to their end. Returns 0, 1, 2 or 75."""
    print(f"train {config.recipe}: starting {config.processes} processes", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="pairmill-train-") as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(to_dict(config)), encoding="utf-8")
        port = free_port()
        workers: list[subprocess.Popen[bytes]] = []
        received: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            received.append(number)
            for worker in workers:
                if worker.poll() is None:
                    worker.send_signal(number)

        before = {number: signal.signal(number, forward) for number in SIGNALS}
        try:
            for rank in range(config.processes):
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "models.training.worker", str(path)],
                        env=worker_environment(rank, config.processes, port),
                        # their own group: Ctrl-C in a terminal reaches them once, through `forward`
                        start_new_session=True,
                    )
                )
                if received:
                    workers[-1].send_signal(received[-1])
            return _wait(workers, stopped=received)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
            for number, handler in before.items():
                signal.signal(number, handler)


def _wait(workers: list[subprocess.Popen[bytes]], *, stopped: list[int]) -> int:
    """Waits for all; when one fails, ends the others, which would wait for it for ever."""
    failed_at: float | None = None
    first_failure = EXIT_FAILED
    while any(w.poll() is None for w in workers):
        bad = [w.returncode for w in workers if w.poll() not in (None, EXIT_DONE, EXIT_STOPPED)]
        if bad and failed_at is None:
            failed_at, first_failure = time.monotonic(), bad[0]
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
        time.sleep(0.05)
    codes = [w.returncode for w in workers]
    if all(code == EXIT_DONE for code in codes):
        return EXIT_DONE
    if all(code in (EXIT_DONE, EXIT_STOPPED) for code in codes):
        return EXIT_STOPPED
    if stopped and all(code in (EXIT_DONE, EXIT_STOPPED, -stopped[-1]) for code in codes):
        return EXIT_STOPPED  # the signal came before Python could listen; nothing was begun
    if failed_at is None:
        first_failure = next(c for c in codes if c not in (EXIT_DONE, EXIT_STOPPED))
    if first_failure < 0:
        name = signal.Signals(-first_failure).name
        print(f"error: a training process was ended by {name}; start again to go on", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_FAILED if first_failure == EXIT_CRASHED else first_failure


def worker_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """torchrun's variables, and a fair share of the cores."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    ours = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "PAIRMILL_LAUNCHER": os.getpid(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        # waiting threads that spin make a busy machine several times slower
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    # -m finds the packages of this interpreter's path, and nothing of the current directory in their place
    path = os.pathsep.join(
        dict.fromkeys([_source_root(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
    return {**os.environ, **{k: str(v) for k, v in ours.items()}, "PYTHONPATH": path.rstrip(os.pathsep)}


def _source_root() -> str:
    return str(Path(__file__).resolve().parents[2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
