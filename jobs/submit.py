"""Submits a chain to SLURM, a job a step.

    pairmill submit chain.yaml [--dry-run] [--from STEP | --only STEP]
    pairmill submit chain.yaml --set.root /data/run --crawl.image_size 256 --slurm.crawl.array 16

What is done, or waits or runs already, is not submitted again, so the same command goes on after a failure.
What SLURM is asked for stands in the chain's mapping `slurm:` (jobs/slurm/options.py); the books of the run
folder (jobs/slurm/books.py) say what was submitted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.chain import read_outline
from jobs.slurm import books, queue
from jobs.slurm.books import Submitted
from jobs.slurm.job import Job
from jobs.slurm.known import Known
from jobs.slurm.scripts import scripts_folder
from jobs.slurm.submission import Fate, plan_submission
from jobs.words import add_chain, ask
from pipeline.errors import ConfigError, RunError

#: seconds that sbatch gets to answer
PATIENCE = 120.0


def main(argv: Sequence[str]) -> int:
    """Submits, or says what would be submitted; returns 0.

    Raises:
        ConfigError: the chain or an option is wrong; nothing was submitted.
        RunError: SLURM refused a job, or does not answer; what was submitted before is in the books.
    """
    asked = ask(_parser(), argv)
    known = asked.known
    chosen = {step.name for step in asked.chosen}
    run = run_folder(known.chain, asked.variables, known.run_dir)
    scripts = scripts_folder(known.scripts)
    with contextlib.nullcontext() if known.dry_run else _alone(run):
        fates = plan_submission(
            asked.steps,
            chosen=chosen,
            run=run,
            scripts=scripts,
            known=_known(run, needed=not known.dry_run),
        )
        if known.dry_run:
            print(_described(fates))
        else:
            _submit_all(fates, run)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pairmill submit",
        allow_abbrev=False,
        description="Submit a chain to SLURM, a job a step. What is done, waits or runs stays out.",
        epilog="--STEP.option value changes an option of one step, --set.NAME value a variable of the file, "
        "--slurm.STEP.option value and --slurm.all.option value what SLURM is asked for.",
    )
    add_chain(parser, verb="submit")
    parser.add_argument(
        *("--dry-run", "--dry_run"),
        action="store_true",
        help="print the command lines of sbatch, and write nothing",
    )
    parser.add_argument(
        *("--run_dir", "--run-dir"), metavar="FOLDER", help="for logs and books (default: ROOT/slurm)"
    )
    parser.add_argument("--scripts", metavar="FOLDER", help="with the batch scripts (default: ours)")
    return parser


def run_folder(chain: str, variables: dict[str, str], given: str | None) -> Path:
    """The run folder of a chain; `given` wins over `{root}/slurm`.

    Raises:
        ConfigError: neither is a folder that SLURM could write logs to.
    """
    if given is not None and not given:
        raise ConfigError("--run_dir is empty; give a folder, or leave it out")
    outline = read_outline(chain, variables=variables)
    return books.check_run_folder(Path(given) if given else books.default_run_folder(outline.root))


def _known(run: Path, *, needed: bool) -> Known:
    """What was submitted before, and what SLURM says of it.

    Raises:
        ConfigError: there is no SLURM, and it is needed.
    """
    if needed and (not queue.present() or shutil.which("sbatch") is None):
        raise ConfigError(
            "sbatch is not on the PATH: no SLURM on this machine. `pairmill run` runs the chain here, "
            "--dry-run shows what would be submitted"
        )
    submitted = books.read_submitted(run)
    if not submitted or not queue.present():
        return Known(submitted=submitted)
    try:
        return Known(submitted=submitted, states=queue.ask_submitted(books.times(submitted)))
    except queue.QueueError as error:
        if needed:
            raise
        print(f"# SLURM does not answer ({error}): taken as if no job of the chain waited or ran")
        return Known(submitted=submitted)


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Two at a time would submit everything twice; the lock goes with the process.

    Raises:
        ConfigError: another one is at work, or the folder cannot be made.
    """
    try:
        # what a step is given may hold keys of a storage
        (run / books.STEPS).mkdir(parents=True, exist_ok=True, mode=0o700)
        (run / books.LOGS).mkdir(exist_ok=True)
        stream = (run / ".submit").open("a")
    except OSError as error:
        raise ConfigError(f"run folder {run} cannot be used ({error}); give another --run_dir") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another `pairmill submit` is at work in {run}; wait for it") from error
        except OSError:  # a disk that knows no locks
            pass
        yield


def _described(fates: Sequence[Fate]) -> str:
    """For each step why it is submitted or not, and its jobs as lines for a shell."""
    lines = []
    for fate in fates:
        lines.append(f"# {fate.step.name}: {fate.why}")
        for job in fate.jobs:
            given = [f"{name}={value}" for name, value in job.variables().items()]
            lines.append(shlex.join(["env", *given, *job.command()]))
    if any(job.after for fate in fates for job in fate.jobs):
        lines.append("# @STEP stands for the id that the job of STEP is given")
    return "\n".join(lines)


def _submit_all(fates: Sequence[Fate], run: Path) -> None:
    """Submits in order and prints what was; a refusal ends it, and what stands then is printed too."""
    ids: dict[str, int] = {}
    queue.cancel([job for fate in fates for job in fate.doomed])
    try:
        for fate in fates:
            for job in fate.jobs:
                write_step(job.config, job.text)
                with _undisturbed():
                    ids[job.key] = _submit(job, ids)
                    books.note_submitted(run, _record(job, ids))
    finally:
        if ids or not any(fate.jobs for fate in fates):
            print(_table(fates, ids))
    if not ids:
        print("nothing to submit")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until a job that SLURM has taken stands in the books."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write_step(path: Path, text: str) -> None:
    """Writes what a step is given, whole and for its owner's eyes only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


def _submit(job: Job, ids: dict[str, int]) -> int:
    """Raises RunError with sbatch's words when it refuses."""
    name = job.step.name
    try:
        done = subprocess.run(
            job.command(ids), env=job.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"step {name}: no answer of sbatch within {PATIENCE:g} s; look with squeue whether job "
            f"pairmill.{name} is there, and cancel it before you submit again"
        ) from error
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number.isdigit():
        said = " ".join((done.stderr.strip() or done.stdout.strip() or "no word").split())
        raise RunError(
            f"step {name}: sbatch refused it: {said}. What was submitted before stays; mend that and submit "
            "again"
        )
    return int(number)


def _record(job: Job, ids: dict[str, int]) -> Submitted:
    return Submitted(
        step=job.step.name,
        verb=job.step.job,
        job=ids[job.key],
        tasks=job.tasks,
        finishes=job.finishes,
        after=tuple(_number(name, ids) for name in job.after),
        time=time.time(),
        digest=hashlib.sha256(job.text.encode()).hexdigest()[:16],
    )


def _number(name: str, ids: dict[str, int]) -> int:
    return ids[name] if name in ids else int(name)


def _table(fates: Sequence[Fate], ids: dict[str, int]) -> str:
    rows = [("step", "job", "waits for", "asks for", "log")]
    remarks: dict[int, str] = {}
    for fate in fates:
        submitted = [job for job in fate.jobs if job.key in ids]
        for job in submitted:
            waits = ", ".join(str(_number(name, ids)) for name in job.after) or "-"
            asks = " ".join(word.removeprefix("--") for word in _asked(job)) or "-"
            rows.append((fate.step.name, str(ids[job.key]), waits, asks, job.log(ids[job.key])))
        if not submitted:
            why = "not submitted" if fate.jobs else fate.why
            remarks[len(rows)] = why
            rows.append((fate.step.name, ", ".join(map(str, fate.active)) or "-", "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for number, row in enumerate(rows):
        start = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True))
        if number in remarks:
            start = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
            lines.append(f"{start}  {remarks[number]}")
        else:
            lines.append(f"{start}  {row[4]}".rstrip())
    return "\n".join(lines)


def _asked(job: Job) -> list[str]:
    """What the table says of a job's size: its array, and the options that the chain names."""
    if job.finishes:
        return ["finishes the folder"]
    shared = [f"array={job.tasks}"] if job.tasks else []
    return [*shared, *job.step.slurm.words]
