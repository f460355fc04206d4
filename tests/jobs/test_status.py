"""`pairmill status`: what is said of a step, by its folder, its runs and its jobs; the screen; JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs import cli, standing
from jobs.progress_table import join, rate_told, render
from jobs.slurm import books, knowledge, queue
from jobs.slurm.books import End, Submitted
from jobs.slurm.queue import JobState, QueueError
from jobs.status import collect
from pipeline import commit, pulse, storage
from tests.jobs.status_world import folder_of

CHAIN = """
root: {root}
steps:
  discover: {{input: "{{root}}/web/*.gz", output: "{{root}}/candidates"}}
  crawl: {{input: "{{root}}/candidates", output: "{{root}}/images", allow_failed: 1}}
  dedup: {{input: "{{root}}/images", output: "{{root}}/columns/dedup"}}
  pack: {{input: "{{root}}/images", output: "{{root}}/shards"}}
  albef: {{job: train, shards: "{{root}}/shards", output: "{{root}}/runs/albef", recipe: albef, size: tiny,
          epochs: 1, batch_size: 8}}
  report: {{shards: "{{root}}/shards", output: "{{root}}/report.html"}}
"""

Say = Callable[[Sequence[JobState]], None]


@pytest.fixture
def chain(tmp_path: Path) -> str:
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN.format(root=tmp_path))
    return str(path)


@pytest.fixture(autouse=True)
def slurm_says(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Sets what SLURM answers; at first there is none."""

    def absent(ids: Sequence[int]) -> dict[str, JobState]:
        raise QueueError("squeue is not on the PATH: no SLURM on this machine")

    monkeypatch.setattr(queue, "ask", absent)
    return lambda states: monkeypatch.setattr(queue, "ask", lambda ids: {s.job: s for s in states})


def _run_under_way(output: Path, **changes: Any) -> None:
    """A pulse as a run on another machine leaves it: ten units since it began 100 s ago."""
    with pulse.beating(str(output), "crawl") as beat:
        now = time.time()
        facts = {
            **beat.facts, "machine": "another", "alive": now, "working": now - 100, "units": 40, "done": 10,
            "running": 3, **changes,
        }  # fmt: skip
    name = f"{changes.get('job', '')}-{changes.get('task', '').replace('/', '-')}.json"
    storage.write_bytes(storage.join(pulse.folder(str(output)), name), json.dumps(facts).encode())


def _submitted(run: Path, step: str, job: int, **more: Any) -> None:
    books.note_submitted(run, Submitted(step=step, verb=step, job=job, **more))


def _ended(
    run: Path, job: str, code: int, *, restart: int = 0, requeued: bool = False, why: str = ""
) -> None:
    end = End(
        job=job, restart=restart, verb="crawl", code=code, requeued=requeued, why=why, mark="", began=0.0,
        ended=75.0, node="n1",
    )  # fmt: skip
    books.note_end(run, end)


def _cells(chain: str, step: str, **more: Any) -> tuple[str, str]:
    """(state, jobs in words) of a step."""
    (screen,) = collect([chain], **more)
    line = next(line for line in screen.lines if line.standing.name == step)
    return line.word, line.jobs


def _crawl(root: Path) -> tuple[str, str]:
    """(state, jobs in words) of the step `crawl`, without a chain that takes long to parse."""
    jobs = knowledge.look(root / "slurm")
    line = join(standing.of_folder("crawl", str(root / "images"), jobs.lives, allowed=1), jobs)
    return line.word, line.jobs


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ({"total": 0, "done": 0}, "not started"),
        ({"total": 3, "done": 3}, "done"),
        ({"total": 3, "done": 1}, "stopped"),
        ({"total": 3, "done": 2, "quarantined": 1}, "done"),  # one is allowed
        ({"total": 3, "done": 1, "quarantined": 1}, "stopped"),
        ({"total": 3, "done": 1, "quarantined": 2}, "failed"),
    ],
)
def test_what_a_folder_alone_tells(tmp_path: Path, folder: Mapping[str, int], word: str) -> None:
    folder_of(tmp_path / "images", **folder)
    assert _crawl(tmp_path) == (word, "")


def test_a_quarantined_unit_that_is_allowed_is_reported(chain: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "images", total=3, done=2, quarantined=1)
    assert "crawl: 1 unit quarantined, 1 allowed" in render(collect([chain])[0])


def test_an_interrupted_replacement(tmp_path: Path) -> None:
    output = folder_of(tmp_path / "images", total=1, done=1)
    storage.write_bytes(storage.join(commit.pending_folder(output), "00000000-x", commit.INTENT), b"{}")
    (screen,) = collect([output])
    assert screen.lines[0].word == "interrupted"


def test_a_run_under_way_without_slurm(chain: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "images", total=40, done=10)
    _run_under_way(tmp_path / "images", failed=2, quarantined=1)
    (screen,) = collect([chain])
    found = screen.lines[1].standing
    assert (screen.lines[1].word, found.running, found.retried) == ("running", 3, 2)
    assert found.rate == pytest.approx(0.1)
    assert found.left == pytest.approx(300)
    assert "10/40" in render(screen)
    assert "6.0/min  0:05:00" in render(screen)


def test_tasks_of_an_array_add_up_and_two_runs_of_the_same_do_not(tmp_path: Path) -> None:
    images = tmp_path / "images"
    output = folder_of(images, total=40, done=40)
    for task in ("0/2", "1/2"):
        _run_under_way(images, units=25, task=task)
    _run_under_way(images, units=25, task="1/2", job="9")
    found = standing.of_folder("images", output)
    assert found.rate == pytest.approx(0.3)
    assert found.left == pytest.approx(30 / 0.3)  # a retry does units that stand


def test_a_part_of_a_step_of_several_stages(chain: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "columns/dedup/_sketch", total=4, done=4)
    assert _cells(chain, "dedup") == ("stopped", "")
    folder_of(tmp_path / "columns/dedup/_resolve", total=8, done=2)
    _run_under_way(tmp_path / "columns/dedup/_resolve")
    (screen,) = collect([chain])
    assert screen.lines[2].word == "running"
    assert "2/8 resolve" in render(screen)
    folder_of(tmp_path / "columns/dedup", total=4, done=4)
    assert _cells(chain, "dedup")[0] == "done"


def test_a_training(chain: str, tmp_path: Path) -> None:
    run = tmp_path / "runs/albef"
    assert _cells(chain, "albef") == ("not started", "")
    run.mkdir(parents=True)
    record: dict[str, Any] = {"state": "running", "semantic": {"batch_size": 8}}
    (run / "run.json").write_text(json.dumps(record))
    assert _cells(chain, "albef") == ("stopped", "")
    rows = [{"step": 10, "samples_per_s": 1.0}, {"step": 1200, "samples_per_s": 16.0}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 13')
    found = standing.of_training("albef", run)
    assert (found.word, found.done, found.total, found.rate) == ("stopped", 1200, 0, 0)
    (run / "run.json").write_text(json.dumps({**record, "steps": 2000}))
    _run_under_way(run)
    found = standing.of_training("albef", run)
    assert (found.word, found.done, found.total, found.rate, found.left) == ("running", 1200, 2000, 2, 400)
    assert "1,200/2,000 steps" in render(collect([chain])[0])
    (run / "run.json").write_text(json.dumps({**record, "steps": 2000, "state": "finished"}))
    (screen,) = collect([str(run)])
    assert (screen.lines[0].word, screen.lines[0].standing.done) == ("done", 2000)


def _state(job: str, state: str, **more: Any) -> JobState:
    return JobState(job=job, state=state, **more)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (_state("17", "RUNNING", nodes="n[1-2]", elapsed=723), ("running", "17 on n[1-2] for 0:12:03")),
        (
            _state("17", "RUNNING", nodes="n1", elapsed=90000, restarts=1),
            ("running", "17 on n1 for 1d 1:00:00, attempt 2"),
        ),
        (_state("17", "PENDING", reason="Resources"), ("waiting", "17 waits: Resources")),
        (_state("17", "PENDING", reason="Dependency"), ("waiting", "17 waits for discover (16)")),
        (
            _state("17", "PENDING", reason="BeginTime", restarts=2),
            ("waiting", "17 waits for attempt 3: BeginTime"),
        ),
        (_state("17", "TIMEOUT", elapsed=60, exit="0:0"), ("failed", "17 TIMEOUT after 0:01:00")),
        (_state("17", "FAILED", elapsed=60, exit="2:0"), ("failed", "17 exit code 2 after 0:01:00")),
        (_state("17", "FAILED", elapsed=60, exit="0:9"), ("failed", "17 killed by signal 9 after 0:01:00")),
        (_state("17", "CANCELLED", exit="0:0"), ("cancelled", "17 CANCELLED")),
        (_state("18", "RUNNING"), ("not started", "17 forgotten by SLURM")),
    ],
)
def test_what_slurm_says_of_a_job(
    tmp_path: Path, slurm_says: Say, state: JobState, expected: tuple[str, str]
) -> None:
    run = tmp_path / "slurm"
    _submitted(run, "discover", 16)
    _submitted(run, "crawl", 17, after=(16,))
    slurm_says([state, _state("16", "RUNNING", nodes="n1")])
    assert _crawl(tmp_path) == expected


@pytest.mark.parametrize("killed", [True, False])
def test_cancelled_because_a_step_before_failed(
    chain: str, tmp_path: Path, slurm_says: Say, killed: bool
) -> None:
    """Whether SLURM still says so, or has forgotten them all; and however far before."""
    run = tmp_path / "slurm"
    for step, job, after in (("discover", 16, ()), ("crawl", 17, (16,)), ("pack", 18, (17,))):
        _submitted(run, step, job, after=after)
    _ended(run, "16", 1, why="failed: the log says why")
    cancelled = [_state(job, "CANCELLED", reason="DependencyNeverSatisfied") for job in ("17", "18")]
    slurm_says([_state("16", "FAILED", exit="1:0", elapsed=75), *cancelled] if killed else [])
    assert _cells(chain, "discover") == ("failed", "16 exit code 1 after 0:01:15")
    assert _cells(chain, "crawl") == ("cancelled", "17 CANCELLED because step discover failed")
    assert _cells(chain, "pack") == ("cancelled", "18 CANCELLED because step discover failed")
    text = render(collect([chain])[0])
    assert f"log {run}/logs/discover-16.log" in text
    assert "failed: the log says why" in text


@pytest.mark.parametrize(
    ("requeued", "expected"),
    [
        (False, ("stopped", "17 exit code 75 after 0:01:00")),
        (True, ("failed", "17 killed by signal 9 after 0:01:00, attempt 2")),  # the second said nothing
    ],
)
def test_stopped_or_killed_in_a_later_attempt(
    tmp_path: Path, slurm_says: Say, requeued: bool, expected: tuple[str, str]
) -> None:
    _submitted(tmp_path / "slurm", "crawl", 17)
    _ended(tmp_path / "slurm", "17", 75, requeued=requeued)
    slurm_says([_state("17", "FAILED", elapsed=60, exit="0:9", restarts=int(requeued))])
    assert _crawl(tmp_path) == expected


def test_why_a_job_had_to_begin_again(chain: str, tmp_path: Path, slurm_says: Say) -> None:
    _submitted(tmp_path / "slurm", "crawl", 17)
    _ended(tmp_path / "slurm", "17", 75, requeued=True, why="stopped by a signal, saved; goes on")
    slurm_says([_state("17", "RUNNING", nodes="n1", elapsed=60, restarts=1)])
    text = render(collect([chain])[0])
    assert "crawl: job 17: attempt 1 stopped by a signal, saved; goes on; log" in text
    assert "17 on n1 for 0:01:00, attempt 2" in text


def test_one_that_slurm_keeps_although_it_can_never_start(
    chain: str, tmp_path: Path, slurm_says: Say
) -> None:
    run = tmp_path / "slurm"
    _submitted(run, "discover", 16)
    _submitted(run, "crawl", 17, after=(16,))
    slurm_says(
        [_state("16", "FAILED", exit="1:0"), _state("17", "PENDING", reason="DependencyNeverSatisfied")]
    )
    assert _cells(chain, "crawl")[1] == "17 never starts because step discover failed"


def test_the_tasks_of_an_array_in_one_cell(tmp_path: Path, slurm_says: Say) -> None:
    run = tmp_path / "slurm"
    _submitted(run, "crawl", 16)  # of an earlier time: it counts no more
    _submitted(run, "crawl", 17, tasks=5)
    _submitted(run, "crawl", 22, finishes=True, after=(17,))
    _ended(run, "17_0", 0)  # SLURM has forgotten it
    after = _state("22", "PENDING", reason="Dependency")
    tasks = [
        _state("17_1", "COMPLETED"),
        _state("17_2", "FAILED", exit="1:0", elapsed=9),
        _state("17_3", "RUNNING", nodes="n1"),
    ]
    waiting = _state("17_4", "PENDING", reason="JobArrayTaskLimit")
    slurm_says([*tasks, waiting, after])
    assert _crawl(tmp_path) == ("running", "17 (5 tasks): 2 done, 1 running, 1 waiting, 1 failed")
    slurm_says([after, *(_state(f"17_{n}", "PENDING", reason="Priority") for n in range(5))])
    assert _crawl(tmp_path) == ("waiting", "17 (5 tasks) waits: Priority")
    after = _state("22", "PENDING", reason="Priority")
    slurm_says([after, *(_state(f"17_{n}", "COMPLETED") for n in range(5))])
    assert _crawl(tmp_path) == ("waiting", "17 (5 tasks): 5 done; then 22 waits: Priority")
    slurm_says([_state("22", "COMPLETED"), *(_state(f"17_{n}", "COMPLETED") for n in range(5))])
    folder_of(tmp_path / "images", total=3, done=3)
    assert _crawl(tmp_path) == ("done", "17 (5 tasks): 5 done")


def test_a_slurm_that_does_not_answer(chain: str, tmp_path: Path) -> None:
    """The folders and the run folder tell what they know."""
    run = tmp_path / "slurm"
    for step, job in (("discover", 16), ("crawl", 17), ("dedup", 18), ("pack", 19), ("albef", 20)):
        _submitted(run, step, job)
    folder_of(tmp_path / "candidates", total=1, done=1)
    _ended(run, "16", 0)
    _ended(run, "17", 75, requeued=True)
    _ended(run, "17", 1, restart=1)
    _ended(run, "18", 75, requeued=True)
    (screen,) = collect([chain])
    assert [line.word for line in screen.lines] == [
        *("done", "failed", "submitted", "submitted", "submitted", "not started"),
    ]
    assert [line.jobs for line in screen.lines] == [
        *("16 took 0:01:15", "17 exit code 1 after 0:01:15, attempt 2", "18 of unknown state, attempt 2"),
        *("19 of unknown state", "20 of unknown state", ""),
    ]
    assert "\nSLURM does not answer: squeue is not on the PATH" in render(screen)


def test_without_jobs_slurm_is_not_asked(chain: str) -> None:
    (screen,) = collect([chain])
    assert (screen.silent, screen.run) == ("", None)
    assert "  job" not in render(screen)


def test_a_pulse_of_a_job_that_has_ended_counts_for_nothing(tmp_path: Path, slurm_says: Say) -> None:
    run = tmp_path / "slurm"
    _submitted(run, "crawl", 17)
    folder_of(tmp_path / "images", total=40, done=10)
    _run_under_way(tmp_path / "images", job="17", restart=0)
    slurm_says([_state("17", "NODE_FAIL", nodes="n1", elapsed=60)])
    assert _crawl(tmp_path) == ("failed", "17 NODE_FAIL after 0:01:00")
    slurm_says([_state("17", "PENDING", reason="BeginTime", restarts=1)])
    assert _crawl(tmp_path)[0] == "waiting"
    slurm_says([_state("17", "RUNNING", nodes="n1", elapsed=60)])
    jobs = knowledge.look(run)
    assert standing.of_folder("crawl", str(tmp_path / "images"), jobs.lives).running == 3


def test_what_is_done_since_is_done(chain: str, tmp_path: Path, slurm_says: Say) -> None:
    """A job has failed, and somebody ran the step by hand."""
    _submitted(tmp_path / "slurm", "crawl", 17)
    folder_of(tmp_path / "images", total=2, done=2)
    slurm_says([_state("17", "FAILED", exit="1:0", elapsed=1)])
    assert _cells(chain, "crawl") == ("done", "17 exit code 1 after 0:00:01")
    assert "log" not in render(collect([chain])[0])


def test_the_command(chain: str, tmp_path: Path, slurm_says: Say, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    folder_of(elsewhere / "candidates", total=2, done=1)
    _run_under_way(elsewhere / "candidates")
    _submitted(run, "discover", 16)
    slurm_says([_state("16", "RUNNING", nodes="n1", elapsed=5)])
    for root in (["--set", f"root={elsewhere}"], [f"--set.root={elsewhere}"], ["--set.root", str(elsewhere)]):
        assert cli.main(["status", chain, *root, "--run_dir", str(run)]) == 0
        text = capsys.readouterr().out
        assert "1/2" in text
        assert "16 on n1 for 0:00:05" in text
    assert cli.main(["status", chain, f"--set.root={elsewhere}", "--run_dir", str(run), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["run_dir"] == str(run)
    assert told["slurm"] == {"answers": True, "error": ""}
    step = told["steps"][0]
    assert (step["step"], step["state"], step["done"], step["total"]) == ("discover", "running", 1, 2)
    assert step["rows"] == {"in": 10, "out": 7, "dropped": {"opt_out": 1, "timeout": 2}}
    assert step["jobs"][0]["slurm"][0]["nodes"] == "n1"
    assert step["pulses"][0]["done"] == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.yaml"], "missing.yaml"),
        (["CHAIN", "--set", "root"], "NAME=VALUE"),
        (["CHAIN", "--crawl.image_sise", "3"], "image_sise"),
        (["CHAIN", "--jsn"], "--jsn"),
    ],
)
def test_bad_configuration(
    chain: str, words: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", *(chain if word == "CHAIN" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_usual_chain_fits_a_screen(chain: str, tmp_path: Path, slurm_says: Say) -> None:
    run = tmp_path / "slurm"
    folder_of(tmp_path / "images", total=1200, done=412)
    _run_under_way(tmp_path / "images", failed=2)
    for step, job, after in (("discover", 116, ()), ("crawl", 117, (116,)), ("pack", 118, (117,))):
        _submitted(run, step, job, after=after)
    slurm_says(
        [
            _state("116", "COMPLETED", elapsed=60),
            _state("117", "RUNNING", nodes="n[1-8]", elapsed=3600, restarts=1),
            _state("118", "PENDING", reason="Dependency"),
        ]
    )
    text = render(collect([chain])[0]).partition("\n\n")[2]
    assert max(map(len, text.splitlines())) <= 120, text


def test_rates_are_numbers_one_can_grasp() -> None:
    assert [rate_told(rate) for rate in (0, 1 / 7200, 0.01, 0.5, 3.25, 1234.5)] == [
        *("-", "0.5/h", "36.0/h", "30.0/min", "3.2/s", "1,234/s"),
    ]


def test_torch_and_ray_are_not_imported(chain: str) -> None:
    script = (
        "import sys; from jobs import cli; code = cli.main(['status', sys.argv[1]]);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'ray')))"
    )
    done = subprocess.run([sys.executable, "-c", script, chain], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0
