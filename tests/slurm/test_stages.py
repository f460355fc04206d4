"""Data stages as jobs of a real SLURM: arrays, time limits, displacement, poison units, finished steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline import manifest
from tests.prove.world import World, write_archives
from tests.slurm.cluster import Cluster
from tests.slurm.crawls import AWKWARD, UNITS, Crawl, Job, processes, submit

pytestmark = [pytest.mark.prove, pytest.mark.timeout(400)]


def books(crawl: Crawl) -> dict[str, bytes]:
    """What lies beside the units' parts: the same however many jobs there were."""
    return {path.name: path.read_bytes() for path in crawl.output.glob("*.json") if "_stats" not in path.name}


def test_an_array_and_a_finishing_job_make_what_one_job_makes(
    slurm: Cluster, crawl: Crawl, reference: Crawl
) -> None:
    arguments = [f"--config={crawl.config}"]
    crawl.site.delay = 0.2
    array = submit(slurm, crawl.folder, "--array=0-3", arguments=arguments)
    last = submit(
        slurm,
        crawl.folder,
        f"--dependency=afterok:{array.id}",
        "--kill-on-invalid-dep=yes",
        arguments=arguments,
    )
    facts = last.wait(seconds=300)
    logs = {path.name: path.read_text() for path in sorted(crawl.folder.glob("*.out"))}
    assert facts["ExitCode"] == "0:0", logs
    crawl.check(reference)
    assert crawl.site.asked_again() == {}
    assert books(crawl) == books(reference)
    attempts = [crawl.run / "jobs" / f"{array.id}_{task}" for task in range(4)]
    ends = [Job(slurm, array.id, crawl.folder, folder.name).end() for folder in attempts]
    assert {(end.code, end.requeued) for end in ends} == {(0, False)}
    assert len({end.node for end in ends}) == 2, "two tasks a node"
    assert len({(folder / "ray-0" / "address").read_text() for folder in attempts}) == 4
    # the last one had nothing to do but to end the folder
    assert not (crawl.run / "jobs" / last.name / "ray-0").exists()


@pytest.mark.prove_ci
def test_a_signalled_job_goes_on_in_its_next_attempt(slurm: Cluster, crawl: Crawl, reference: Crawl) -> None:
    job = submit(slurm, crawl.folder, arguments=[f"--config={crawl.config}"])
    job.under_way(crawl)
    slurm.command("scancel", "--signal=USR1", "--batch", str(job.id))
    job.await_requeue()
    crawl.note()
    assert 2 <= len(crawl.standing) < UNITS
    crawl.site.delay = 0.0
    facts = job.wait()
    assert facts["ExitCode"] == "0:0", job.log()
    assert [(e.code, e.requeued) for e in (job.end(0), job.end(1))] == [(75, True), (0, False)]
    crawl.check(reference)
    assert crawl.site.asked_again() == {}, "what was under way has been finished"
    assert job.log().count("began: job") == job.log().count("ended after") == 2


def test_a_job_that_is_signalled_before_ray_stands_waits_for_nothing(
    slurm: Cluster, crawl: Crawl, reference: Crawl
) -> None:
    crawl.site.delay = 0.0
    job = submit(slurm, crawl.folder, "--nodes=2", arguments=[f"--config={crawl.config}"])
    job.meanwhile(lambda: "began" in job.log(), "the first line")
    slurm.command("scancel", "--signal=USR1", "--batch", str(job.id))
    job.await_requeue()
    assert (job.end(0).code, job.end(0).requeued) == (75, True)
    assert job.wait()["ExitCode"] == "0:0", job.log()
    crawl.check(reference)


def test_where_time_runs_out_the_next_attempt_does_the_rest(
    slurm: Cluster, crawl: Crawl, reference: Crawl
) -> None:
    crawl.site.delay = 8.0
    # the signal comes up to a minute early: between one and two minutes; all units would take more than three
    job = submit(
        slurm, crawl.folder, "--time=3", "--signal=B:USR1@60",
        arguments=[f"--config={crawl.config}", "--grace=60"],
    )  # fmt: skip
    job.under_way(crawl, units=1)
    job.await_requeue(seconds=240)
    crawl.note()
    assert 1 <= len(crawl.standing) < UNITS
    crawl.site.delay = 0.0
    facts = job.wait()
    assert facts["ExitCode"] == "0:0", job.log()
    assert (job.end(0).code, job.end(0).requeued, facts["Restarts"]) == (75, True, "1")
    crawl.check(reference)
    assert crawl.site.asked_again() == {}


def test_where_time_runs_out_without_a_warning_the_next_attempt_does_the_rest(
    slurm: Cluster, crawl: Crawl, reference: Crawl
) -> None:
    """A site may set another signal, and one that comes while Python starts is not heard."""
    crawl.site.delay = 5.0
    # SLURM ends it between one and two minutes after its start; all units would take more than two
    job = submit(slurm, crawl.folder, "--time=1", "--signal=B:URG@1", arguments=[f"--config={crawl.config}"])
    job.under_way(crawl, units=1)
    job.await_requeue(seconds=240)
    crawl.note()
    crawl.site.delay = 0.0
    assert job.wait()["ExitCode"] == "0:0", job.log()
    assert (job.end(0).code, job.end(0).requeued) == (75, True)
    crawl.check(reference)


def test_a_displaced_job_goes_on_when_its_nodes_are_free(
    slurm: Cluster, crawl: Crawl, reference: Crawl
) -> None:
    job = submit(slurm, crawl.folder, "--nodes=2", "--exclusive", arguments=[f"--config={crawl.config}"])
    job.under_way(crawl)
    urgent = slurm.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    )
    assert slurm.wait(urgent, seconds=90)["JobState"] == "COMPLETED"
    crawl.note()
    crawl.site.delay = 0.0
    job.await_requeue()
    facts = job.wait()
    assert (facts["ExitCode"], facts["Restarts"]) == ("0:0", "1"), job.log()
    assert (job.end(0).code, job.end(0).requeued) == (75, False), "SLURM itself has requeued it"
    crawl.check(reference)


@pytest.mark.prove_ci
def test_a_finished_step_starts_no_ray(slurm: Cluster, crawl: Crawl, reference: Crawl) -> None:
    crawl.site.delay = 0.0
    crawl.here()
    crawl.note()
    job = submit(slurm, crawl.folder, "--nodes=2", arguments=[f"--config={crawl.config}"])
    assert job.wait()["ExitCode"] == "0:0", job.log()
    assert "nothing to do" in job.log()
    assert not list(crawl.run.glob("jobs/*/ray-*"))
    crawl.check(reference)
    end = job.end()
    assert end.ended - end.began < 30
    other = submit(slurm, crawl.folder, arguments=[f"--config={crawl.config}", "--image_size=32"])
    assert other.wait()["ExitCode"] == "2:0", other.log()
    assert "image_size" in other.log()
    assert not list(crawl.run.glob("jobs/*/ray-*"))


def test_a_wrong_option_starts_no_ray(slurm: Cluster, crawl: Crawl) -> None:
    job = submit(slurm, crawl.folder, arguments=[f"--config={crawl.config}", "--image_size=large"])
    assert job.wait()["ExitCode"] == "2:0", job.log()
    assert "image_size" in job.log()
    assert (job.end().code, job.end().requeued) == (2, False)
    assert not list(crawl.run.glob("jobs/*/ray-*"))


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """The configuration of a `discover` over archives one of which is none."""
    folder = tmp_path / AWKWARD
    write_archives(World(root=str(folder), port=1, model=""))
    (folder / "web" / "3.warc.gz").write_bytes(b"no archive" * 100)
    options = {"input": f"{folder}/web/*.warc.gz", "rules": "none", "output": str(folder / "out")}
    (folder / "discover.yaml").write_text(yaml.safe_dump(options))
    return folder


def test_poison_units_fail_a_job_unless_so_many_may(slurm: Cluster, poisoned: Path) -> None:
    arguments = ["--config", "discover.yaml"]
    strict = submit(slurm, poisoned, "--hold", verb="discover", arguments=arguments)
    never = after(slurm, strict)
    slurm.command("scontrol", "release", str(strict.id))
    facts = strict.wait()
    assert (facts["ExitCode"], facts["Restarts"]) == ("1:0", "0"), strict.log()
    assert "unit 3 failed" in strict.log()
    assert (strict.end().code, strict.end().requeued) == (1, False)
    assert slurm.wait(never)["JobState"] == "CANCELLED"

    lenient = submit(
        slurm, poisoned, "--hold", verb="discover", arguments=[*arguments, "--allow-failed", "1"]
    )
    then = after(slurm, lenient)
    slurm.command("scontrol", "release", str(lenient.id))
    assert lenient.wait()["ExitCode"] == "0:0", lenient.log()
    assert slurm.wait(then)["JobState"] == "COMPLETED"
    assert manifest.list_quarantined(str(poisoned / "out")) == {3}
    assert not processes(lenient.id)


def after(slurm: Cluster, job: Job) -> int:
    words = [f"--dependency=afterok:{job.id}", "--kill-on-invalid-dep=yes", "--output=/dev/null"]
    return slurm.submit(*words, "--wrap=true")
