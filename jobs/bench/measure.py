"""What a command costs, with every process that it starts: CPU time and memory.

    python -m jobs.bench.measure RESULT.json -- command argument ...

Ray's workers are no children of the driver, pools leave theirs to init, and raylet does not wait for its own,
so that the kernel's sum over children misses them. Hence a process of its own becomes the reaper of all
orphans below it (Linux: PR_SET_CHILD_SUBREAPER), so that none gets out of sight, and samples their times.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil

PR_SET_CHILD_SUBREAPER = 36
#: what a process spends after its last sample is missed; it cancels between two sizes of one command
SAMPLE_SECONDS = 0.05
#: samples of the times for one of the memory, which costs more to ask
MEMORY_EVERY = 10
#: what the command line of a worker begins with while it works
RAY_WORKER = "ray::"
#: how long what the command has left behind may take to end
END_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Cost:
    """cpu: seconds of user and system time. process, tree: peak memory in bytes of the largest process
    (resident) and of all of them together (proportional share, so that shared pages count once).

    work: of the CPU time, that of Ray's workers; its servers spend some whether there is work or not.
    wall: seconds from start to end. workers: what the largest of Ray's workers had (resident) at so many
    seconds, whenever one was at work.
    """

    cpu: float
    process: int
    tree: int
    work: float = 0.0
    wall: float = 0.0
    workers: Sequence[tuple[float, int]] = ()

    @property
    def worker(self) -> int:
        """Peak memory in bytes of the largest worker."""
        return max((memory for _, memory in self.workers), default=0)


def measure(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> Cost:
    """Runs a command to its end.

    Raises:
        RuntimeError: it ended with another exit code than 0; the message has the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
        result = Path(folder) / "result.json"
        wrapper = [sys.executable, "-m", "jobs.bench.measure", str(result), "--", *command]
        home = str(Path(__file__).resolve().parents[2])
        done = subprocess.run(
            wrapper, cwd=home, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return Cost(**json.loads(result.read_text()))


def marginal(small: Sequence[Cost], large: Sequence[Cost], units: int) -> float:
    """CPU seconds a unit: the difference of the medians of two sizes that are `units` apart."""
    return (median(c.cpu for c in large) - median(c.cpu for c in small)) / units


def _wrap(result: str, command: Sequence[str]) -> int:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    books = _Books()
    sampler = threading.Thread(target=books.watch, daemon=True)
    sampler.start()
    code = subprocess.run(command, check=False).returncode
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(SAMPLE_SECONDS)
        except ChildProcessError:
            break
    Path(result).write_text(json.dumps(asdict(books.cost())))
    return code


class _Books:
    """Times and memory of every process seen below this one."""

    def __init__(self) -> None:
        self._cpu: dict[tuple[int, float], float] = {}
        self._process = self._tree = 0
        self._at_work: set[tuple[int, float]] = set()
        self._began = time.monotonic()
        self._workers: list[tuple[float, int]] = []

    def cost(self) -> Cost:
        return Cost(
            cpu=sum(self._cpu.values()),
            process=self._process,
            tree=self._tree,
            work=sum(self._cpu[process] for process in self._at_work),
            wall=time.monotonic() - self._began,
            workers=self._workers,
        )

    def watch(self) -> None:
        me, samples = psutil.Process(), 0
        while True:
            tree = worker = 0
            for child in me.children(recursive=True):
                try:
                    spent = child.cpu_times()
                    self._cpu[child.pid, child.create_time()] = spent.user + spent.system
                    if samples % MEMORY_EVERY == 0:
                        memory = child.memory_full_info()
                        tree += memory.pss
                        self._process = max(self._process, memory.rss)
                        if child.cmdline()[:1] and child.cmdline()[0].startswith(RAY_WORKER):
                            worker = max(worker, memory.rss)
                            self._at_work.add((child.pid, child.create_time()))
                except psutil.Error:  # it ended meanwhile
                    continue
            self._tree = max(self._tree, tree)
            if worker:
                self._workers.append((round(time.monotonic() - self._began, 1), worker))
            samples += 1
            time.sleep(SAMPLE_SECONDS)


if __name__ == "__main__":
    split = sys.argv.index("--")
    sys.exit(_wrap(sys.argv[1], sys.argv[split + 1 :]))
