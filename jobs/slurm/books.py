"""The run folder: which jobs a chain was submitted as, and how each attempt at a job ended.

    RUN/submitted.jsonl             a line a job, by `pairmill submit`
    RUN/steps/crawl.yaml            what the jobs of step `crawl` are given as --config; 0600
    RUN/logs/crawl-17.log           what job 17 printed, all its attempts
    RUN/jobs/17/end-0.json          how attempt 0 of job 17 ended (a job of an array: 17_3)
    RUN/jobs/17/ray-0/  torch-0/    what the processes of an attempt tell each other

A SLURM without an accounting database forgets a job within minutes; these files do not. The folder lies on a
disk that all nodes see. Every file but the first is written whole, under another name, then renamed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import storage
from pipeline.errors import ConfigError

SUBMITTED, STEPS, LOGS, JOBS = "submitted.jsonl", "steps", "logs", "jobs"
#: names that may stand in file names, job names and commands as they are
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(name: str, *, what: str) -> str:
    """Returns the name.

    Raises:
        ConfigError: it is not letters, digits, `_`, `.`, `-`, beginning with a letter or digit, at most 64.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r} must be letters, digits, `_`, `.` or `-`, at most 64 of them, and begin with "
            "a letter or digit"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """One job as it was submitted.

    Attributes:
        step: name of the step in the chain.
        verb: the command that it runs.
        job: SLURM's id, of an array as a whole.
        tasks: jobs of the array; 0: no array.
        finishes: whether it is the job that ends an array's output (`--task` leaves that out).
        after: ids of the jobs it waits for.
        time: seconds since 1970; 0 where nobody knows.
        digest: of the configuration that it was given.
    """

    step: str
    verb: str
    job: int
    tasks: int = 0
    finishes: bool = False
    after: Sequence[int] = ()
    time: float = 0.0
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class End:
    """How one attempt at a job ended.

    Attributes:
        job: `17`, or `17_3` of an array.
        restart: 0 for the first attempt.
        verb: the command.
        code: exit code of the command (0, 1, 2, 75), or `again.CRASHED` where it came to none.
        requeued: whether another attempt follows.
        why: in words, for people.
        mark: how far the work was: what did not change since a crash will crash again.
        began: seconds since 1970.
        ended: likewise.
        node: of the batch script.
    """

    job: str
    restart: int
    verb: str
    code: int
    requeued: bool
    why: str
    mark: str
    began: float
    ended: float
    node: str


def default_run_folder(root: str) -> Path:
    """`{root}/slurm`.

    Raises:
        ConfigError: the root is on an object store.
    """
    try:
        if storage.is_local(root):
            return storage.local_path(root) / "slurm"
    except (ValueError, ImportError):  # a protocol that nobody knows
        pass
    raise ConfigError(f"root {root!r} is no folder of this machine; say where logs go: --run_dir FOLDER")


def check_run_folder(run: Path) -> Path:
    """The run folder as an absolute path.

    Raises:
        ConfigError: SLURM could not write logs there.
    """
    run = run.absolute()
    wrong = re.search(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029]", str(run))
    if wrong:
        raise ConfigError(
            f"run folder {str(run)!r} has {wrong[0]!r} in it, which SLURM does not take in the path of a "
            "log; give another --run_dir"
        )
    return run


def step_file(run: Path, step: str) -> Path:
    return run / STEPS / f"{step}.yaml"


def note_submitted(run: Path, job: Submitted) -> None:
    """Appends a line; it is on the disk when this returns, since the job is in SLURM's hands by then."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / SUBMITTED).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(job)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_submitted(run: Path) -> list[Submitted]:
    """All jobs ever submitted, in order; a line that a crash has cut off is left out, and an id that a SLURM
    which was set up anew has given again stands for the last job alone."""
    path = run / SUBMITTED
    found: dict[int, Submitted] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        job = Submitted(**{**values, "after": tuple(values["after"])})
        found.pop(job.job, None)
        found[job.job] = job
    return list(found.values())


def times(submitted: Sequence[Submitted]) -> dict[int, float]:
    """When each job was submitted, by its id."""
    return {job.job: job.time for job in submitted}


def job_folder(run: Path, job: str) -> Path:
    return run / JOBS / job


def note_end(run: Path, end: End) -> None:
    path = job_folder(run, end.job) / f"end-{end.restart}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(str(path), (json.dumps(asdict(end), indent=1) + "\n").encode())


def forget_ends(run: Path, job: str) -> None:
    """Before the first attempt at a job: what stands there is of an older one with its id."""
    for path in _ends(run, job):
        path.unlink(missing_ok=True)


def read_ends(run: Path, job: str) -> list[End]:
    """How the attempts at a job ended, the first one first; those that were killed left nothing."""
    return sorted((End(**json.loads(p.read_text())) for p in _ends(run, job)), key=lambda e: e.restart)


def _ends(run: Path, job: str) -> Iterator[Path]:
    return job_folder(run, job).glob("end-*.json")
