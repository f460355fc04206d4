"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd of one folder. Jobs of the
partition `urgent` displace those of `main`, which SLURM then requeues.

Its sockets, ports and books are its own, so it meets no other SLURM of the machine, nor another one of these.
Needs root and Debian's slurm-wlm and munge. Commands find it by SLURM_CONF.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
#: what squeue is to know of jobs that have ended, for as long as a test may take
NO_ACCOUNTS = "AccountingStorageType=accounting_storage/none\nMinJobAge=3600"
#: of slurm.conf, and of gres.conf beside it: GPUs that SLURM counts and hands out, made of empty files
GPUS = "GresTypes=gpu\nNodeName=DEFAULT Gres=gpu:a100:{number}"
GPU_FILES = "NodeName=n[1-2] Name=gpu Type=a100 File={folder}/gpu[0-{last}]\n"
#: states in which a job will not change any more
ENDED = frozenset(
    ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
)

CONFIGURATION = """\
ClusterName=pairmill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
{accounting}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait={kill_wait}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=20
{gpus}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=262144 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=262144 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 State=UP
"""


def missing() -> str:
    """Why there can be no SLURM here, in words; empty where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=path()) is None]
    if absent:
        return f"no SLURM here ({', '.join(absent)} not found): install slurm-wlm and munge"
    return "" if os.geteuid() == 0 else "the daemons of a SLURM of one's own need root"


def need(more: str = "") -> None:
    """Skips the test where there can be no SLURM, or what more it needs is missing, in words; fails it where
    PAIRMILL_REQUIRE_SLURM is set, as in CI."""
    if reason := missing() or more:
        if os.environ.get("PAIRMILL_REQUIRE_SLURM"):
            pytest.fail(f"PAIRMILL_REQUIRE_SLURM is set, but {reason}")
        pytest.skip(reason)


def path() -> str:
    """Debian keeps the daemons in sbin, which is not on everybody's path."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class Accounting(Protocol):
    """Who keeps this SLURM's accounts."""

    def settings(self, folder: Path) -> str:
        """Lines of slurm.conf."""

    def start(self, cluster: Cluster) -> None:
        """Called when munged runs, and slurmctld does not yet."""


@dataclass
class Cluster:
    """A running SLURM; `environment` is what its commands need."""

    folder: Path
    pids: list[int] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """Runs one of SLURM's commands and returns what it printed.

        Raises:
            AssertionError: it failed; with what it said.
        """
        done = subprocess.run(
            words,
            env={**os.environ, "PATH": path(), **self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stderr.strip()}"
        return done.stdout.strip()

    def submit(self, *words: str, environment: Mapping[str, str] | None = None) -> int:
        """`sbatch --parsable WORDS`; returns the job's id."""
        return int(self.command("sbatch", "--parsable", *words, environment=environment))

    def facts(self, job: int | str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, Reason, NodeList ... No value with
        spaces in it survives whole."""
        words = self.command("scontrol", "-o", "show", "job", str(job)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: int | str) -> str:
        return self.facts(job)["JobState"]

    def wait(self, job: int | str, *, seconds: float = 120, states: Sequence[str] = ()) -> dict[str, str]:
        """Waits until a job is in one of the states, by default until it has ended; returns its facts."""
        wanted = frozenset(states) or ENDED
        return self.until(lambda: (f := self.facts(job))["JobState"] in wanted and f, seconds, f"job {job}")

    def until(self, found: Callable[[], object], seconds: float, what: str = "") -> dict[str, str]:
        """Asks until the answer is true; returns it."""
        limit = time.monotonic() + seconds
        while not (answer := found()):
            assert time.monotonic() < limit, (
                f"{what}: not within {seconds:g} s\n{self.command('squeue', '-l')}"
            )
            time.sleep(0.2)
        return answer  # type: ignore[return-value]

    def start_now(self, job: int | str) -> None:
        """A requeued job waits two minutes; not here. Within the second in which it was requeued its nodes
        would refuse it, though ("Job credential revoked"), and it would fail for good."""
        self.command("scontrol", "update", f"jobid={job}", "StartTime=now+2")

    def idle(self) -> bool:
        return not self.command("squeue", "-h")

    def cancel_all(self) -> None:
        """Between tests: no job stays, and both nodes are idle again."""
        self.command("scancel", "--user=root", "--quiet")
        self.until(self.idle, 60, "all jobs to end")


def start(
    *, cpus: int = 2, gpus: int = 0, kill_wait: int = 15, accounting: Accounting | None = None
) -> Cluster:
    """Starts the daemons and waits until both nodes are idle.

    Args:
        cpus: of each node, as SLURM counts them; the machine may have fewer.
        gpus: of each node, likewise.
        kill_wait: seconds between SIGTERM and SIGKILL for a job that is ended.
        accounting: who keeps accounts; without, SLURM forgets an hour after a job's end.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    folder.chmod(0o755)  # munged serves only sockets that everybody can reach
    for name in ("state", "log", "munge", "socket", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge").chmod(0o700)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    settings = CONFIGURATION.format(
        folder=folder, host=socket.gethostname().split(".")[0], ports=free_ports(3), cpus=cpus,
        kill_wait=kill_wait, accounting=accounting.settings(folder) if accounting else NO_ACCOUNTS,
        gpus=GPUS.format(number=gpus) if gpus else "",
    )  # fmt: skip
    (folder / "slurm.conf").write_text(settings)
    if gpus:
        for number in range(gpus):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(GPU_FILES.format(folder=folder, last=gpus - 1))
    try:
        _start_daemons(cluster, accounting)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def _start_daemons(cluster: Cluster, accounting: Accounting | None) -> None:
    folder, conf = cluster.folder, str(cluster.folder / "slurm.conf")
    daemon(
        cluster,
        folder / "munge" / "pid",
        *("munged", "--force", f"--key-file={folder}/munge/key", f"--socket={folder}/socket/munge"),
        *(
            f"--pid-file={folder}/munge/pid",
            f"--log-file={folder}/munge/log",
            f"--seed-file={folder}/munge/seed",
        ),
    )
    if accounting:
        accounting.start(cluster)
    daemon(cluster, folder / "slurmctld.pid", "slurmctld", "-f", conf)
    for node in NODES:
        start_node(cluster, node)
    wanted = [f"{node} idle" for node in NODES]
    ask = ("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t")
    cluster.until(lambda: sorted(cluster.command(*ask).split("\n")) == wanted, 30, "both nodes to be idle")


def start_node(cluster: Cluster, node: str) -> None:
    folder = cluster.folder
    daemon(cluster, folder / f"slurmd-{node}.pid", "slurmd", "-f", str(folder / "slurm.conf"), "-N", node)


def daemon(cluster: Cluster, pid_file: Path, *words: str) -> None:
    """Starts a program that goes into the background, and notes its process."""
    pid_file.unlink(missing_ok=True)
    subprocess.run(
        words, env={**os.environ, "PATH": path(), **cluster.environment}, check=True, timeout=30,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _await_file(pid_file)
    cluster.pids.append(int(pid_file.read_text()))


def _await_file(path: Path, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < limit, f"{path} did not come within {seconds:g} s"
        time.sleep(0.05)


def stop(cluster: Cluster) -> None:
    """Ends all jobs and the daemons, by their own process numbers, and removes the folder."""
    if (cluster.folder / "slurmctld.pid").exists():
        subprocess.run(
            ["scancel", "--user=root", "--quiet"],
            env={**os.environ, **cluster.environment},
            timeout=30,
            check=False,
        )
        limit = time.monotonic() + 30
        while time.monotonic() < limit and not cluster.idle():
            time.sleep(0.2)
    for pid in reversed(cluster.pids):
        end(pid)
    shutil.rmtree(cluster.folder, ignore_errors=True)


def end(pid: int, seconds: float = 15) -> None:
    """Asks a process to end and waits for it; a daemon is nobody's child here, so /proc tells."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if not Path(f"/proc/{pid}").exists():
                return
            time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    """Held together, so that they are different ones."""
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
