"""`pairmill status` on a real SLURM: a chain in mid-flight, its jobs made by hand, and its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.slurm import books
from jobs.slurm.books import End, Submitted
from pipeline import pulse
from tests.jobs.status_world import folder_of
from tests.slurm.cluster import NODES, Cluster

CHAIN = """
root: {root}
steps:
  discover: {{input: "{{root}}/web/*.gz", output: "{{root}}/candidates"}}
  crawl: {{input: "{{root}}/candidates", output: "{{root}}/images"}}
  trusted: {{job: crawl, input: "{{root}}/list.parquet", output: "{{root}}/trusted"}}
  score: {{input: "{{root}}/trusted", output: "{{root}}/columns/clip"}}
  pack: {{input: "{{root}}/images", output: "{{root}}/shards"}}
"""
#: a driver in the midst of its units, which ends when somebody says so
DRIVER = """\
import sys, time
from pathlib import Path
from pipeline import pulse
pulse.EVERY = 0.5
output, flag = sys.argv[1], Path(sys.argv[2])
with pulse.beating(output, "crawl", units=30, first=5) as beat:
    beat.tell(done=0, running=2, failed=0, quarantined=0)
    time.sleep(1)
    beat.tell(done=5, running=2, failed=1, quarantined=0)
    while not flag.exists():
        time.sleep(0.1)
"""


@pytest.mark.prove
@pytest.mark.prove_ci
def test_a_chain_in_mid_flight(slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run, flag = tmp_path / "r o o t", tmp_path / "r o o t" / "slurm", tmp_path / "flag"
    root.mkdir()
    (root / "chain.yaml").write_text(CHAIN.format(root=root))
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "driver.sh").write_text(
        f'#!/bin/sh\nPYTHONPATH={Path(__file__).parents[2]} exec {sys.executable} "$@"\n'
    )
    (tmp_path / "ends.sh").write_text("#!/bin/sh\nexit $1\n")

    def submit(step: str, *words: str, after: tuple[int, ...] = (), **more: Any) -> int:
        waits = f"--dependency=afterok:{':'.join(map(str, after))}"
        options = [waits, "--kill-on-invalid-dep=yes"] if after else []
        job = slurm.submit(*options, f"--output={tmp_path}/log-%j", *words)
        books.note_submitted(run, Submitted(step=step, verb=step, job=job, after=after, **more))
        return job

    def status() -> dict[str, dict[str, Any]]:
        assert cli.main(["status", str(root / "chain.yaml"), "--json"]) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert told["slurm"]["answers"]
        return {step["step"]: step for step in told["steps"]}

    ends = str(tmp_path / "ends.sh")
    driver = (str(tmp_path / "driver.sh"), str(tmp_path / "driver.py"), str(root / "images"), str(flag))
    discover = submit("discover", ends, "0")
    slurm.wait(discover)
    folder_of(root / "candidates", total=4, done=4)
    folder_of(root / "images", total=30, done=10)
    crawl = submit("crawl", *driver, after=(discover,))
    trusted = submit("trusted", "--array=0-1", ends, "1", tasks=2)
    finish = submit("trusted", ends, "0", after=(trusted,), finishes=True)
    score = submit("score", ends, "0", after=(finish,))
    pack = submit("pack", ends, "0", after=(crawl,))
    slurm.wait(score)
    slurm.until(lambda: [p for p in pulse.living(str(root / "images")) if p.done], 30, "the pulse")

    found = status()
    assert {name: step["state"] for name, step in found.items()} == {
        "discover": "done",
        "crawl": "running",
        "trusted": "failed",
        "score": "cancelled",
        "pack": "waiting",
    }
    assert found["discover"]["jobs_told"].startswith(f"{discover} took 0:00:0")
    node = found["crawl"]["jobs"][0]["slurm"][0]["nodes"]
    assert node in NODES
    assert found["crawl"]["jobs_told"].startswith(f"{crawl} on {node} for 0:00:")
    assert found["trusted"]["jobs_told"] == f"{trusted} (2 tasks): 2 failed"
    assert found["trusted"]["remarks"][0].startswith(f"job {trusted}_0 (and 1 more tasks): exit code 1 after")
    assert found["score"]["jobs_told"] == f"{score} CANCELLED because step trusted failed"
    assert found["pack"]["jobs_told"] == f"{pack} waits for crawl ({crawl})"
    at_work = found["crawl"]
    assert (at_work["done"], at_work["total"], at_work["running"], at_work["retried"]) == (10, 30, 2, 1)
    assert at_work["pulses"][0]["job"] == str(crawl)
    assert at_work["rate"] > 0
    assert at_work["left"] == pytest.approx(20 / at_work["rate"])

    slurm.command("scontrol", "requeue", str(crawl))  # the pulse stands, and counts no more
    slurm.until(lambda: slurm.state(crawl) == "PENDING", 30, "the requeued job")
    crawling = status()["crawl"]
    assert (crawling["state"], crawling["pulses"]) == ("waiting", [])
    assert crawling["jobs_told"] == f"{crawl} waits for attempt 2: BeginTime"
    slurm.start_now(crawl)
    slurm.wait(crawl, states=("RUNNING",))
    slurm.until(lambda: status()["crawl"]["running"], 30, "the next attempt's pulse")
    assert status()["crawl"]["jobs_told"].endswith(", attempt 2")
    flag.touch()
    slurm.wait(pack)
    folder_of(root / "images", total=30, done=30)
    folder_of(root / "shards", total=2, done=2)
    found = status()
    assert (found["crawl"]["state"], found["pack"]["state"]) == ("done", "done")
    assert not pulse.living(str(root / "images"))


@pytest.mark.prove
def test_what_slurm_has_forgotten_the_run_folder_knows(
    slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chain.yaml").write_text(CHAIN.format(root=tmp_path))
    run, far = tmp_path / "slurm", 900_000  # no job of this cluster has such a number
    for step, job, after in (
        ("discover", far, ()),
        ("crawl", far + 1, (far,)),
        ("pack", far + 2, (far + 1,)),
    ):
        books.note_submitted(run, Submitted(step=step, verb=step, job=job, after=after))
    for job, code in ((far, 0), (far + 1, 1)):
        end = End(
            job=str(job), restart=0, verb="crawl", code=code, requeued=False, why="", mark="", began=0.0,
            ended=61.0, node="n1",
        )  # fmt: skip
        books.note_end(run, end)
    assert cli.main(["status", str(tmp_path / "chain.yaml")]) == 0
    text = capsys.readouterr().out
    assert f"{far} took 0:01:01" in text
    assert f"{far + 1} exit code 1 after 0:01:01" in text
    assert f"{far + 2} CANCELLED because step crawl failed" in text
