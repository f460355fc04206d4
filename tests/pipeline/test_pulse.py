"""Pulses: seen while a run goes on, gone with it, and never in its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import locks, manifest, pulse, storage
from pipeline.locks import BusyError
from pipeline.pulse import Pulse
from pipeline.verify import verify

ROOT = Path(__file__).parents[2]


def _until(found: Callable[[], Any], seconds: float = 20) -> Any:
    limit = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return answer


def _names(output: str) -> list[str]:
    return storage.list_names(pulse.folder(output))


def _plant(output: str, name: str = "node7-11-abc.json", **changes: Any) -> None:
    """A pulse as another process would have left it."""
    with pulse.beating(output, "toy") as beat:
        facts = {**beat.facts, "alive": time.time(), **changes}
    storage.write_bytes(storage.join(pulse.folder(output), name), json.dumps(facts).encode())


def test_it_says_how_far_the_run_is_and_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.05)
    output = str(tmp_path / "out")
    with pulse.beating(output, "crawl", units=9, first=2, task="1/4") as beat:
        (first,) = _until(lambda: pulse.living(output))
        assert (first.stage, first.units, first.first, first.task, first.done) == ("crawl", 9, 2, "1/4", 0)
        assert (first.rate, first.working, first.left) == (0.0, 0.0, 7)
        beat.tell(done=4, running=2, failed=5, quarantined=1)
        (now,) = _until(lambda: [p for p in pulse.living(output) if p.done])
        assert (now.done, now.running, now.failed, now.quarantined, now.left) == (4, 2, 5, 1, 2)
        assert now.began <= now.working <= now.alive
        later = _until(lambda: [p for p in pulse.living(output) if p.alive > now.alive])
        assert later[0].rate > 0
    assert not _names(output)


def test_it_goes_with_a_run_that_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with pulse.beating(str(tmp_path), "crawl"):
            _until(lambda: _names(str(tmp_path)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not _names(str(tmp_path))


def test_units_a_second_since_the_first_one_was_begun() -> None:
    run = Pulse(stage="crawl", began=0, working=100, alive=120, done=5, units=20, first=10, quarantined=1)
    assert run.rate == 0.25
    assert run.left == 4


@pytest.mark.parametrize(
    ("environment", "job", "restart"),
    [
        ({}, "", 0),
        ({"SLURM_RESTART_COUNT": "3"}, "", 0),
        ({"SLURM_JOB_ID": "17"}, "17", 0),
        ({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2"}, "17", 2),
        ({"SLURM_JOB_ID": "21", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, "17_3", 0),
    ],
)
def test_which_job_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], job: str, restart: int
) -> None:
    for name in ("JOB_ID", "RESTART_COUNT", "ARRAY_JOB_ID", "ARRAY_TASK_ID"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pulse.beating(str(tmp_path), "crawl") as beat:
        assert (beat.facts["job"], beat.facts["restart"]) == (job, restart)


@pytest.mark.parametrize(
    ("changes", "lives"),
    [
        ({}, True),
        ({"process": [os.getppid(), "1"]}, False),  # a number that was given out again
        ({"machine": "another"}, True),
        ({"machine": "another", "alive": time.time() - 2 * pulse.STALE}, False),
        ({"alive": time.time() - 2 * pulse.STALE}, False),  # it lives, and does nothing
    ],
)
def test_whose_pulse_counts(tmp_path: Path, changes: Mapping[str, Any], lives: bool) -> None:
    output = str(tmp_path)
    _plant(output, **changes)
    (tmp_path / "_pairmill/running/.node7-11-abc.json.pairmill-tmp-0").touch()
    assert bool(pulse.living(output)) is lives
    assert _names(output)  # looking takes nothing away
    pulse.sweep(output)
    assert bool(list((tmp_path / "_pairmill/running").iterdir())) is lives


def test_a_killed_run_is_not_at_work(tmp_path: Path) -> None:
    output = str(tmp_path)
    script = (
        "import sys, time; from pipeline import pulse\n"
        "with pulse.beating(sys.argv[1], 'crawl'): print('at work', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, output], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        _until(lambda: pulse.living(output))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _names(output)
    assert not pulse.living(output)
    pulse.sweep(output)
    assert not _names(output)


def test_one_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.01)
    (tmp_path / "_pairmill").mkdir()
    (tmp_path / "_pairmill/running").touch()  # a file where the folder should be
    with pulse.beating(str(tmp_path), "crawl") as beat:
        _until(lambda: beat.failures > 3)
        beat.tell(done=1, running=1, failed=0, quarantined=0)
    assert len([r for r in caplog.records if "does not see this run" in r.message]) == 1
    assert pulse.living(str(tmp_path)) == []


def test_a_storage_that_does_not_answer_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "PATIENCE", 0.1)
    answers = threading.Event()
    monkeypatch.setattr(storage, "write_bytes", lambda url, data: answers.wait(60))
    began = time.monotonic()
    with pulse.beating(str(tmp_path), "crawl") as beat:
        beat.tell(done=1, running=1, failed=0, quarantined=0)
    assert time.monotonic() - began < 30
    answers.set()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"stage": "crawl"}'])
def test_what_is_no_pulse_is_left_alone(tmp_path: Path, text: bytes) -> None:
    storage.write_bytes(storage.join(pulse.folder(str(tmp_path)), "x.json"), text)
    assert pulse.living(str(tmp_path)) == []
    pulse.sweep(str(tmp_path))


def test_nobody_takes_a_pulse_for_output(tmp_path: Path) -> None:
    """Neither listings, nor verify, nor the lock of the run see the folder."""
    output = str(tmp_path)
    (tmp_path / "_pairmill/manifests").mkdir(parents=True)
    before = verify(output)
    _plant(output)
    assert verify(output) == before
    assert (manifest.list_done(output), manifest.list_quarantined(output), locks.runs(output)) == (
        {},
        set(),
        [],
    )
    assert storage.list_names(output) == []
    with locks.run(output, {"stage": "toy"}), pytest.raises(BusyError), locks.run(output, {}, patience=0):
        pass
