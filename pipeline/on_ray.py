"""Workers on Ray: the only file that imports it for stages.

A worker is a Ray actor that holds one built stage, is busy with one unit at a time and commits it itself.
Ray's own retries stay off: which unit is tried how often is `pipeline.execution`'s business.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline import memory, scratch, session
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError
from pipeline.runner_options import RayOptions
from pipeline.stage import Stage, Unit

log = logging.getLogger(__name__)

#: how long workers get to close what they hold
CLOSE_SECONDS = 3.0


@contextlib.contextmanager
def ray_session(options: RayOptions) -> Iterator[None]:
    """A Ray to run on: the one that already runs in this process, the cluster at `address`, or a new one.

    One that is started here ends with this process, also by SIGKILL: its servers at once, its workers within
    seconds, two helpers without work within about a minute.
    """
    if ray.is_initialized():
        yield
        return
    # Ray warns about accelerators on machines that have none, unless told what it may do.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray listens on all interfaces and, by default, refuses clients without this user's token. It says so
    # at every start, before its own logging level counts.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    with _without_its_sigterm():
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
def _without_its_sigterm() -> Iterator[None]:
    """Ray's handlers of SIGTERM exit in the middle of its start, and what is half built then crashes; without
    them the signal is the caller's, who gets it once Ray is there."""
    utils = sys.modules["ray._private.utils"]
    name = "set_sigterm_handler"
    before = getattr(utils, name, None)
    setattr(utils, name, lambda handler: None)
    try:
        yield
    finally:
        setattr(utils, name, before)


class Worker:
    """Holds one built stage and runs units of it."""

    def __init__(self, stage: Stage, output: str) -> None:
        self.stage, self.output = stage, output
        self.started = False

    def start(self) -> None:
        memory.keep_freed()
        scratch.sweep()
        self.stage.start()
        self.started = True

    def run(self, unit: Unit, stale: list[str]) -> dict[str, Any]:
        record = run_and_commit(self.stage, unit, self.output, stale=stale)
        return {"counts": record["counts"]}

    def close(self) -> None:
        if self.started:
            self.stage.close()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a worker was given has come to an end.

    unit: None where the worker was to start. result: the unit's; None after an error. error: what the stage
    raised, or why the worker is no more. died: whether the worker is gone. memory: whether it was ended
    because the machine ran short of memory.
    """

    unit: Unit | None
    result: dict[str, Any] | None = None
    error: BaseException | None = None
    died: bool = False
    memory: bool = False


@dataclass
class _Flight:
    actor: Any
    unit: Unit | None
    began: float = field(default_factory=time.monotonic)


class Pool:
    """The workers of a run: added one by one, each starting, idle or busy with one unit."""

    def __init__(self, stage: Stage, output: str) -> None:
        self.stage, self.output = stage, output
        self.flights: dict[ray.ObjectRef, _Flight] = {}
        self.idle: list[Any] = []

    @property
    def busy(self) -> list[Unit]:
        """The units under way."""
        return [f.unit for f in self.flights.values() if f.unit is not None]

    @property
    def starting(self) -> int:
        return sum(f.unit is None for f in self.flights.values())

    @property
    def size(self) -> int:
        """Workers, those that are still starting included."""
        return len(self.idle) + len(self.flights)

    def limit(self) -> int:
        """How many workers the CPUs and GPUs of Ray allow.

        Raises:
            ConfigError: not one.
        """
        need, have = self.stage.resources, ray.cluster_resources()
        limits = [have.get("CPU", 1) // need.cpus] if need.cpus else []
        if need.gpus:
            limits.append(have.get("GPU", 0) // need.gpus)
        if limits and min(limits) < 1:
            raise ConfigError(
                f"stage {self.stage.name} needs {need.cpus} CPUs and {need.gpus} GPUs a worker, Ray offers "
                f"{have.get('CPU', 0):g} and {have.get('GPU', 0):g}; ask for less or give Ray more"
            )
        return int(min(limits, default=1 << 30))

    def add(self) -> None:
        """Starts one more worker."""
        need = self.stage.resources
        remote = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, max_restarts=0, max_task_retries=0)
        actor: Any = remote(Worker).remote(self.stage, self.output)
        self.flights[actor.start.remote()] = _Flight(actor, None)

    def hand(self, unit: Unit, stale: list[str]) -> None:
        """Gives a unit to an idle worker."""
        actor = self.idle.pop()
        self.flights[actor.run.remote(unit, stale)] = _Flight(actor, unit)

    def wait(self, seconds: float) -> list[Ended]:
        """What has come to an end; waits for the first of them, at most so long."""
        if not self.flights:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(list(self.flights), num_returns=1, timeout=seconds)
        return [self._collect(ref) for ref in ready]

    def _collect(self, ref: ray.ObjectRef) -> Ended:
        flight = self.flights.pop(ref)
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if flight.unit is None:
                ray.kill(flight.actor)
                return Ended(unit=None, error=error.cause or error, died=True)
            self.idle.append(flight.actor)
            return Ended(unit=flight.unit, error=error.cause or error)
        except ray.exceptions.RayError as error:
            ray.kill(flight.actor)  # it may be alive, out of reach
            memory = isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(
                error
            )
            why = "ended because its machine ran out of memory" if memory else "crashed, killed, or lost"
            return Ended(
                unit=flight.unit, error=RuntimeError(f"its worker died ({why})"), died=True, memory=memory
            )
        self.idle.append(flight.actor)
        return Ended(unit=flight.unit, result=result)

    def end_hung(self, seconds: float) -> list[Ended]:
        """Ends the workers that have been busy with one unit for longer than this."""
        hung = []
        for ref, flight in list(self.flights.items()):
            if flight.unit is not None and time.monotonic() - flight.began > seconds:
                del self.flights[ref]
                ray.kill(flight.actor)
                error = TimeoutError(f"no end after {seconds:g} s")
                hung.append(Ended(unit=flight.unit, error=error, died=True))
        return hung

    def close(self, *, patiently: bool) -> None:
        """Ends all workers; if there is time, those that are idle get some to close what they hold."""
        closing = [actor.close.remote() for actor in self.idle] if patiently else []
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for actor in [*self.idle, *(f.actor for f in self.flights.values())]:
            ray.kill(actor)
