"""One run over the units to do: hands out, collects, counts attempts, quarantines, stops.

The driver owns the plan and the attempt count. A unit that fails or kills its worker is tried three times and
then quarantined, while the others go on. What is no unit's fault ends the run instead, and quarantines
nothing: a full disk, a storage that does not take the books, a stage that starts in no worker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType

from pipeline import commit, manifest, pulse, storage
from pipeline.errors import ConfigError, RunError, StorageFullError
from pipeline.locks import Lock
from pipeline.on_ray import Ended, Pool, ray_session
from pipeline.planning import Plan
from pipeline.progress import Progress
from pipeline.pulse import Beat
from pipeline.runner_options import RunOptions
from pipeline.shards.format import shard_name
from pipeline.stage import Counts, Stage, Unit
from pipeline.summary import Summary

log = logging.getLogger(__name__)

ATTEMPTS = 3
#: seconds before the second attempt at a unit, doubled before the third: what failed may be passing
BACKOFF = 0.5
#: seconds that the loop waits for workers before it looks after signals and hung units
TICK = 0.2
#: seconds without any worker after which the user is told what the run waits for
PATIENCE = 60.0


def execute(
    stage: Stage,
    output: str,
    options: RunOptions,
    plan: Plan,
    summary: Summary,
    progress: Progress,
    lock: Lock,
) -> None:
    """Runs the units of a plan and notes in `summary` what happened.

    Raises:
        ConfigError: a worker says that the configuration is impossible.
        RunError: the run cannot go on.
    """
    # twice: Ray's C++ part sets handlers of its own when it starts, which takes a while
    beating = pulse.beating(
        output, stage.name, units=len(plan.units), first=plan.done, task=options.task or ""
    )
    with stop_signals() as early, beating as beat, ray_session(options.ray), stop_signals() as stop:
        stop += early
        if early:
            # what Ray's C++ part does at SIGTERM has the process aborted unless it is gone within 3 seconds
            signal.alarm(0)
        Execution(stage, output, options, plan, summary, progress, stop, lock, beat).run()


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


class Execution:
    """The loop, and what it keeps count of."""

    def __init__(
        self,
        stage: Stage,
        output: str,
        options: RunOptions,
        plan: Plan,
        summary: Summary,
        progress: Progress,
        stop: list[int],
        lock: Lock,
        beat: Beat,
    ) -> None:
        self.stage, self.output, self.options, self.lock = stage, output, options, lock
        self.beat = beat
        self.plan, self.summary, self.progress, self.stop = plan, summary, progress, stop
        self.waiting: deque[tuple[float, Unit]] = deque((0.0, unit) for unit in plan.todo)
        self.attempts: dict[int, int] = {}
        self.quarantined = manifest.list_quarantined(output)
        self.pool = Pool(stage, output)
        self.most = 0
        self.failed_starts = 0
        self.last_worker = time.monotonic()
        self.stop_deadline = float("inf")

    def run(self) -> None:
        self.most = self.options.workers or self.pool.limit()
        try:
            while self.pool.busy or (self.waiting and not self.stop):
                self._hand_out()
                for ended in self.pool.wait(TICK):
                    self._take(ended)
                if self.options.unit_timeout:
                    for ended in self.pool.end_hung(self.options.unit_timeout):
                        self._take(ended)
                if self.stop and self._stop_now():
                    break
                self._say_what_is_awaited()
                self.lock.renew()
                self.progress.update(self.plan.done + self.summary.done, self.summary.detail())
                self._tell()
            self.summary.stopped = bool(self.stop) and bool(self.waiting or self.pool.busy)
        finally:
            self.pool.close(patiently=not self._insisted)

    def _tell(self) -> None:
        self.beat.tell(
            done=self.summary.done,
            running=len(self.pool.busy),
            failed=sum(self.attempts.values()),
            quarantined=len(self.summary.failed),
        )

    def _hand_out(self) -> None:
        if self.stop:
            return
        while self.pool.idle and self.waiting and self.waiting[0][0] <= time.monotonic():
            _, unit = self.waiting.popleft()
            if unit.number in self.attempts:
                self._look_again(unit)
            self.pool.hand(unit, self.plan.stale.get(unit.number, []))
        while self.pool.size < self.most and self.pool.starting + len(self.pool.idle) < len(self.waiting):
            self.pool.add()

    def _take(self, ended: Ended) -> None:
        if isinstance(ended.error, ConfigError):
            raise ConfigError(str(ended.error)) from ended.error
        if ended.memory:
            self.most = max(1, self.pool.size)
            log.warning("%s: out of memory; going on with %d workers", self.stage.name, self.most)
        if ended.unit is None:
            self._note_start(ended)
        elif ended.error is not None:
            self._note_failure(ended.unit, ended.error)
        else:
            assert ended.result is not None
            self.summary.done += 1
            self.summary.counts.add(Counts.from_json(ended.result["counts"]))
            if ended.unit.number in self.quarantined:
                self._lift_quarantine(ended.unit)

    def _note_start(self, ended: Ended) -> None:
        """A worker that cannot start is no unit's fault; one machine of many may be broken."""
        if ended.error is None:
            self.failed_starts = 0
            return
        self.failed_starts += 1
        message = f"{type(ended.error).__name__}: {ended.error}"
        log.warning("%s: a worker could not start: %s", self.stage.name, message)
        if self.failed_starts < ATTEMPTS:
            return
        living = len(self.pool.idle) + len(self.pool.busy)
        if not living:
            raise RunError(
                f"stage {self.stage.name}: no worker starts, {self.failed_starts} have failed: {message}; "
                "mend that and run the same command again"
            ) from ended.error
        self.most = living

    def _note_failure(self, unit: Unit, error: BaseException) -> None:
        count = self.attempts[unit.number] = self.attempts.get(unit.number, 0) + 1
        message = f"{type(error).__name__}: {error}".strip()
        name = f"{self.stage.name} {shard_name(unit.number)}"
        log.warning("%s attempt %d of %d: %s", name, count, ATTEMPTS, message)
        if count < ATTEMPTS:
            self.waiting.append((time.monotonic() + BACKOFF * 2 ** (count - 1), unit))
            return
        if isinstance(error, StorageFullError):
            raise StorageFullError(str(error)) from error
        self.summary.failed[unit.number] = message
        record = {"unit": unit.number, "source": dict(unit.source), "attempts": count, "error": message}
        self._write_books(
            manifest.quarantine_url(self.output, unit.number), json.dumps(record, indent=1).encode()
        )

    def _look_again(self, unit: Unit) -> None:
        """A worker that died while it replaced a unit may have left that half done. It is finished here, now
        that the worker is gone for good, and what the next attempt replaces is what stands then."""
        if self.plan.stale.get(unit.number):
            commit.roll_forward(self.output)
            standing = manifest.list_unit(self.output, unit.number)
            self.plan.stale[unit.number] = [done.url for done in standing]

    def _write_books(self, url: str, data: bytes) -> None:
        try:
            storage.write_bytes(url, data)
        except OSError as error:
            raise RunError(
                f"{url} cannot be written ({type(error).__name__}: {error}); what is committed stays, run "
                "the same command again when the storage is well"
            ) from error

    def _lift_quarantine(self, unit: Unit) -> None:
        url = manifest.quarantine_url(self.output, unit.number)
        if storage.exists(url):  # another run may have lifted it meanwhile
            storage.remove(url, missing_ok=True)

    def _say_what_is_awaited(self) -> None:
        now = time.monotonic()
        if self.pool.busy or self.pool.idle or not self.waiting:
            self.last_worker = now
        elif now - self.last_worker > PATIENCE:
            self.last_worker = now
            need = self.stage.resources
            log.warning(
                "%s: no worker for %d s; each waits for %g CPUs and %g GPUs, or is still starting",
                *(self.stage.name, PATIENCE, need.cpus, need.gpus),
            )

    @property
    def _insisted(self) -> bool:
        """Whether the same signal came twice. A batch job may get each of two once: SIGUSR1 since its time
        runs out, SIGTERM when it has."""
        return len(set(self.stop)) < len(self.stop)

    def _stop_now(self) -> bool:
        """After a signal: units under way may finish within the grace time; the same one again ends them."""
        now = time.monotonic()
        if self.stop_deadline == float("inf"):
            self.stop_deadline = now + self.options.grace
            log.warning("stopping: %d units may finish within %g s", len(self.pool.busy), self.options.grace)
        return now > self.stop_deadline or self._insisted
