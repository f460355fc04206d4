"""A small crawl as a user submits it, from a folder with an awkward name: `sbatch slurm/crawl.sbatch ...`.

Its web answers from within the test, which so can make it slow, and count what was asked for how often.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from aiohttp import web

from jobs.slurm import books
from jobs.slurm.steps import command
from pipeline import manifest
from tests.pipeline.crawl_server import Site
from tests.prove.checks import checksums, leftovers
from tests.slurm.cluster import ENDED, Cluster

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm"
BIN = sysconfig.get_path("scripts")
UNITS, PICTURES = 8, 6
#: for shells, globs, squeue's formats
AWKWARD = 'a user\'s "own" $(touch injected) %j folder'


class SlowSite(Site):
    """delay: seconds before every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.delay = 0.0

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/picture"):
            await asyncio.sleep(self.delay)
        return await super()._answer(request)

    def asked_again(self) -> dict[str, int]:
        """Pictures that were asked for more than once."""
        return {path: n for path, n in self.hits.items() if path.startswith("/picture") and n > 1}


@dataclass
class Crawl:
    """The files of a crawl; `standing` are the units that were seen, with the time of their manifests."""

    folder: Path
    site: SlowSite
    standing: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        urls = [self.site.url(f"/picture/{n}.jpg") for n in range(UNITS * PICTURES)]
        lines = [json.dumps({"url": url, "caption": f"thing {n}"}) for n, url in enumerate(urls)]
        (self.folder / "list.jsonl").write_text("\n".join(lines) + "\n")
        fetch = {
            "allow_private": [self.site.name],
            "max_per_host": 2,
            "total_timeout": 60.0,
            "read_timeout": 60.0,
        }
        options = {
            "input": str(self.folder / "list.jsonl"), "output": str(self.output), "image_size": 64,
            "shard_size": PICTURES, "fetch": fetch,
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(options))

    @property
    def config(self) -> Path:
        return self.folder / "my crawl's.yaml"

    @property
    def output(self) -> Path:
        return self.folder / "out put"

    @property
    def run(self) -> Path:
        """Where plain jobs keep their books."""
        return self.folder / "pairmill-jobs"

    def here(self, **variables: str) -> list[str]:
        """The same without SLURM, to its end."""
        words = [command(), "crawl", f"--config={self.config}"]
        subprocess.run(words, env={**os.environ, **variables}, check=True, timeout=120)
        return words

    def done(self) -> int:
        return len(manifest.list_done(str(self.output))) if self.output.exists() else 0

    def note(self) -> None:
        """Remembers which units stand."""
        for path in (self.output / "_pairmill" / "manifests").iterdir():
            self.standing[path.name] = path.stat().st_mtime_ns

    def changed(self) -> list[str]:
        """Units that stood and are not as they were."""
        folder = self.output / "_pairmill" / "manifests"
        return [
            n
            for n, t in self.standing.items()
            if not (folder / n).exists() or (folder / n).stat().st_mtime_ns != t
        ]

    def check(self, reference: Crawl) -> None:
        """Everything is there, as it became in peace, and nothing else."""
        assert self.done() == UNITS
        assert checksums(str(self.output)) == checksums(str(reference.output))
        assert leftovers(str(self.output)) == []
        assert self.changed() == []


@dataclass(frozen=True)
class Job:
    """A submitted job of a plain script."""

    slurm: Cluster
    id: int
    folder: Path
    name: str

    def log(self) -> str:
        path = self.folder / f"slurm-{self.name}.out"
        return path.read_text() if path.exists() else ""

    def end(self, restart: int = 0) -> books.End:
        found = {e.restart: e for e in books.read_ends(self.folder / "pairmill-jobs", self.name)}
        assert restart in found, f"job {self.name}: no end of attempt {restart}\n{self.log()}"
        return found[restart]

    def wait(self, *states: str, seconds: float = 150) -> dict[str, str]:
        try:
            return self.slurm.wait(self.id, seconds=seconds, states=states)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from error

    def until(self, found: Callable[[], object], what: str, seconds: float = 120) -> None:
        try:
            self.slurm.until(found, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from error

    def meanwhile(self, found: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Waits for something that is to come before the job has ended."""

        def came() -> object:
            over = self.slurm.state(self.id) in ENDED
            answer = found()
            assert answer or not over, f"{what}: not before the job's end"
            return answer

        self.until(came, what, seconds)

    def under_way(self, crawl: Crawl, *, units: int = 2) -> None:
        """Waits until some units stand, with more to come, and remembers them."""
        self.meanwhile(lambda: crawl.done() >= units, f"{units} units")
        crawl.note()
        assert len(crawl.standing) < UNITS

    def await_requeue(self, *, seconds: float = 120) -> None:
        """Until it waits in the queue for its next attempt; that may then begin."""
        self.wait("PENDING", seconds=seconds)
        self.until(lambda: not processes(self.id), "the attempt's processes to end", 30)
        self.slurm.start_now(self.id)


def submit(
    slurm: Cluster,
    folder: Path,
    *options: str,
    verb: str = "crawl",
    arguments: Sequence[str] = (),
    scripts: Path = SCRIPTS,
    **variables: str,
) -> Job:
    """`cd FOLDER; sbatch OPTIONS SCRIPTS/VERB.sbatch ARGUMENTS`, with a secret in the shell that submits."""
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "MY_SECRET": SECRET, **variables}
    given = ["--cpus-per-task=1", "--mem=2G", "--time=10", *options]
    before = Path.cwd()
    os.chdir(folder)  # a job's books lie where it was submitted
    try:
        number = slurm.submit(*given, str(scripts / f"{verb}.sbatch"), *arguments, environment=environment)
    finally:
        os.chdir(before)
    return Job(slurm, number, folder, str(number))


SECRET = "hush-4711"


def processes(job: int, *, titled: str = "") -> dict[int, dict[str, str]]:
    """All processes on this machine that a job has started, and their environment: SLURM's variables are
    passed on to all of them."""
    found = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            words = (place / "environ").read_bytes().decode(errors="replace").split("\0")
            title = (place / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        values = dict(word.split("=", 1) for word in words if "=" in word)
        # n1, n2: not the job of another SLURM on this machine
        mine = values.get("SLURM_CONF") == os.environ["SLURM_CONF"]
        if mine and values.get("SLURM_JOB_ID") == str(job) and titled in title:
            found[int(place.name)] = {**values, "title": title}
    return found
