"""What SLURM says of jobs: its words read; on a real SLURM, every way in which a job ends, and no answer."""

from __future__ import annotations

import shutil
import stat
import time
from pathlib import Path

import pytest

from jobs.slurm import queue
from jobs.slurm.queue import JobState, QueueError, parse_sacct, parse_squeue, seconds
from tests.slurm import accounts, cluster
from tests.slurm.cluster import Cluster


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("17|RUNNING|n[1-2]|1|1:02:03|0|N/A|None", JobState(job="17", state="RUNNING", nodes="n[1-2]",
         restarts=1, elapsed=3723)),
        ("17_3|PENDING||0|0:00|0||Dependency", JobState(job="17_3", state="PENDING", reason="Dependency")),
        ("17|FAILED|n1|0|1:00|768|N/A|NonZeroExitCode",
         JobState(job="17", state="FAILED", nodes="n1", elapsed=60, exit="3:0", reason="NonZeroExitCode")),
        ("17|CANCELLED|n1|0|0:01|15|N/A|None", JobState(job="17", state="CANCELLED", nodes="n1", elapsed=1,
         exit="0:15")),
        ("17|PENDING||0|INVALID|||ReqNodeNotAvail, UnavailableNodes:n1 | n2",
         JobState(job="17", state="PENDING", reason="ReqNodeNotAvail, UnavailableNodes:n1 | n2")),
        ("CLUSTER: pairmill", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_line_of_squeue(line: str, expected: JobState | None) -> None:
    assert parse_squeue(line) == expected


def test_an_id_that_was_given_again_is_another_job() -> None:
    line = "17|RUNNING|n1|{restarts}|0:05|0|2026-11-23T08:00:00|None"
    new, requeued = (parse_squeue(line.format(restarts=n)) for n in (0, 1))
    assert new is not None
    assert requeued is not None
    day = 86400.0
    assert queue.only_of({"17": new}, {17: new.submitted + 2}) == {"17": new}
    assert queue.only_of({"17": new}, {17: new.submitted - day}) == {}
    assert queue.only_of({"17_3": requeued}, {17: new.submitted - day}) == {"17_3": requeued}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("17|CANCELLED by 1000|n1|75|0:15|None",
         [JobState(job="17", state="CANCELLED", nodes="n1", elapsed=75, exit="0:15")]),
        ("17_3|OUT_OF_MEMORY|n1|5|0:125|None", [JobState(job="17_3", state="OUT_OF_MEMORY", nodes="n1",
         elapsed=5, exit="0:125")]),
        ("17|PENDING|None assigned|0|0:0|Priority", [JobState(job="17", state="PENDING", reason="Priority")]),
        ("17|x", []),
    ],
)  # fmt: skip
def test_a_line_of_sacct(line: str, expected: list[JobState]) -> None:
    assert parse_sacct(line) == expected


@pytest.mark.parametrize(
    ("tasks", "numbers"),
    [("3", [3]), ("1-3%1", [1, 2, 3]), ("0,2-3,9-15:3%4", [0, 2, 3, 9, 12, 15]), ("0-1,...", [0, 1])],
)
def test_tasks_that_share_a_line_of_sacct(tasks: str, numbers: list[int]) -> None:
    found = parse_sacct(f"17_[{tasks}]|CANCELLED by 0|None assigned|0|0:0|None")
    assert [state.job for state in found] == [f"17_{number}" for number in numbers]
    assert {(state.state, state.nodes) for state in found} == {("CANCELLED", "")}


@pytest.mark.parametrize(
    ("text", "number"),
    [("0:00", 0), ("59", 59), ("12:03", 723), ("1:02:03", 3723), ("2-03:04:05", 183845), ("INVALID", 0)],
)
def test_times(text: str, number: int) -> None:
    assert seconds(text) == number


@pytest.mark.parametrize(
    ("state", "active"),
    [
        *((word, True) for word in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED")),
        *((word, True) for word in ("REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SOMETHING_NEW")),
        *((word, False) for word in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")),
        *((word, False) for word in ("OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL", "REVOKED")),
    ],
)
def test_which_jobs_go_on(state: str, active: bool) -> None:
    assert JobState(job="17", state=state).active is active


def _program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that hide SLURM's, and stand alone."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("squeue", "scancel", "sacct"):
        _program(tmp_path, name, "exit 1")
    return tmp_path


def test_accounts_are_asked_for_what_squeue_has_forgotten(programs: Path) -> None:
    _program(programs, "squeue", f'echo "$@" > {programs}/asked; echo "17|RUNNING|n1|0|0:05|0|N/A|None"')
    lines = "16|COMPLETED|n1|75|0:0|None\\n15|RUNNING|n1|99|0:0|None\\n"
    _program(programs, "sacct", f'echo "$@" > {programs}/accounts; printf "{lines}"')
    found = queue.ask([17, 16, 15, 17])
    assert {job: state.state for job, state in found.items()} == {"17": "RUNNING", "16": "COMPLETED"}
    assert "--jobs=15,16,17" in (programs / "asked").read_text()
    assert "--jobs=15,16" in (programs / "accounts").read_text()


def test_accounts_are_asked_for_the_tasks_of_an_array_that_squeue_has_forgotten(programs: Path) -> None:
    _program(programs, "squeue", 'echo "17_1|RUNNING|n1|0|0:05|0|N/A|None"')
    _program(programs, "sacct", 'printf "17_0|FAILED|n1|75|1:0|None\\n17_1|FAILED|n1|75|1:0|None\\n"')
    states = {job: state.state for job, state in queue.ask([17]).items()}
    assert states == {"17_0": "FAILED", "17_1": "RUNNING"}
    assert list(queue.ask_squeue([17])) == ["17_1"]


@pytest.mark.parametrize("error", ["slurm_load_jobs error: Unable to contact slurm controller", ""])
def test_no_answer_is_no_empty_answer(programs: Path, error: str) -> None:
    _program(programs, "squeue", f"echo '{error}' >&2; exit 1")
    with pytest.raises(QueueError, match="Unable to contact" if error else "exit code 1"):
        queue.ask([17])
    _program(programs, "scancel", "echo 'scancel: error: Kill job error on job id 17: no' >&2; exit 1")
    with pytest.raises(QueueError, match=r"^scancel: Kill job error on job id 17: no"):
        queue.cancel([17])


def test_a_single_job_that_is_forgotten(programs: Path) -> None:
    _program(programs, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queue.ask([17]) == {}


def test_a_slurm_that_says_nothing_is_not_waited_for(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "PATIENCE", 0.2)
    _program(programs, "squeue", "exec sleep 5")
    with pytest.raises(QueueError, match="no answer within"):
        queue.ask([17])


def test_no_slurm_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not queue.present()
    with pytest.raises(QueueError, match="squeue is not on the PATH"):
        queue.ask([17])
    assert queue.ask([]) == {}


def test_habits_of_the_user_hide_nothing(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT2", "SACCT_FORMAT", "SCANCEL_INTERACTIVE"):
        monkeypatch.setenv(name, "x")
    for name in ("squeue", "sacct", "scancel"):
        _program(programs, name, f"env >> {programs}/environment")
    queue.ask([17])
    queue.cancel([17])
    found = (programs / "environment").read_text()
    assert "SQUEUE_" not in found
    assert "SACCT_" not in found
    assert "SCANCEL_" not in found


@pytest.mark.prove
@pytest.mark.prove_ci
def test_every_way_in_which_a_job_ends(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsleep $1\nexit $2\n")

    def submit(*options: str, sleep: int, code: int = 0) -> int:
        return slurm.submit(*options, "--output=/dev/null", str(script), str(sleep), str(code))

    good = submit("--job-name=a | b\n'c' \"d\" $(e) ü", sleep=0)
    bad = submit(sleep=0, code=3)
    runs = submit("--requeue", sleep=300)
    array = submit("--array=0-2%1", sleep=300)
    doomed = submit(f"--dependency=afterok:{bad}", "--kill-on-invalid-dep=yes", sleep=0)
    waits = submit(f"--dependency=afterok:{runs}", sleep=0)
    forgotten = waits + 100
    ids = [good, bad, runs, array, doomed, waits, forgotten]
    slurm.wait(doomed)
    slurm.wait(runs, states=("RUNNING",))
    slurm.until(lambda: queue.ask([array])[f"{array}_0"].state == "RUNNING", 60, "task 0")

    found = queue.ask(ids)
    assert len(found) == 8
    assert {job: (state.state, state.active) for job, state in found.items()} == {
        str(good): ("COMPLETED", False),
        str(bad): ("FAILED", False),
        str(runs): ("RUNNING", True),
        f"{array}_0": ("RUNNING", True),
        f"{array}_1": ("PENDING", True),
        f"{array}_2": ("PENDING", True),
        str(doomed): ("CANCELLED", False),
        str(waits): ("PENDING", True),
    }
    assert (found[str(good)].exit, found[str(bad)].exit, found[str(runs)].exit) == ("0:0", "3:0", "")
    assert found[str(runs)].nodes in cluster.NODES
    assert found[str(waits)].reason == "Dependency"
    assert found[str(doomed)].reason == "DependencyNeverSatisfied"

    slurm.command("scontrol", "requeue", str(runs))
    slurm.until(lambda: queue.ask([runs])[str(runs)].state == "PENDING", 60, "the requeued job")
    again = queue.ask([runs])[str(runs)]
    assert (again.restarts, again.reason) == (1, "BeginTime")

    assert queue.ask([forgotten]) == {}
    assert queue.ask([forgotten, forgotten + 1]) == {}
    queue.cancel([forgotten])
    queue.cancel([good, runs, array, waits, forgotten])
    slurm.until(lambda: not any(s.active for s in queue.ask(ids).values()), 60, "all jobs to end")
    found = queue.ask(ids)
    assert found[str(good)].state == "COMPLETED"
    assert {found[f"{array}_{n}"].state for n in range(3)} == {"CANCELLED"}


@pytest.mark.prove
def test_a_controller_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.need()
    own = cluster.start()
    try:
        monkeypatch.setenv("SLURM_CONF", own.environment["SLURM_CONF"])
        assert queue.ask([1]) == {}
        controller = own.pids.pop(1)
        cluster.end(controller)
        began = time.monotonic()
        with pytest.raises(QueueError, match="Unable to contact slurm controller"):
            queue.ask([1])
        assert time.monotonic() - began < queue.PATIENCE + 5
    finally:
        for pid in reversed(own.pids):
            cluster.end(pid)
        shutil.rmtree(own.folder)


#: tasks of an array that need more characters than SLURM prints by itself
SQUARES = [number**2 for number in range(30)]


@pytest.mark.prove
@pytest.mark.prove_ci
def test_accounts_tell_what_squeue_has_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.need(accounts.missing())
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsleep $1\nexit $2\n")
    own = cluster.start(accounting=accounts.Accounts())
    try:
        monkeypatch.setenv("SLURM_CONF", own.environment["SLURM_CONF"])

        def submit(*options: str, sleep: int = 0, code: int = 0) -> int:
            return own.submit(*options, "--output=/dev/null", str(script), str(sleep), str(code))

        good = submit("--job-name=a | b\n'c' \"d\" $(e) ü")
        bad = submit(code=3)
        doomed = submit(f"--dependency=afterok:{bad}", "--kill-on-invalid-dep=yes")
        again = submit("--requeue", sleep=300)
        array = submit(f"--array={','.join(map(str, SQUARES))}%1", sleep=300)
        tasks = submit("--array=0-3", code=4)
        own.until(lambda: queue.ask([array])[f"{array}_0"].state == "RUNNING", 60, "task 0")
        own.wait(again, states=("RUNNING",))
        own.command("scontrol", "requeue", str(again))
        own.wait(again, states=("PENDING",))
        own.wait(tasks)
        own.command("scancel", f"{array}_0")
        squeue = ("squeue", "--noheader", "--states=all", "--Format=ArrayTaskID")
        own.until(lambda: "0" not in own.command(*squeue).split(), 90, "squeue to forget task 0")
        found = queue.ask([array])
        assert len(found) == len(SQUARES)
        assert (found[f"{array}_0"].state, found[f"{array}_1"].state) == ("CANCELLED", "RUNNING")
        assert {found[f"{array}_{number}"].state for number in SQUARES[2:]} == {"PENDING"}

        queue.cancel([again, array])
        own.until(lambda: not own.command(*squeue), 90, "squeue to forget")

        found = queue.ask([good, bad, doomed, again, array, tasks, tasks + 100])
        assert {job: state.state for job, state in found.items()} == {
            str(good): "COMPLETED",
            str(bad): "FAILED",
            str(doomed): "CANCELLED",
            str(again): "CANCELLED",
            **{f"{array}_{number}": "CANCELLED" for number in SQUARES},
            **{f"{tasks}_{number}": "FAILED" for number in range(4)},
        }
        assert (found[str(good)].exit, found[str(bad)].exit) == ("0:0", "3:0")
        assert {found[f"{tasks}_{number}"].exit for number in range(4)} == {"4:0"}
        assert found[str(good)].nodes in cluster.NODES
        assert (found[str(doomed)].nodes, found[str(doomed)].reason) == ("", "Dependency")
    finally:
        cluster.stop(own)
