"""Runs units on Ray: the only file that imports it for stages.

The driver owns the plan and the attempt count; workers are Ray actors, each holding one built stage, each
busy with one unit at a time, which it commits itself. Ray's own retries stay off: a unit that kills its
worker is tried three times and then quarantined, while the others go on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray

from pipeline import manifest, session, storage
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError
from pipeline.planning import Plan
from pipeline.progress import Progress
from pipeline.runner_options import RayOptions, RunOptions
from pipeline.shards.format import shard_name
from pipeline.stage import Counts, Stage, Unit
from pipeline.summary import Summary

log = logging.getLogger(__name__)

ATTEMPTS = 3
#: how long workers get to close what they hold
CLOSE_SECONDS = 3.0


def execute(
    stage: Stage, output: str, options: RunOptions, plan: Plan, summary: Summary, progress: Progress
) -> None:
    """Runs the units of a plan and notes in `summary` what happened."""
    with ray_session(options.ray), stop_signals() as stop:
        Execution(stage, output, options, plan, summary, progress, stop).run()


@contextlib.contextmanager
def ray_session(options: RayOptions) -> Iterator[None]:
    """A Ray to run on: the one that already runs in this process, the cluster at `address`, or a new one."""
    if ray.is_initialized():
        yield
        return
    # Ray warns about accelerators on machines that have none, unless told what it may do.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray listens on all interfaces and, by default, refuses clients without this user's token. It says so
    # at every start, before its own logging level counts.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if options.address:
        ray.init(address=options.address, **quiet)
    else:
        # `local`: without it Ray would join a cluster that somebody else started on this machine
        ray.init(address="local", num_cpus=options.cpus or None, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        if not session.is_shared():
            session.close()


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGUSR1 in a list instead of dying of them."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        with contextlib.suppress(ValueError):  # not the main thread: signals stay as they are
            before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Worker:
    """Holds one built stage and runs units of it."""

    def __init__(self, stage: Stage, output: str) -> None:
        self.stage, self.output = stage, output
        self.started = False

    def run(self, unit: Unit, stale: list[str]) -> dict[str, Any]:
        if not self.started:
            self.stage.start()
            self.started = True
        record = run_and_commit(self.stage, unit, self.output, stale=stale)
        return {"counts": record["counts"]}

    def close(self) -> None:
        if self.started:
            self.stage.close()


@dataclass
class _Flight:
    worker: Any
    unit: Unit
    began: float


class Execution:
    """One run over the units to do: hands out, collects, counts attempts, stops."""

    def __init__(
        self,
        stage: Stage,
        output: str,
        options: RunOptions,
        plan: Plan,
        summary: Summary,
        progress: Progress,
        stop: list[int],
    ) -> None:
        self.stage, self.output, self.options = stage, output, options
        self.plan, self.summary, self.progress, self.stop = plan, summary, progress, stop
        self.waiting: deque[Unit] = deque(plan.todo)
        self.attempts: dict[int, int] = {}
        self.quarantined = manifest.list_quarantined(output)
        self.flights: dict[ray.ObjectRef, _Flight] = {}
        self.idle: list[Any] = []
        self.workers = 0
        self.stop_deadline = float("inf")

    def run(self) -> None:
        self.most = min(self._worker_limit(), len(self.waiting))
        try:
            while self.flights or (self.waiting and not self.stop):
                self._hand_out()
                ready, _ = ray.wait(list(self.flights), num_returns=1, timeout=0.2)
                for ref in ready:
                    self._collect(ref)
                self._end_hung()
                if self.stop and self._stop_now():
                    break
                self.progress.update(self.plan.done + self.summary.done, self.summary.detail())
            self.summary.stopped = bool(self.stop) and bool(self.waiting or self.flights)
        finally:
            closing = [worker.close.remote() for worker in self.idle]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
            for worker in [*self.idle, *(f.worker for f in self.flights.values())]:
                ray.kill(worker)

    def _worker_limit(self) -> int:
        if self.options.workers:
            return self.options.workers
        need, have = self.stage.resources, ray.cluster_resources()
        limits = [have.get("CPU", 1) // need.cpus if need.cpus else len(self.waiting)]
        if need.gpus:
            limits.append(have.get("GPU", 0) // need.gpus)
        if min(limits) < 1:
            raise ConfigError(
                f"stage {self.stage.name} needs {need.cpus} CPUs and {need.gpus} GPUs a worker, Ray offers "
                f"{have.get('CPU', 0):g} and {have.get('GPU', 0):g}; ask for less or give Ray more"
            )
        return int(min(limits))

    def _hand_out(self) -> None:
        while self.waiting and not self.stop and (self.idle or self.workers < self.most):
            unit = self.waiting.popleft()
            worker = self.idle.pop() if self.idle else self._new_worker()
            ref = worker.run.remote(unit, self.plan.stale.get(unit.number, []))
            self.flights[ref] = _Flight(worker, unit, time.monotonic())

    def _new_worker(self) -> Any:
        self.workers += 1
        need = self.stage.resources
        remote = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, max_restarts=0, max_task_retries=0)
        return remote(Worker).remote(self.stage, self.output)

    def _collect(self, ref: ray.ObjectRef) -> None:
        flight = self.flights.pop(ref)
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            self.idle.append(flight.worker)
            if isinstance(error.cause, ConfigError):
                raise ConfigError(str(error.cause)) from error
            self._failed(flight.unit, error.cause)
        except ray.exceptions.RayActorError:
            self.workers -= 1
            self._failed(flight.unit, RuntimeError("its worker died (crashed, killed, or out of memory)"))
        else:
            self.idle.append(flight.worker)
            self.summary.done += 1
            self.summary.counts.add(Counts.from_json(result["counts"]))
            if flight.unit.number in self.quarantined:
                self._lift_quarantine(flight.unit)

    def _failed(self, unit: Unit, error: BaseException) -> None:
        count = self.attempts[unit.number] = self.attempts.get(unit.number, 0) + 1
        message = f"{type(error).__name__}: {error}".strip()
        name = f"{self.stage.name} {shard_name(unit.number)}"
        log.warning("%s attempt %d of %d: %s", name, count, ATTEMPTS, message)
        if count < ATTEMPTS:
            self.waiting.append(unit)
            return
        self.summary.failed[unit.number] = message
        record = {"unit": unit.number, "source": dict(unit.source), "attempts": count, "error": message}
        data = json.dumps(record, indent=1).encode()
        storage.write_bytes(manifest.quarantine_url(self.output, unit.number), data)

    def _lift_quarantine(self, unit: Unit) -> None:
        url = manifest.quarantine_url(self.output, unit.number)
        if storage.exists(url):  # another run may have lifted it meanwhile
            storage.remove(url)

    def _end_hung(self) -> None:
        if not self.options.unit_timeout:
            return
        now = time.monotonic()
        for ref, flight in list(self.flights.items()):
            if now - flight.began > self.options.unit_timeout:
                del self.flights[ref]
                ray.kill(flight.worker)
                self.workers -= 1
                self._failed(flight.unit, TimeoutError(f"no end after {self.options.unit_timeout:g} s"))

    def _stop_now(self) -> bool:
        """After a signal: units under way may finish within the grace time; a second signal ends them."""
        now = time.monotonic()
        if self.stop_deadline == float("inf"):
            self.stop_deadline = now + self.options.grace
            log.warning("stopping: %d units may finish within %g s", len(self.flights), self.options.grace)
        return now > self.stop_deadline or len(self.stop) > 1
