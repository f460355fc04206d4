"""Runs a stage on Ray: the only file of the stages that imports ray.

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
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import ray

from pipeline import manifest, storage
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError
from pipeline.planning import Plan, make_plan
from pipeline.progress import Progress
from pipeline.shards.format import shard_name
from pipeline.stage import Counts, Stage, Unit, operational

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_CONFIG, EXIT_STOPPED = 0, 1, 2, 75
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where Ray runs.

    Attributes:
        address: address of a running cluster (`auto`, `host:6379`); empty starts Ray on this machine.
        cpus: CPUs that a Ray started here may use; 0 takes all.
    """

    address: str = operational("")
    cpus: int = operational(0)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a stage is run; nothing here changes what it writes.

    Attributes:
        workers: workers at a time; 0 takes as many as the CPUs and GPUs allow.
        limit: only the first so many units, for a taste.
        task: `i/n`: only every n-th unit, starting at i (0 <= i < n), for job arrays.
        allow_failed: so many units may fail and the exit code is still 0.
        overwrite: redo units that were made from another configuration or other inputs.
        unit_timeout: seconds after which a unit counts as hung and its worker is ended; 0 waits for ever.
        grace: seconds that units under way get to finish after a stop signal.
        ray: where Ray runs.
    """

    workers: int = operational(0)
    limit: int | None = operational(None)
    task: str | None = operational(None)
    allow_failed: int = operational(0)
    overwrite: bool = operational(False)
    unit_timeout: float = operational(0.0)
    grace: float = operational(10.0)
    ray: RayOptions = operational(factory=RayOptions)  # noqa: RUF009 - it returns a dataclass field

    def parsed_task(self) -> tuple[int, int] | None:
        if not self.task:
            return None
        first, _, second = self.task.partition("/")
        if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
            raise ConfigError(f"task {self.task!r} must be i/n with 0 <= i < n, such as 0/4")
        return int(first), int(second)


@dataclass(kw_only=True)
class Summary:
    """What a run of a stage came to. `units` and `done_before` speak of the chosen units."""

    stage: str
    units: int
    done_before: int
    done: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    stopped: bool = False
    counts: Counts = field(default_factory=Counts)
    exit_code: int = EXIT_DONE


def run_stage(stage: Stage, output: str, options: RunOptions | None = None) -> Summary:
    """Runs what is not done yet of a stage; prints a progress line; returns what happened.

    Raises:
        ConfigError: before anything was started, or raised by a worker that could not start.
    """
    options = options or RunOptions()
    task = options.parsed_task()
    plan = make_plan(stage, output, overwrite=options.overwrite, limit=options.limit, task=task)
    summary = Summary(stage=stage.name, units=len(plan.units), done_before=plan.done)
    progress = Progress(stage.name, len(plan.units), done_before=plan.done)
    if plan.todo:
        with ray_session(options.ray), stop_signals() as stop:
            Execution(stage, output, options, plan, summary, progress, stop).run()
    whole = task is None and options.limit is None
    if whole and not summary.failed and not summary.stopped:
        stage.finish(output)
    summary.exit_code = _exit_code(summary, options)
    progress.close(_detail(summary))
    return summary


def _exit_code(summary: Summary, options: RunOptions) -> int:
    if summary.stopped:
        return EXIT_STOPPED
    return EXIT_FAILED if len(summary.failed) > options.allow_failed else EXIT_DONE


def _detail(summary: Summary) -> str:
    if not summary.done and not summary.failed and not summary.stopped:
        return "nothing to do"
    text = f"in {summary.counts.taken:,} out {summary.counts.kept:,}"
    if summary.failed:
        text += f"  FAILED {len(summary.failed)}"
    return text + ("  stopped" if summary.stopped else "")


@contextlib.contextmanager
def ray_session(options: RayOptions) -> Iterator[None]:
    """A Ray to run on: the one that already runs in this process, the cluster at `address`, or a new one."""
    if ray.is_initialized():
        yield
        return
    # Ray warns about accelerators on machines that have none, unless told what it may do.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if options.address:
        ray.init(address=options.address, **quiet)
    else:
        ray.init(num_cpus=options.cpus or None, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


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
        return {"counts": record["counts"], "seconds": record["seconds"]}


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
                self.progress.update(self.summary.done, _detail(self.summary))
            self.summary.stopped = bool(self.stop) and bool(self.waiting or self.flights)
        finally:
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
        except ray.exceptions.RayActorError as error:
            self.workers -= 1
            self._failed(flight.unit, error)
        else:
            self.idle.append(flight.worker)
            self.summary.done += 1
            self.summary.counts.add(Counts.from_json(result["counts"]))
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
        if storage.exists(url):
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
