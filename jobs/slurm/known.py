"""The jobs of a chain that were submitted before: which of them wait or run, and which never will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from jobs.slurm.books import Submitted
from jobs.slurm.queue import ENDED, JobState

#: SLURM's reason of a job that waits for one that has failed
NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the books and SLURM say of jobs submitted before: `submitted` in order, `states` by job."""

    submitted: Sequence[Submitted] = ()
    states: Mapping[str, JobState] = field(default_factory=dict)

    def of(self, step: str) -> list[Submitted]:
        return [job for job in self.submitted if job.step == step]

    def active(self, step: str) -> list[Submitted]:
        """The jobs of a step that wait or run, and may come to their end."""
        return [job for job in self.of(step) if self.state(job.job) and not self.is_doomed(job)]

    def is_doomed(self, job: Submitted) -> bool:
        """Whether a job still waits, but for one that failed: SLURM takes it out within a minute or so."""
        if self.state(job.job) != "PENDING":
            return False
        reasons = {state.reason for state in self._states_of(job.job)}
        return NEVER in reasons or any(self._fails(number) for number in job.after)

    def _fails(self, number: int) -> bool:
        if any(s.state in ENDED and s.state != "COMPLETED" for s in self._states_of(number)):
            return True
        return any(self.is_doomed(job) for job in self.submitted if job.job == number)

    def _states_of(self, job: int) -> list[JobState]:
        return self._by_job.get(str(job), [])

    def state(self, job: int) -> str:
        """SLURM's word for a job that waits or runs, of an array for its furthest task; else empty."""
        words = {state.state for state in self._states_of(job) if state.active}
        return "RUNNING" if "RUNNING" in words else min(words, default="")

    @cached_property
    def _by_job(self) -> dict[str, list[JobState]]:
        """The states of each job, of an array those of its tasks."""
        found: dict[str, list[JobState]] = {}
        for name, state in self.states.items():
            found.setdefault(name.partition("_")[0], []).append(state)
        return found

    def steps_before(self, job: int) -> set[str]:
        """Names of the steps whose jobs a job waits for, directly or not."""
        by_id = {known.job: known for known in self.submitted}
        found: set[str] = set()
        waiting = [job]
        while waiting:
            known = by_id.pop(waiting.pop(), None)
            if known is not None:
                found.add(known.step)
                waiting += known.after
        return found
