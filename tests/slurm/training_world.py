"""Trainings of seconds on the SLURM of the tests: ALBEF with teacher and queue, a process on each node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from jobs.slurm import books
from models.training.checkpoint import list_complete, step_of
from tests.models.test_training_run import TINY
from tests.models.toy_shards import write_shards
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "train.sbatch"
STEPS = 24
LOSSES = ("loss", "itc", "itm", "mlm", "grad_norm")
OPTIONS = {
    "recipe": "albef", "model": TINY, "vocab_size": 64, "batch_size": 8, "accumulation": 2, "steps": STEPS,
    "lr": 2e-3, "warmup_steps": 2, "processes": 2, "zero": {"stage": 2}, "checkpoint_every": 4,
    "keep_checkpoints": 2, "log_every": 1, "clip_grad": 0.5, "trackers": [],
    "augment": {"crop_scale": [0.6, 1.0]},
}  # fmt: skip


@dataclass
class Job:
    """A training that was submitted by plain `sbatch`, as a user would."""

    slurm: Cluster
    number: int
    run: Path
    books: Path

    def rows(self) -> list[dict[str, float]]:
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def await_step(self, step: int, seconds: float = 120) -> None:
        """Until the run has logged this step."""
        self.slurm.until(lambda: len(self.rows()) >= step, seconds, f"step {step} of {self.run}")

    def await_attempt(self, restart: int, seconds: float = 90) -> None:
        """Until SLURM has requeued the job so often and runs it again, without its two minutes of pause."""

        def requeued() -> bool:
            facts = self.slurm.facts(self.number)
            return int(facts["Restarts"]) >= restart and facts["JobState"] == "PENDING"

        self.slurm.until(requeued, seconds, f"job {self.number} to be requeued")
        self.slurm.start_now(self.number)
        self.slurm.wait(self.number, seconds=seconds, states=["RUNNING"])

    def end(self, restart: int, seconds: float = 120) -> books.End:
        """How an attempt ended, when it has."""

        def found() -> list[books.End]:
            return [e for e in books.read_ends(self.books, str(self.number)) if e.restart == restart]

        self.slurm.until(found, seconds, f"end of attempt {restart + 1} of job {self.number}")
        return found()[0]

    def finish(self, restart: int) -> None:
        """Waits until attempt `restart` has ended the job well."""
        facts = self.slurm.wait(self.number)
        assert facts["JobState"] == "COMPLETED", f"{facts}\n{self.log()}"
        assert facts["Restarts"] == str(restart)
        assert self.end(restart).code == 0

    def log(self) -> str:
        return (self.books / "logs" / f"{self.number}.log").read_text()

    def processes(self, *, ranks: bool = True) -> dict[int, int]:
        """Process number -> rank (-1: none) of what runs in the job; `ranks`: only what trains."""
        found = {}
        for place in Path("/proc").iterdir():
            try:
                given = (place / "environ").read_bytes().split(b"\0") if place.name.isdigit() else []
            except OSError:  # ended meanwhile
                continue
            told = dict(word.split(b"=", 1) for word in given if b"=" in word)
            if told.get(b"SLURM_JOB_ID") != str(self.number).encode():
                continue
            if f"{self.slurm.folder}/slurm.conf".encode() != told.get(b"SLURM_CONF"):
                continue
            if b"RANK" in told or not ranks:
                found[int(place.name)] = int(told.get(b"RANK", b"-1"))
        return found

    def kill_rank(self, rank: int) -> None:
        [pid] = [pid for pid, number in self.processes().items() if number == rank]
        os.kill(pid, signal.SIGKILL)

    def await_none(self, seconds: float = 60) -> None:
        """Until nothing of the job runs any more."""
        self.slurm.until(
            lambda: not self.processes(ranks=False), seconds, f"processes of {self.number} to end"
        )


@dataclass
class World:
    """Shards, and a run that nothing disturbed."""

    folder: Path
    shards: Path
    undisturbed: Path

    def submit(
        self,
        slurm: Cluster,
        name: str,
        *words: str,
        nodes: int = 2,
        script: Path = SCRIPT,
        environment: dict[str, str] | None = None,
    ) -> Job:
        """`sbatch slurm/train.sbatch --config NAME.yaml`; `words` are further options of the training,
        those before `--` of sbatch."""
        before, after = split(words)
        config = self.configure(name)
        run_folder = self.folder / "books"
        number = slurm.submit(
            f"--nodes={nodes}", "--cpus-per-task=1", f"--output={run_folder}/logs/%j.log", *before,
            str(script), "--config", str(config), *after,
            environment={"PATH": search_path(), "PAIRMILL_RUN_DIR": str(run_folder), **(environment or {})},
        )  # fmt: skip
        return Job(slurm, number, self.folder / "runs" / name, run_folder)

    def configure(self, name: str, **changes: object) -> Path:
        (self.folder / "books" / "logs").mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.yaml"
        if changes or not path.exists():
            run = self.folder / "runs" / name
            values = {**OPTIONS, "shards": str(self.shards), "output": str(run), **changes}
            path.write_text(yaml.safe_dump(values))
        return path

    def sabotaged(self, name: str, code: str) -> Path:
        """A copy of the scripts whose site.sh lets each Python of a job run this code when it starts."""
        folder = self.folder / name
        shutil.copytree(SCRIPT.parent, folder / "slurm")
        (folder / "sitecustomize.py").write_text(code)
        (folder / "slurm" / "site.sh").write_text(f"export PYTHONPATH='{folder}'\n")
        return folder / "slurm" / "train.sbatch"

    def assert_as_undisturbed(self, run: Path, *, weights: float = 1e-5) -> None:
        """Each step once and in order, every loss (to 1e-5) and all weights those of the undisturbed run."""
        ours, theirs = curve(run), curve(self.undisturbed)
        assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
        for a, b in zip(ours, theirs, strict=True):
            for name in LOSSES:
                assert a[name] == pytest.approx(b[name], abs=1e-5), f"{name} at step {a['step']}"
        assert abs(ours[0]["loss"] - ours[-1]["loss"]) > 0.1, (
            "nothing was learnt, so equal curves say nothing"
        )
        mine, other = (load_file(r / "model" / "model.safetensors") for r in (run, self.undisturbed))
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            assert (tensor - other[name]).abs().max() <= weights, name


def split(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return [], list(words)
    at = words.index("--")
    return list(words[:at]), list(words[at + 1 :])


def search_path() -> str:
    """With `pairmill` of this installation."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def curve(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run: Path) -> list[int]:
    return [step_of(path) for path in list_complete(run)]


def make_world(folder: Path) -> World:
    """The undisturbed run is one of this machine: `pairmill train --processes 2`."""
    from jobs.cli import main

    shards = write_shards(folder / "shards", shards=2, samples=24)
    world = World(folder, shards, folder / "runs" / "undisturbed")
    assert main(["train", "--config", str(world.configure("undisturbed"))]) == 0
    return world
