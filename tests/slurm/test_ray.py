"""Ray over the nodes of a job, on a real SLURM: where units are done, how it ends, what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from jobs.slurm import again, steps
from tests.slurm.cluster import Cluster
from tests.slurm.crawls import SCRIPTS, SECRET, Crawl, Job, processes, submit

pytestmark = [pytest.mark.prove, pytest.mark.timeout(400)]

#: what Ray, asked for nothing, listens on: a second one of the node would clash
USUAL_PORTS = {6379, 6380, 8076, 8265, 10001, 44217, 44227, 52365}

BYSTANDER = """
import ray, sys
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print("ready", flush=True)
sys.stdin.read()
assert ray.get(ray.remote(lambda: 7).remote()) == 7
print("well", flush=True)
"""

STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10)
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


@pytest.fixture(scope="module")
def bystander() -> Iterator[None]:
    """Another Ray of the same user on the same machine; it has to be well when all tests have ended."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", BYSTANDER], stdin=pipe, stdout=pipe, text=True, env=clean
    ) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        yield
        other.stdin.close()
        assert other.stdout.readline() == "well\n"


def folders_of(job: Job) -> set[Path]:
    """Ray's temporary folders of a job that is running."""
    found = set()
    for values in processes(job.id, titled="--temp-dir=").values():
        place = values["title"].partition("--temp-dir=")[2].split()[0]
        found.add(Path(place).parent)
    assert found
    return found


def check_nothing_stays(job: Job, folders: Collection[Path] = (), *, seconds: float = 20) -> None:
    """No process of the job, no temporary folder, no token."""
    job.until(lambda: not processes(job.id), "no process of the job", seconds)
    assert [f for f in folders if f.exists()] == []
    assert not list((job.folder / "pairmill-jobs").rglob("token"))


@pytest.mark.prove_ci
@pytest.mark.usefixtures("bystander")
def test_units_are_done_on_both_nodes(slurm: Cluster, crawl: Crawl, reference: Crawl) -> None:
    job = submit(slurm, crawl.folder, "--nodes=2", arguments=["--config", str(crawl.config.name)])
    busy: set[str] = set()

    def both() -> bool:
        busy.update(p["SLURMD_NODENAME"] for p in processes(job.id, titled="ray::Worker.run").values())
        return len(busy) == 2

    job.meanwhile(both, "units on both nodes")
    folders = folders_of(job)
    assert len(folders) == 2
    attempt = job.folder / "pairmill-jobs" / "jobs" / job.name / "ray-0"
    check_secrets(job, attempt)
    check_stranger(job, (attempt / "address").read_text())
    check_ports(job)
    crawl.site.delay = 0.0
    facts = job.wait()

    assert facts["ExitCode"] == "0:0", job.log()
    crawl.check(reference)
    assert crawl.site.asked_again() == {}
    check_nothing_stays(job, folders)
    assert SECRET not in job.log()
    assert f"began: job {job.name}, attempt 1, 2 nodes (n[1-2]), each 1 CPUs" in job.log()
    assert job.log().rstrip().endswith("done, exit code 0")


def check_secrets(job: Job, attempt: Path) -> None:
    """The token is in one file that only its owner reads; no variable of the shell that submitted is here."""
    token = (attempt / "token").read_text()
    assert len(token) == 64
    assert (attempt / "token").stat().st_mode & 0o777 == 0o600
    for values in processes(job.id).values():
        assert not [name for name, value in values.items() if token in value or SECRET in value]
    holding = [p for p in job.folder.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]
    assert holding == [attempt / "token"]


def check_stranger(job: Job, address: str) -> None:
    """A client of the same machine, without the token or with another one, is refused."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    for more in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        words = [sys.executable, "-c", STRANGER, address]
        done = subprocess.run(words, env={**clean, **more}, capture_output=True, text=True, timeout=90)
        assert done.returncode != 0, job.log()
        assert "auth" in (done.stdout + done.stderr).lower(), done.stdout + done.stderr


def check_ports(job: Job) -> None:
    """Nothing listens on a port that was not the system's to choose."""
    inodes = set()
    for pid in processes(job.id):
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                listening.add(int(words[1].rpartition(":")[2], 16))
    assert listening
    assert not listening & USUAL_PORTS


@pytest.mark.parametrize(
    "server", [pytest.param("raylet", marks=pytest.mark.prove_ci), "gcs_server", "node", "driver"]
)
@pytest.mark.usefixtures("bystander")
def test_a_killed_part_ends_the_attempt_and_the_next_one_does_the_rest(
    slurm: Cluster, crawl: Crawl, reference: Crawl, server: str
) -> None:
    job = submit(slurm, crawl.folder, "--nodes=2", arguments=[f"--config={crawl.config}"])
    job.under_way(crawl)
    folders = folders_of(job)
    title, node = {
        "raylet": ("raylet/raylet", "n2"),
        "gcs_server": ("gcs/gcs_server", "n1"),
        "node": ("batch node ray", "n2"),
        "driver": ("pairmill crawl", "n1"),
    }[server]
    victims = [p for p, v in processes(job.id, titled=title).items() if v["SLURMD_NODENAME"] == node]
    assert len([v for v in victims if Path(f"/proc/{v}").exists()]) >= 1
    began = time.monotonic()
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    job.until(lambda: slurm.state(job.id) != "RUNNING", "the attempt to end", 60)
    took = time.monotonic() - began
    print(f"SIGKILL of {server}: the attempt had ended after {took:.1f} s")
    crawl.site.delay = 0.0
    job.await_requeue()
    facts = job.wait()

    assert facts["ExitCode"] == "0:0", job.log()
    assert (job.end(0).code, job.end(0).requeued) == (again.CRASHED, True), job.log()
    assert (job.end(1).code, facts["Restarts"]) == (0, "1")
    crawl.check(reference)
    assert took < 45
    # what the node's own process was killed too early to take away, the next job on the node does
    check_nothing_stays(job, folders)


@pytest.mark.usefixtures("bystander")
def test_a_killed_batch_script_leaves_no_process(slurm: Cluster, crawl: Crawl, reference: Crawl) -> None:
    job = submit(slurm, crawl.folder, "--nodes=2", arguments=[f"--config={crawl.config}"])
    job.under_way(crawl)
    folders = folders_of(job)
    (batch,) = processes(job.id, titled="pairmill batch crawl")
    os.kill(batch, signal.SIGKILL)
    assert job.wait()["JobState"] == "FAILED"
    job.until(lambda: not processes(job.id), "no process to stay", 60)
    assert [f for f in folders if f.exists()] == []
    crawl.site.delay = 0.0
    assert submit(slurm, crawl.folder, arguments=[f"--config={crawl.config}"]).wait()["ExitCode"] == "0:0"
    crawl.check(reference)


@pytest.mark.usefixtures("bystander")
def test_a_cancelled_job_ends_cleanly_and_a_later_one_does_the_rest(
    slurm: Cluster, crawl: Crawl, reference: Crawl
) -> None:
    job = submit(slurm, crawl.folder, "--nodes=2", arguments=[f"--config={crawl.config}"])
    job.under_way(crawl)
    folders = folders_of(job)
    slurm.command("scancel", str(job.id))
    assert job.wait()["JobState"] == "CANCELLED"
    job.until(lambda: not processes(job.id), "all processes to end", 15)
    assert (job.end().code, job.end().requeued) == (75, False)
    check_nothing_stays(job, folders)
    crawl.note()
    crawl.site.delay = 0.0
    later = submit(slurm, crawl.folder, arguments=[f"--config={crawl.config}"])
    assert later.wait()["ExitCode"] == "0:0", later.log()
    crawl.check(reference)
    assert slurm.facts(job.id)["Restarts"] == "0"


@pytest.mark.prove_ci
@pytest.mark.usefixtures("bystander")
def test_where_ray_does_not_start_the_job_fails_and_its_dependents_are_cancelled(
    slurm: Cluster, crawl: Crawl, full_disk: Path, site_scripts: Path
) -> None:
    (site_scripts / "site.sh").write_text(f"export TMPDIR={full_disk}\n")
    job = submit(
        slurm, crawl.folder, "--hold", arguments=[f"--config={crawl.config}"], scripts=site_scripts,
        PAIRMILL_MAX_RESTARTS="0",
    )  # fmt: skip
    after = slurm.submit(
        f"--dependency=afterok:{job.id}", "--kill-on-invalid-dep=yes", "--output=/dev/null", "--wrap=true"
    )
    slurm.command("scontrol", "release", str(job.id))
    facts = job.wait()
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "1:0"), job.log()
    assert "Ray did not start on every node" in job.log()
    assert f"Ray did not start on n1 (0 MiB free in {full_disk})" in job.log()
    assert slurm.wait(after)["JobState"] == "CANCELLED"
    assert job.end().code == again.CRASHED
    assert crawl.done() == 0
    check_nothing_stays(job)


def test_a_node_that_never_joins_is_waited_for_no_longer_than_told(slurm: Cluster, crawl: Crawl) -> None:
    job = submit(
        slurm, crawl.folder, "--nodes=2", arguments=[f"--config={crawl.config}"],
        PAIRMILL_MAX_RESTARTS="0", PAIRMILL_START_SECONDS="25",
    )  # fmt: skip

    def second() -> list[int]:
        found = processes(job.id, titled="batch node ray")
        return [pid for pid, values in found.items() if values["SLURMD_NODENAME"] == "n2"]

    job.meanwhile(second, "the second node")
    (pid,) = second()
    os.kill(pid, signal.SIGSTOP)
    facts = job.wait()
    assert facts["ExitCode"] == "1:0", job.log()
    assert "Ray has not started within 25 s on 1 of 2 nodes (of n[1-2], counted from 0: 1)" in job.log()
    check_nothing_stays(job, seconds=60)


def test_where_pairmill_lives_in_a_container_its_wrapper_is_called_on_every_node(
    slurm: Cluster, crawl: Crawl, reference: Crawl, site_scripts: Path
) -> None:
    wrapper, inside = site_scripts / "bin" / "pairmill", site_scripts / "entered"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\necho "$SLURMD_NODENAME $1 $2 $3" >> "{inside}"\nexec {steps.command()} "$@"\n'
    )
    wrapper.chmod(0o755)
    (site_scripts / "site.sh").write_text(
        f'export PATH="{wrapper.parent}:$PATH" PAIRMILL_COMMAND="{wrapper}"\n'
    )
    crawl.site.delay = 0.0
    job = submit(
        slurm, crawl.folder, "--nodes=2", arguments=[f"--config={crawl.config}"], scripts=site_scripts
    )  # fmt: skip
    assert job.wait()["ExitCode"] == "0:0", job.log()
    crawl.check(reference)
    entered = sorted(line.partition(" --")[0] for line in inside.read_text().splitlines())
    assert entered == ["n1 batch crawl", "n1 batch node ray", "n2 batch node ray"]


@pytest.fixture
def site_scripts(tmp_path: Path) -> Path:
    """The scripts at another place, for a site.sh of one's own."""
    folder = tmp_path / "the site's scripts"
    folder.mkdir()
    for path in SCRIPTS.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def full_disk() -> Iterator[Path]:
    place = Path(f"/tmp/full-{os.getpid()}")
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        place.rmdir()
        pytest.skip("may not mount a tmpfs")
    (place / "filling").write_bytes(bytes(36 << 10))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
    place.rmdir()
