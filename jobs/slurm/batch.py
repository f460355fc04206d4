"""A job: what every batch script of `slurm/` ends in, `pairmill batch VERB --config x.yaml --option value`.

It reads the options as the command itself does, and looks what is left to do, so that a wrong option and a
finished step cost no start of Ray; starts what the command needs over the nodes of the job; passes on that
the job is to stop; writes down how it ended; and has the job requeued where it is to go on
(`jobs.slurm.again`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from jobs import cli, remaining, train
from jobs.chain import Step
from jobs.slurm import again, books, queue, steps, training
from jobs.slurm.allocation import Allocation, read_allocation
from jobs.slurm.ray_nodes import RayNodes
from jobs.verb import Request, Verb
from models.training.checkpoint import last_complete
from models.training.stopping import STOP, die_with_parent
from pipeline import manifest
from pipeline.errors import ConfigError, RunError
from pipeline.summary import EXIT_CONFIG, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED

#: seconds between two looks at the command and the signals
TICK = 0.2
#: a controller that is just being restarted answers a little later
REQUEUE_TRIED, REQUEUE_PAUSE = 4, 15.0
#: seconds that a command which was told to stop has without its Ray
LAST = 5.0


@dataclass
class Told:
    """The signals that this job was sent, in order."""

    numbers: list[int] = field(default_factory=list)

    @property
    def to_stop(self) -> bool:
        return bool(self.numbers)

    @property
    def warned(self) -> bool:
        """That time runs out, or that others need the nodes."""
        return signal.SIGUSR1 in self.numbers

    @property
    def ended(self) -> bool:
        """Others than USR1: SLURM ends the job, or somebody asks it to end."""
        return any(number != signal.SIGUSR1 for number in self.numbers)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the job is to do: a command with its options, parsed and as they came."""

    name: str
    arguments: Sequence[str]
    verb: Verb
    config: Any
    request: Request
    allocation: Allocation
    told: Told

    @property
    def attempt(self) -> Path:
        """Folder for what the processes of this attempt tell each other."""
        kind = "ray" if self.verb.stage else "torch"
        return self.allocation.folder / f"{kind}-{self.allocation.restart}"

    @property
    def step(self) -> Step:
        """As a chain of this step alone would have it."""
        return Step(name=self.name, job=self.name, verb=self.verb, config=self.config, request=self.request)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code, 75 also where the job was requeued.

    Raises:
        ConfigError: not inside a job, an unknown command, a wrong option.
    """
    with _listening() as told:
        began = time.time()
        allocation = read_allocation()
        if not allocation.restart:
            books.forget_ends(allocation.run, allocation.name)
        cap = again.parse_cap(os.environ.get("PAIRMILL_MAX_RESTARTS", ""))
        name, arguments = argv[0], list(argv[1:])
        _say(name, f"began: {describe(allocation)}")
        try:
            code, mark, why = _work(name, arguments, allocation, told)
        except ConfigError as error:
            _note(allocation, name, EXIT_CONFIG, requeued=False, why=str(error), mark="", began=began)
            _say(name, f"ended after {time.time() - began:.0f} s: bad configuration, exit code {EXIT_CONFIG}")
            raise
        verdict = again.judge(
            code, told=told.to_stop, cancelled=_is_cancelled(allocation, told), restart=allocation.restart,
            cap=cap, mark=mark, before=books.read_ends(allocation.run, allocation.name),
            seconds=time.time() - began,
        )  # fmt: skip
        why = f"{verdict.why} ({why})" if why else verdict.why
        _note(allocation, name, code, requeued=verdict.requeue, why=why, mark=mark, began=began)
        follows = "; requeued" if verdict.requeue else f", exit code {verdict.code}"
        _say(name, f"ended after {time.time() - began:.0f} s: {why}{follows}")
        if verdict.requeue and not _requeue(allocation):
            why = f"{why}; SLURM did not requeue it: submit it again"
            _note(allocation, name, code, requeued=False, why=why, mark=mark, began=began)
        # had it been refused, the job has failed, and so has whatever waits for it
        return EXIT_STOPPED if verdict.requeue else verdict.code


def describe(allocation: Allocation) -> str:
    """What SLURM gave this attempt, in words for the log."""
    memory = f"{allocation.memory / (1 << 30):.3g} GiB" if allocation.memory else "unlimited memory"
    share = f"{allocation.cpus} CPUs, {allocation.gpus} GPUs, {memory}"
    where = os.environ.get("SLURM_JOB_NODELIST", "")
    nodes = f"{allocation.nodes} node{'s' if allocation.nodes > 1 else ''}"
    return f"job {allocation.name}, attempt {allocation.restart + 1}, {nodes} ({where}), each {share}"


def _say(name: str, what: str) -> None:
    """A line for the job's log, which the attempts of a job share."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{now} batch {name}: {what}", file=sys.stderr, flush=True)


@contextmanager
def _listening() -> Iterator[Told]:
    told = Told()

    def note(number: int, _frame: FrameType | None) -> None:
        told.numbers.append(number)

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    yield told


def _is_cancelled(allocation: Allocation, told: Told) -> bool:
    """Whether the job is ended for another reason than its time: only SLURM knows."""
    if not told.ended:
        return False
    try:
        # not the accounts as well: SLURM does not wait long for who is to end
        states = queue.ask_squeue([allocation.job]).values()
    except queue.QueueError:
        return not told.warned
    return all(state.reason != "TimeLimit" for state in states)


def _work(name: str, arguments: list[str], allocation: Allocation, told: Told) -> tuple[int, str, str]:
    """(exit code, how far the work is, what went wrong with the job itself)."""
    if name not in cli.VERBS or name in cli.POSITIONAL:
        known = ", ".join(v for v in cli.VERBS if v not in cli.POSITIONAL)
        raise ConfigError(f"no batch job runs {name!r}; known: {known}")
    if allocation.task:
        arguments += [f"--task={allocation.task[0]}/{allocation.task[1]}"]
    verb, config, request = cli.parse_verb(name, arguments)
    work = Work(
        name=name, arguments=arguments, verb=verb, config=config, request=request, allocation=allocation,
        told=told,
    )  # fmt: skip
    try:
        if name == "train":
            code, why = _train(work)
        else:
            code, why = _run_stage(work) if verb.stage else _attend(work, _start(work)), ""
    except RunError as error:
        return (EXIT_STOPPED if told.to_stop else again.CRASHED), _mark(work), str(error)
    return code, _mark(work), why


def _run_stage(work: Work) -> int:
    """On Ray over all nodes of the job, or where its options say that a Ray is running.

    Raises:
        RunError: Ray does not start, or is lost.
    """
    if work.request.options.ray.address or _nothing_left(work):
        return _attend(work, _start(work))
    told = work.told
    with RayNodes(work.allocation, work.attempt, stopping=lambda: told.to_stop) as nodes:
        driver = _start(work, f"--ray.address={nodes.address}", environment=nodes.environment)
        code = _attend(work, driver, lost=lambda: nodes.is_lost)
        if code == EXIT_FAILED and nodes.await_loss():
            raise RunError("Ray was lost on a node of the job")
        return code


def _nothing_left(work: Work) -> bool:
    """Whether the command will start nothing: its output stands, or it will refuse to touch it."""
    if getattr(work.config, "dry_run", False):
        return True
    try:
        found = remaining.look(work.step)
    except ConfigError:
        return True
    return found.done and not found.quarantined


def _start(work: Work, *more: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [steps.command(), work.name, *work.arguments, *more], env={**os.environ, **(environment or {})},
        # what is left of a job whose batch script was killed must not meet its next attempt
        preexec_fn=partial(die_with_parent, os.getpid()),
    )  # fmt: skip


def _attend(work: Work, process: subprocess.Popen[bytes], *, lost: Any = lambda: False) -> int:
    """Waits for the command; tells it once that it is to stop. Its exit code, or CRASHED where it has none
    of the four.

    Raises:
        RunError: `lost` became true; the command is ended then.
    """
    passed_on = False
    while process.poll() is None:
        if work.told.to_stop and not passed_on:
            passed_on = True
            process.send_signal(signal.SIGUSR1)
        if lost():
            _end_lost(process, seconds=LAST if passed_on else 0.0)
            raise RunError("Ray was lost on a node of the job")
        time.sleep(TICK)
    if passed_on and process.returncode == -signal.SIGUSR1:
        return EXIT_STOPPED  # a command that saves nothing on its way, such as an evaluation
    known = (0, EXIT_FAILED, EXIT_CONFIG, EXIT_STOPPED)
    return process.returncode if process.returncode in known else again.CRASHED


def _end_lost(process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Ends a command that has lost its Ray: it would wait for it for minutes."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _train(work: Work) -> tuple[int, str]:
    """By torchrun on all nodes, which is told to stop by a file, since signals would end torchrun and srun.
    Returns the exit code and what the processes told.

    Raises:
        ConfigError: as `pairmill train`, and the processes cannot be spread over the nodes.
    """
    config, told = work.config, work.told
    if train.is_done(config, overwrite=work.request.options.overwrite):
        return EXIT_DONE, f"{config.output} is finished already"
    if told.to_stop:
        return EXIT_STOPPED, "nothing was begun"
    step = training.start(config, work.arguments, work.allocation, work.attempt)
    stop = Path(config.output) / STOP
    try:
        while step.poll() is None:
            # again and again: a run that is about to start takes away what an earlier one was told
            if told.to_stop and stop.parent.is_dir():
                stop.touch()
            time.sleep(TICK)
    finally:
        code = steps.end(step)
        if told.to_stop:
            stop.unlink(missing_ok=True)
    return training.outcome(work.attempt, config, work.allocation, ended=code)


def _mark(work: Work) -> str:
    """How far the work is: the last checkpoint, or how many units stand."""
    if work.name == "train":
        found = last_complete(Path(work.config.output))
        return found.name if found else ""
    if work.verb.stage:
        folders = [folder for _, folder in remaining.stages_of(work.step)]
        return f"{sum(len(manifest.list_done(folder)) for folder in folders)} units"
    return ""


def _note(
    allocation: Allocation, verb: str, code: int, *, requeued: bool, why: str, mark: str, began: float
) -> None:
    end = books.End(
        job=allocation.name, restart=allocation.restart, verb=verb, code=code, requeued=requeued, why=why,
        mark=mark, began=began, ended=time.time(), node=os.environ.get("SLURMD_NODENAME", ""),
    )  # fmt: skip
    books.note_end(allocation.run, end)


def _requeue(allocation: Allocation) -> bool:
    """Puts this job back into the queue; SLURM then ends this process. Whether SLURM did it."""
    for left in reversed(range(REQUEUE_TRIED)):
        done = subprocess.run(
            ["scontrol", "requeue", str(allocation.job)], capture_output=True, text=True, check=False
        )
        if not done.returncode:
            return True
        _say("job", f"SLURM did not requeue {allocation.job}: {done.stderr.strip()}")
        if left:
            time.sleep(REQUEUE_PAUSE)
    return False
