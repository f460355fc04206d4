"""How stages are run: options of the runner, kept apart so that the command line starts without Ray."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.settings import operational


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
    ray: RayOptions = operational(factory=RayOptions)

    def parsed_task(self) -> tuple[int, int] | None:
        if not self.task:
            return None
        first, _, second = self.task.partition("/")
        if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
            raise ConfigError(f"task {self.task!r} must be i/n with 0 <= i < n, such as 0/4")
        return int(first), int(second)
