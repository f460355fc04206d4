"""A job that is to be submitted, as sbatch gets it: its words, and the variables that it is started with."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.chain import Step
from jobs.slurm import books

#: variables of sbatch that would undo what is submitted or what the batch scripts say, the secrets that they
#: keep out above all
UNDOING = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "DEBUG", "ERROR", "EXPORT", "EXPORT_FILE", "GET_USER_ENV", "INPUT", "JOB_NAME"),
        *("NO_REQUEUE", "OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "TEST_ONLY", "WAIT"),
    )
)
#: of SLURM's variables in a job those that a job which it submits may have: how SLURM is reached
REACHING = frozenset(("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that is to be submitted.

    Attributes:
        key: stands for the job's id until there is one: `@crawl`, of an array's tasks `@crawl/tasks`.
        step: what it runs.
        tasks: jobs of the array; 0: no array.
        finishes: whether it ends the output of an array.
        after: ids or keys of the jobs that it waits for.
        script: the batch script.
        run: the run folder.
    """

    key: str
    step: Step
    tasks: int = 0
    finishes: bool = False
    after: tuple[str, ...] = ()
    script: Path
    run: Path

    @property
    def config(self) -> Path:
        """What it is given as --config."""
        return books.step_file(self.run, self.step.name)

    @property
    def text(self) -> str:
        """The content of that file."""
        return self.step.request.resolved

    def log(self, job: int | str = "") -> str:
        """Where it writes what it prints; of an array, where task `*` does."""
        number = f"{job}_*" if self.tasks else str(job)
        return str(self.run / books.LOGS / f"{self.step.name}-{number}.log")

    def command(self, ids: Mapping[str, int] | None = None) -> list[str]:
        """sbatch and its words.

        Args:
            ids: key -> id of the jobs submitted so far; without them keys stand where ids will.
        """
        name = f"pairmill.{self.step.name}" + (".finish" if self.finishes else "")
        number = "%A_%a" if self.tasks else "%j"
        # sbatch puts numbers in for %j and the like; a % of the path itself is written twice
        log = str(self.run).replace("%", "%%") + f"/{books.LOGS}/{self.step.name}-{number}.log"
        words = ["sbatch", "--parsable", f"--job-name={name}", f"--output={log}"]
        slurm = self.step.slurm
        if self.tasks:
            words.append(f"--array=0-{self.tasks - 1}" + (f"%{slurm.at_once}" if slurm.at_once else ""))
        if self.after:
            waits = ":".join(str((ids or {}).get(name, name)) for name in self.after)
            # a job whose dependency has failed would else wait for ever
            words += [f"--dependency=afterok:{waits}", "--kill-on-invalid-dep=yes"]
        if self.finishes and "nodes" in slurm.flags:
            slurm = replace(slurm, flags={**slurm.flags, "nodes": "1"})
        return [*words, *slurm.words, str(self.script), "--config", str(self.config)]

    def variables(self) -> dict[str, str]:
        """What the batch scripts take over from the environment of sbatch."""
        found = {"PAIRMILL_RUN_DIR": str(self.run), "PAIRMILL_STEP": self.step.name}
        if self.step.slurm.max_restarts is not None:
            found["PAIRMILL_MAX_RESTARTS"] = str(self.step.slurm.max_restarts)
        return found

    def environment(self) -> dict[str, str]:
        """What sbatch is started with: this process's variables, but those that would undo what is submitted,
        and those of a job that this process may be part of."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in UNDOING and (not name.startswith("SLURM_") or name in REACHING)
        }
        path = os.pathsep.join(filter(None, (sysconfig.get_path("scripts"), kept.get("PATH", ""))))
        return {**kept, "PATH": path, **self.variables()}
