"""Training on a real SLURM: over two nodes, through signals, kills, a lost node, other numbers of nodes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.models.toy_shards import write_shards
from tests.slurm import cluster
from tests.slurm.cluster import Cluster
from tests.slurm.training_world import SCRIPT, STEPS, Job, World, checkpoints, make_world, search_path

#: what process 1 meets in its second save; the others do not
IN_A_SAVE = """
import os, signal
if os.environ.get("RANK") == "1":
    from models.training import checkpoint
    save = checkpoint._save
    def failing(run, step, *rest):
        if step == 8:
            {what}
        return save(run, step, *rest)
    checkpoint._save = failing
"""

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("training"))


@pytest.mark.prove_ci
def test_two_nodes_train_as_two_processes_of_one_machine(slurm: Cluster, world: World) -> None:
    job = world.submit(slurm, "two-nodes")
    job.finish(0)
    world.assert_as_undisturbed(job.run)
    assert (job.books / "jobs" / str(job.number) / "torch-0" / "node-1").read_text() == "n2"


@pytest.mark.prove_ci
def test_usr1_in_mid_training_costs_no_step(slurm: Cluster, world: World) -> None:
    job = world.submit(slurm, "signalled")
    job.await_step(6)
    told = time.time()
    slurm.command("scancel", "--signal=USR1", "--batch", str(job.number))
    end = job.end(0)
    print(f"USR1 to the end of the attempt: {end.ended - told:.1f} s")
    assert (end.code, end.requeued) == (75, True)
    stopped_at = len(job.rows())
    assert 6 <= stopped_at < STEPS
    assert end.mark == f"step_{stopped_at:08d}"
    job.await_attempt(1)
    job.finish(1)
    assert f"going on from step {stopped_at} " in job.log()
    world.assert_as_undisturbed(job.run)
    assert not (job.run / "STOP").exists()


@pytest.mark.prove_ci
def test_a_killed_process_ends_the_attempt_in_seconds_and_the_job_goes_on(
    slurm: Cluster, world: World
) -> None:
    job = world.submit(slurm, "killed")
    job.await_step(6)
    killed = time.time()
    job.kill_rank(1)
    end = job.end(0)
    print(f"SIGKILL of a process to the end of the attempt: {end.ended - killed:.1f} s")
    assert (end.code, end.requeued) == (70, True)
    assert end.ended - killed < 20
    assert "process 1 (n2): ended by SIGKILL" in end.why
    job.await_attempt(1)
    job.finish(1)
    world.assert_as_undisturbed(job.run)
    assert checkpoints(job.run)[-1] == STEPS - 4


def test_a_signal_before_the_first_step_costs_no_step_either(slurm: Cluster, world: World) -> None:
    job = world.submit(slurm, "early")
    plan = job.books / "jobs" / str(job.number) / "torch-0" / "torchrun.json"
    slurm.until(plan.exists, 60, "torchrun to be started")
    slurm.command("scancel", "--signal=USR1", "--batch", str(job.number))
    end = job.end(0)
    assert (end.code, end.requeued) == (75, True)
    assert len(job.rows()) == 1
    job.await_attempt(1)
    job.finish(1)
    world.assert_as_undisturbed(job.run)


def test_the_time_limit_is_a_pause(slurm: Cluster, world: World) -> None:
    """SLURM looks at limits twice a minute or so; the next attempt has the whole time again."""
    world.configure("long", steps=100_000, checkpoint_every=0)
    job = world.submit(slurm, "long", "--time=1", "--signal=B:USR1@25", "--")
    end = job.end(0, seconds=150)
    assert (end.code, end.requeued) == (75, True)
    stopped_at = len(job.rows())
    assert end.mark == f"step_{stopped_at:08d}"
    job.await_attempt(1)
    job.await_step(stopped_at + 1)
    slurm.command("scancel", str(job.number))
    steps = [row["step"] for row in job.rows()]
    assert steps == list(range(1, len(steps) + 1))


def test_the_time_limit_without_a_warning_is_a_pause_too(slurm: Cluster, world: World) -> None:
    """The warning never came: SLURM's SIGTERM leaves some seconds, which are enough here."""
    world.configure("unwarned", steps=100_000, checkpoint_every=0)
    job = world.submit(slurm, "unwarned", "--time=1", "--signal=B:URG@25", "--")
    end = job.end(0, seconds=150)
    print(end)
    assert end.requeued
    assert end.mark == f"step_{len(job.rows()):08d}"
    job.await_attempt(1)
    slurm.command("scancel", str(job.number))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--lr", "1e30"], 1, "is no number"),
        (["--lr", "1e-9"], 2, "min_lr 1e-05 must lie between 0 and lr 1e-09"),
        (["--processes", "1"], 2, "processes 1 cannot be spread over 2 nodes"),
        (["--model.image_sizes", "3"], 2, "image_sizes"),
    ],
)
def test_what_the_run_tells_is_final_and_ends_what_waits_for_it(
    slurm: Cluster, world: World, words: list[str], code: int, says: str
) -> None:
    job = world.submit(slurm, f"error{code}-{abs(hash(tuple(words)))}", "--", *words)
    waiting = slurm.submit(
        f"--dependency=afterok:{job.number}", "--kill-on-invalid-dep=yes", "--output=/dev/null", "--wrap=true"
    )
    facts = slurm.wait(job.number)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", f"{code}:0", "0")
    end = job.end(0)
    assert (end.code, end.requeued) == (code, False)
    assert says in end.why
    assert says in job.log()
    assert slurm.wait(waiting)["JobState"] == "CANCELLED"


def test_a_damaged_shard_is_told_with_its_name(slurm: Cluster, world: World, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", shards=2, samples=24)
    tar = folder / "00000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2 + 100])
    job = world.submit(slurm, "damaged", "--", "--shards", str(folder))
    assert slurm.wait(job.number)["JobState"] == "FAILED"
    end = job.end(0)
    assert (end.code, end.requeued) == (1, False)
    assert "00000001.tar" in end.why


def test_the_run_folder_of_another_configuration_is_left_alone(slurm: Cluster, world: World) -> None:
    before = {p: p.stat().st_mtime_ns for p in world.undisturbed.rglob("*")}
    job = world.submit(slurm, "undisturbed", "--", "--lr", "1e-3")
    assert slurm.wait(job.number)["ExitCode"] == "2:0"
    assert "lr 0.002 -> 0.001" in job.end(0).why
    assert {p: p.stat().st_mtime_ns for p in world.undisturbed.rglob("*")} == before


def test_a_disk_that_is_full_for_one_process_alone_is_an_error_of_all(slurm: Cluster, world: World) -> None:
    full = 'raise checkpoint.LocalError("no space left for process 1")'
    broken = world.sabotaged("full", IN_A_SAVE.format(what=full))
    job = world.submit(slurm, "local-error", script=broken)
    assert slurm.wait(job.number)["ExitCode"] == "1:0"
    end = job.end(0)
    assert (end.code, end.requeued) == (1, False)
    assert "no space left for process 1" in end.why
    assert checkpoints(job.run) == [4]


def test_a_crash_that_comes_back_at_one_place_ends_the_job(slurm: Cluster, world: World) -> None:
    broken = world.sabotaged("crash", IN_A_SAVE.format(what="os.kill(os.getpid(), signal.SIGKILL)"))
    job = world.submit(slurm, "crashing", script=broken)
    for restart in (1, 2):
        assert job.end(restart - 1).requeued
        job.await_attempt(restart)
    facts = slurm.wait(job.number)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "1:0")
    end = job.end(2)
    assert (end.code, end.requeued) == (70, False)
    assert "crashed 3 times at the same place (step_00000004)" in end.why
    again = world.submit(slurm, "crashing")  # what was the matter is mended
    again.finish(0)
    world.assert_as_undisturbed(again.run)


def test_a_job_is_requeued_no_more_often_than_it_may_and_goes_on_over_other_nodes(
    slurm: Cluster, world: World
) -> None:
    """2 nodes, 1 node of one process, 2 nodes: through the universal checkpoint."""
    job = world.submit(slurm, "nodes", environment={"PAIRMILL_MAX_RESTARTS": "0"})
    job.await_step(5)
    slurm.command("scancel", "--signal=USR1", "--batch", str(job.number))
    facts = slurm.wait(job.number)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", "0")
    assert "requeued 0 times, which is the limit" in job.end(0).why

    stopped_at = len(job.rows())
    one = world.submit(
        slurm, "nodes", "--", "--processes", "1", nodes=1, environment={"PAIRMILL_MAX_RESTARTS": "0"}
    )
    one.await_step(stopped_at + 4)
    slurm.command("scancel", "--signal=USR1", "--batch", str(one.number))
    assert slurm.wait(one.number)["ExitCode"] == "75:0"
    assert stopped_at < len(one.rows()) < STEPS

    two = world.submit(slurm, "nodes")
    two.finish(0)
    # sums in another order: AdamW makes of a gradient of 1e-9 a step of full length
    world.assert_as_undisturbed(two.run, weights=1e-4)


def test_a_lost_node_is_survived(slurm: Cluster, world: World) -> None:
    job = world.submit(slurm, "lost-node")
    job.await_step(6)
    lost = time.time()
    lose_node(slurm, job, "n2")
    try:
        slurm.until(lambda: "down" in slurm.command("sinfo", "-h", "-n", "n2", "-p", "main", "-o", "%t"), 90)
        print(f"node lost to SLURM's knowing: {time.time() - lost:.1f} s")
        slurm.until(lambda: slurm.facts(job.number)["Restarts"] == "1", 60, "the job to be requeued")
        print(f"node lost to the requeue: {time.time() - lost:.1f} s")
    finally:
        cluster.start_node(slurm, "n2")
    slurm.until(lambda: "idle" in slurm.command("sinfo", "-h", "-n", "n2", "-p", "main", "-o", "%t"), 60)
    job.await_attempt(1)
    job.finish(1)
    world.assert_as_undisturbed(job.run)


def lose_node(slurm: Cluster, job: Job, node: str) -> None:
    """SIGKILL of the node's slurmd and all that it started for the job."""
    slurmd = int((slurm.folder / f"slurmd-{node}.pid").read_text())
    victims = {slurmd}
    for pid in job.processes(ranks=False):
        if f"SLURMD_NODENAME={node}".encode() in (Path("/proc") / str(pid) / "environ").read_bytes():
            victims |= {pid, parent(pid)}
    for pid in victims:
        if pid == slurmd or "slurmstepd" in name_of(pid) or pid in job.processes(ranks=False):
            os.kill(pid, signal.SIGKILL)


def parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def name_of(pid: int) -> str:
    return (Path("/proc") / str(pid) / "comm").read_text()


@pytest.mark.parametrize("warned", [False, True])
def test_a_cancelled_job_saves_and_does_not_come_back(slurm: Cluster, world: World, warned: bool) -> None:
    world.configure(f"cancelled-{warned}", steps=100_000, checkpoint_every=0)
    job = world.submit(slurm, f"cancelled-{warned}")
    job.await_step(4)
    if warned:  # one that was told that its time runs out, and is saving
        slurm.command("scancel", "--signal=USR1", "--batch", str(job.number))
    slurm.command("scancel", str(job.number))
    told = time.time()
    facts = slurm.wait(job.number)
    job.await_none()
    print(f"scancel to the last process: {time.time() - told:.1f} s")
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    assert checkpoints(job.run) == [len(job.rows())]
    end = job.end(0)
    assert (end.code, end.requeued) == (75, False)


def test_a_stop_file_is_a_persons_wish(slurm: Cluster, world: World) -> None:
    """Nobody told the job to go on later: it stays stopped until it is submitted again."""
    job = world.submit(slurm, "stop-file")
    job.await_step(4)
    (job.run / "STOP").touch()
    facts = slurm.wait(job.number)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", "0")
    assert "file STOP" in job.end(0).why
    again = world.submit(slurm, "stop-file")
    again.finish(0)
    world.assert_as_undisturbed(again.run)


def test_a_more_urgent_job_displaces_the_run_and_it_goes_on(slurm: Cluster, world: World) -> None:
    job = world.submit(slurm, "displaced")
    job.await_step(5)
    urgent = slurm.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"
    )
    slurm.wait(urgent)
    job.await_attempt(1)
    job.finish(1)
    world.assert_as_undisturbed(job.run)


def test_a_finished_run_is_known_at_once_and_evaluated(slurm: Cluster, world: World, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in world.undisturbed.rglob("*") if p.is_file()}
    job = world.submit(slurm, "undisturbed")
    job.finish(0)
    end = job.end(0)
    print(f"a finished run: {end.ended - end.began:.1f} s")
    assert "is finished already" in end.why
    assert end.ended - end.began < 5
    assert {p: p.stat().st_mtime_ns for p in world.undisturbed.rglob("*") if p.is_file()} == before

    held = write_shards(tmp_path / "held", shards=1, samples=20, seed=5)
    number = slurm.submit(
        "--cpus-per-task=1", f"--output={tmp_path}/log", str(SCRIPT.parent / "evaluate.sbatch"),
        "--model", str(world.undisturbed), "--shards", str(held), "--pool", "16",
        "--output", f"{tmp_path}/eval",
        environment={"PATH": search_path(), "PAIRMILL_RUN_DIR": str(tmp_path / "books")},
    )  # fmt: skip
    assert slurm.wait(number)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "eval" / "retrieval.json").read_text())["pool"]["pictures"] == 16
