"""A job's parts without SLURM: what it was given, its sizes for Ray, its processes, the batch scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import cli
from jobs.slurm import allocation, ray_nodes
from jobs.slurm.allocation import read_allocation
from jobs.slurm.batch import describe
from jobs.slurm.ray_nodes import sizes, start_seconds
from jobs.slurm.scripts import scripts_folder
from pipeline.errors import ConfigError

JOB = {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}
ARRAY = {
    "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3",
}  # fmt: skip
SCRIPTS = scripts_folder()
SBATCH = sorted(SCRIPTS.glob("*.sbatch"))


def test_outside_a_job_the_error_says_what_to_submit() -> None:
    with pytest.raises(ConfigError, match="submit one of them with sbatch"):
        read_allocation({})


def test_an_allocation_of_two_nodes() -> None:
    found = read_allocation(
        {**JOB, "SLURM_MEM_PER_NODE": "2048", "SLURM_NODEID": "1", "SLURM_RESTART_COUNT": "2"}
    )
    assert (found.name, found.nodes, found.node, found.cpus, found.restart) == ("17", 2, 1, 8, 2)
    assert found.memory == 2 << 30


@pytest.mark.parametrize(
    ("given", "memory"),
    [
        ({"SLURM_MEM_PER_NODE": "1000"}, 1000 << 20),
        ({"SLURM_MEM_PER_CPU": "500"}, 4000 << 20),
        ({"SLURM_MEM_PER_GPU": "500", "SLURM_GPUS_ON_NODE": "4"}, 2000 << 20),
        ({"SLURM_MEM_PER_NODE": "0"}, 0),
        ({}, 0),
    ],
)
def test_memory_is_told_a_node_a_cpu_or_a_gpu_or_not(given: dict[str, str], memory: int) -> None:
    assert read_allocation({**JOB, **given}).memory == memory


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({}, 0),
        ({"SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"SLURM_GPUS_PER_NODE": "a100:8"}, 8),
        ({"SLURM_GPUS_PER_NODE": "a100:2,v100:1"}, 3),
        ({"SLURM_JOB_GPUS": "0,3"}, 2),
        ({"SLURM_GPUS": "a100:8", "SLURM_GPUS_ON_NODE": "4"}, 4),
        ({"SLURM_GPUS": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NUM_NODES": "1"}, 4),
    ],
)
def test_gpus(given: dict[str, str], gpus: int) -> None:
    assert read_allocation({**JOB, **given}).gpus == gpus


def test_nodes_with_different_numbers_of_gpus_are_refused() -> None:
    given = {"SLURM_GPUS": "4", "SLURM_GPUS_ON_NODE": "3"}
    with pytest.raises(ConfigError, match=r"--gpus=4 over 2 nodes gave 3 .* use --gpus-per-node=2"):
        read_allocation({**JOB, **given})


def test_a_task_of_an_array_is_called_as_people_see_it() -> None:
    found = read_allocation({**JOB, **ARRAY, "SLURM_JOB_ID": "21", "PAIRMILL_RUN_DIR": "/run"})
    assert (found.job, found.name, found.task) == (21, "17_3", (3, 4))
    assert found.folder == Path("/run/jobs/17_3")


@pytest.mark.parametrize(
    "change", [{"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"}, {"SLURM_ARRAY_TASK_MAX": "6"}]
)
def test_an_array_that_would_leave_units_out_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="use --array=0-3"):
        read_allocation({**JOB, **ARRAY, **change})


def test_the_log_says_what_an_attempt_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    found = read_allocation({**JOB, "SLURM_MEM_PER_NODE": "65536", "SLURM_RESTART_COUNT": "1"})
    assert describe(found) == "job 17, attempt 2, 2 nodes (n[1-2]), each 8 CPUs, 0 GPUs, 64 GiB"
    assert describe(read_allocation(JOB)).endswith("unlimited memory")


def test_ray_gets_what_slurm_gave_and_looks_itself_where_that_is_nothing() -> None:
    given = read_allocation({**JOB, "SLURM_MEM_PER_NODE": "65536"})
    assert sizes(given).store == 2 << 30
    assert sizes(given).memory + sizes(given).store == 64 << 30
    small = sizes(read_allocation({**JOB, "SLURM_MEM_PER_NODE": "2000"}))
    assert small.store == 200 << 20
    free = sizes(read_allocation(JOB))
    assert (free.cpus, free.memory, free.store) == (8, 0, ray_nodes.STORE_LEAST)


@pytest.mark.parametrize(("text", "seconds"), [("", 600.0), ("25", 25.0), ("0.5", 0.5)])
def test_seconds_to_start_in(text: str, seconds: float) -> None:
    assert start_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(ConfigError, match="PAIRMILL_START_SECONDS"):
        start_seconds(text)


FAMILY = """
import subprocess, sys, time
from jobs.slurm import offspring
offspring.adopt()
orphan = "import subprocess as s; print(s.Popen(['sleep', '97'], start_new_session=True).pid, flush=True)"
subprocess.run([sys.executable, "-c", orphan])
stubborn = "import signal as s, time; s.signal(15, s.SIG_IGN); print('up', flush=True); time.sleep(97)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
assert sorted(n for n in offspring.below().values() if n == "sleep") == ["sleep"], offspring.below()
print("killed", offspring.end_all(seconds=0.5), len(offspring.below()), flush=True)
"""


def test_offspring_ends_orphans_and_the_stubborn_and_nobody_else() -> None:
    with subprocess.Popen(["sleep", "98"]) as neighbour:
        done = subprocess.run([sys.executable, "-c", FAMILY], capture_output=True, text=True, timeout=30)
        orphan, told = done.stdout.splitlines()
        assert told == "killed 1 0", done.stderr
        assert not _lives(int(orphan))
        assert neighbour.poll() is None
        neighbour.kill()


def _lives(pid: int, seconds: float = 5) -> bool:
    limit = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > limit:
            return True
        time.sleep(0.05)
    return False


def test_every_command_that_does_work_has_its_script() -> None:
    assert {path.stem for path in SBATCH} == set(cli.VERBS) - set(cli.POSITIONAL)


def test_all_scripts_are_one_script() -> None:
    """What differs is the command, its description, its sizes, and remarks: a change of one is one of all."""
    skeletons = {}
    for path in SBATCH:
        text = path.read_text().replace(f"pairmill-{path.stem}", "pairmill-VERB")
        text = text.replace(
            f"slurm/{path.name} --config {path.stem}.yaml", "slurm/VERB.sbatch --config VERB.yaml"
        )
        text = text.replace(f"pairmill batch {path.stem} ", "pairmill batch VERB ")
        text = re.sub(r"(?m)^(#SBATCH --(?:cpus-per-task|mem|time|signal=B:USR1@)\D*).*$", r"\1 SIZE", text)
        head, _, rest = text.partition("\n#SBATCH")
        lines = [line for line in rest.splitlines() if not re.match(r"#($| )(?!sbatch runs a copy)", line)]
        skeletons[path.stem] = [head.splitlines()[0], *head.splitlines()[2:], *lines]
    assert len({tuple(lines) for lines in skeletons.values()}) == 1, skeletons


def test_scripts_take_over_no_variable_with_a_secret() -> None:
    for path in SBATCH:
        (export,) = re.findall(r"(?m)^#SBATCH --export=(.*)$", path.read_text())
        names = export.split(",")
        assert "ALL" not in names
        assert not [n for n in names if re.search("TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", n)]
        assert {"PATH", "HOME", "PAIRMILL_RUN_DIR", "PAIRMILL_STEP", ray_nodes.START_VARIABLE} <= set(names)
        assert all(re.fullmatch("[A-Z_]+", name) for name in names), (
            "names alone: a value would be for everybody"
        )


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        if os.environ.get("PAIRMILL_REQUIRE_SLURM"):
            pytest.fail("PAIRMILL_REQUIRE_SLURM is set, but there is no shellcheck")
        pytest.skip("no shellcheck on this machine")
    scripts = [*SBATCH, *SCRIPTS.glob("*.sh")]
    words = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *map(str, scripts)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_where_the_own_name_means_the_node_itself_others_are_told_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PAIRMILL_INTERFACE", raising=False)
    monkeypatch.setattr(allocation.socket, "gethostbyname", lambda _: "127.0.1.1")
    monkeypatch.setattr(allocation, "_routed_address", lambda: "10.1.2.3")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert allocation.own_address() == "127.0.1.1"
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert allocation.own_address() == "10.1.2.3"
    monkeypatch.setenv("PAIRMILL_INTERFACE", "lo")
    assert allocation.own_address() == "127.0.0.1"


def test_a_node_without_a_name_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.delenv("PAIRMILL_INTERFACE", raising=False)
    monkeypatch.setattr(allocation.socket, "gethostbyname", unknown)
    with pytest.raises(ConfigError, match=r"set PAIRMILL_INTERFACE in slurm/site\.sh"):
        allocation.own_address()
