"""Chains on SLURM: which jobs they come to, in which order, with which words. No SLURM is needed."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest
import yaml

from jobs import cli
from jobs.chain import load_chain
from jobs.slurm import books
from jobs.slurm.scripts import scripts_folder
from pipeline.errors import ConfigError
from tests.jobs.submitting.chains import NAMES, STEPS, Run, Write, files, run_dir, submit
from tests.slurm.fake import FakeSlurm


def test_a_dry_run_says_all_and_writes_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chain = write(slurm={"all": {"partition": "cpu"}, "clip": {"nodes": 2, "max_restarts": 7}})
    monkeypatch.setenv("PATH", "/nowhere")
    before = files(tmp_path)
    assert submit(chain, "--dry-run") == 0
    assert files(tmp_path) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# dedup: 2 of 2 units to do"
    assert "# pack: reads what dedup will write" in lines
    commands = {words[2].split("=")[1]: words for words in map(shlex.split, lines) if words[0] == "env"}
    assert list(commands) == NAMES
    run, words = run_dir(chain), commands["clip"]
    assert words == [
        "env", f"PAIRMILL_RUN_DIR={run}", "PAIRMILL_STEP=clip", "PAIRMILL_MAX_RESTARTS=7",
        "sbatch", "--parsable", "--job-name=pairmill.clip", f"--output={run}/logs/clip-%j.log",
        "--dependency=afterok:@pack", "--kill-on-invalid-dep=yes", "--partition=cpu", "--nodes=2",
        str(scripts_folder() / "train.sbatch"), "--config", str(run / "steps/clip.yaml"),
    ]  # fmt: skip


def test_a_dry_run_says_just_what_would_be_submitted(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write(slurm={"all": {"comment": "it is odd: x, y"}, "pack": {"array": 3}})
    words = [chain, "--set.x", "a b", "--report.title=it's $(odd)"]
    assert submit(*words, "--dry-run") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("env")]
    assert submit(*words) == 0
    keys = ["@dedup", "@pack/tasks", "@pack", "@clip", "@evaluate", "@report"]
    for number, line in enumerate(said, 1):
        given, command = (text.strip() for text in line.split(" sbatch ", 1))
        for key in sorted(keys, key=len, reverse=True):
            command = command.replace(f":{key}", f":{keys.index(key) + 1}")
        assert shlex.split(command) == slurm.jobs[number - 1]
        variables = dict(word.split("=", 1) for word in shlex.split(given)[1:])
        assert variables.items() <= slurm.environment(number).items()
    assert len(slurm.jobs) == len(said) == len(keys)

    (slurm.folder / "queue").unlink()  # squeue fails
    capsys.readouterr()
    assert submit(*words) == 1
    assert "squeue" in capsys.readouterr().err
    assert submit(*words, "--dry-run") == 0
    assert capsys.readouterr().out.startswith("# SLURM does not answer")


def test_each_step_is_a_job_that_waits_for_the_one_before(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_EXPORT", "ALL")
    monkeypatch.setenv("SBATCH_ACCOUNT", "vision")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")  # of a job that submits
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    chain = write(slurm={"clip": {"max_restarts": 3, "warn": 300, "time": "1-00:00:00"}})
    assert submit(chain, "--pack.group", "2") == 0
    run = run_dir(chain)
    assert [words[-3:] for words in slurm.jobs] == [
        [str(scripts_folder() / f"{verb}.sbatch"), "--config", str(run / f"steps/{name}.yaml")]
        for name, verb in zip(NAMES, ("dedup", "pack", "train", "evaluate", "report"), strict=True)
    ]
    assert [slurm.options(n).get("--dependency") for n in range(1, 6)] == [
        None, "afterok:1", "afterok:2", "afterok:3", "afterok:4",
    ]  # fmt: skip
    assert slurm.options(3)["--signal"] == "B:USR1@300"
    assert slurm.options(3)["--time"] == "1-00:00:00"
    given = slurm.environment(3)
    assert (given["PAIRMILL_STEP"], given["PAIRMILL_RUN_DIR"]) == ("clip", str(run))
    assert given["PAIRMILL_MAX_RESTARTS"] == "3"
    assert (given["SBATCH_ACCOUNT"], given["SLURM_CONF"]) == ("vision", "/etc/slurm.conf")
    assert not {"SBATCH_EXPORT", "SLURM_ARRAY_TASK_COUNT"} & given.keys()
    assert Path(given["PATH"].split(":")[0], "python").exists()

    file = run / "steps/pack.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert yaml.safe_load(file.read_text())["group"] == 2
    noted = books.read_submitted(run)
    assert [(job.step, job.job, tuple(job.after)) for job in noted] == [
        ("dedup", 1, ()), ("pack", 2, (1,)), ("clip", 3, (2,)), ("evaluate", 4, (3,)), ("report", 5, (4,)),
    ]  # fmt: skip
    assert noted[2].verb == "train"
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:2] == ["step", "job"]
    assert said[3].split() == [
        "clip", "3", "2", "time=1-00:00:00", "signal=B:USR1@300", f"{run}/logs/clip-3.log",
    ]  # fmt: skip


def test_an_array_is_followed_by_a_job_that_finishes_the_folder(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write(["dedup", "pack", "clip"], slurm={"pack": {"array": "16%4", "nodes": 2}})
    assert submit(chain) == 0
    run = run_dir(chain)
    first, second, third = (slurm.options(n) for n in (2, 3, 4))
    assert (first["--array"], first["--dependency"]) == ("0-15%4", "afterok:1")
    assert first["--output"] == f"{run}/logs/pack-%A_%a.log"
    assert first["--nodes"] == "2"
    assert (second["--dependency"], second["--nodes"]) == ("afterok:2", "1")
    assert "--array" not in second
    assert second["--output"] == f"{run}/logs/pack-%j.log"
    assert third["--dependency"] == "afterok:3"
    noted = books.read_submitted(run)
    assert [(j.job, j.tasks, j.finishes) for j in noted if j.step == "pack"] == [
        (2, 16, False), (3, 0, True),
    ]  # fmt: skip
    assert "finishes the folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "words", "message"),
    [
        ("dedup", [], "exchanges between all shards"),
        ("clip", [], "no units to share"),
        ("evaluate", [], "no units to share"),
        ("report", [], "no units to share"),
        ("pack", ["--pack.task", "0/2"], "leave that option"),
        ("pack", ["--pack.top_by", "width", "--pack.top", "1"], ""),
    ],
)
def test_what_cannot_be_an_array(
    write: Write,
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    step: str,
    words: list[str],
    message: str,
) -> None:
    assert submit(write(), f"--slurm.{step}.array", "4", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not slurm.jobs


def test_from_and_only(
    write: Write, run_step: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write()
    run_step(chain, "dedup")
    assert submit(chain, "--from", "pack", "--only", "pack") == 2
    assert submit(chain, "--only", "pack") == 0
    assert len(slurm.jobs) == 1
    slurm.set_queue(j1="PENDING")
    assert submit(chain, "--from", "evaluate") == 2  # nobody makes the model
    assert "runs/clip, which step clip makes: that has not run" in capsys.readouterr().err
    assert len(slurm.jobs) == 1
    assert submit(chain, "--only", "clip") == 0
    assert slurm.options(2)["--dependency"] == "afterok:1"
    assert submit(chain, "--from", "packk") == 2


def test_what_nobody_makes_is_an_error(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(write(["pack"])) == 2
    assert "step pack: " in capsys.readouterr().err
    assert submit(write(["dedup"], dedup={"input": "{root}/nowhere"})) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not slurm.jobs


def test_after_replaces_the_step_before(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    second = {"job": "dedup", "input": "{root}/images", "output": "{root}/columns/again"}
    both = {"columns": ["{root}/columns/dedup", "{root}/columns/again"]}
    names = ["dedup", "again", "pack", "report"]
    chain = write(names, slurm={"again": {"after": []}}, again=second, pack=both)
    assert submit(chain, "--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("env")]
    waits = [
        next((w.partition(":")[2] for w in shlex.split(x) if w.startswith("--dependency")), "") for x in lines
    ]
    # pack waits for the step before it, and for the one that its input comes from
    assert waits == ["", "", "@again:@dedup", "@pack"]
    assert submit(chain, "--slurm.pack.after", "again") == 2
    assert "give `after: [again, dedup]`" in capsys.readouterr().err
    assert submit(chain, "--slurm.dedup.after", "pack") == 2
    assert "no step before this one" in capsys.readouterr().err
    assert not slurm.jobs


def test_a_refusal_in_the_middle_leaves_what_was_submitted(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write()
    slurm.refuse(3)
    assert submit(chain) == 1
    said = capsys.readouterr()
    assert (
        "step clip: sbatch refused it: sbatch: error: Batch job submission failed: Invalid account"
        in said.err
    )
    assert said.out.splitlines()[3].split() == ["clip", "-", "not", "submitted"]
    assert [job.step for job in books.read_submitted(run_dir(chain))] == ["dedup", "pack"]
    slurm.refuse(0)
    slurm.set_queue(j1="RUNNING", j2="PENDING")
    assert submit(chain) == 0
    assert slurm.options(3)["--dependency"] == "afterok:2"
    assert len(slurm.jobs) == 5


def test_without_slurm(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    chain = write()
    assert submit(chain) == 2
    assert "sbatch is not on the PATH" in capsys.readouterr().err
    assert cli.main(["cancel", chain]) == 0  # nothing was ever submitted


def test_run_checks_the_section_and_leaves_it(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", write(["dedup"], slurm={"dedup": {"wrap": "x"}})]) == 2
    assert "unknown option 'wrap'" in capsys.readouterr().err
    (step,) = load_chain(
        write(["dedup"], slurm={"dedup": {"nodes": 2}}), overrides={"slurm": ["--all.mem=1G"]}
    )
    assert step.slurm.flags == {"mem": "1G", "nodes": "2"}


@pytest.mark.parametrize("name", ["all", "set", "slurm"])
def test_names_that_stand_for_something_else(write: Write, name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be called '{name}'"):
        load_chain(write([name], **{name: {**STEPS["dedup"], "job": "dedup"}}))


def test_cancel(write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    chain = write(["dedup", "pack", "clip", "evaluate"], slurm={"pack": {"array": 2}})
    assert submit(chain) == 0
    slurm.set_queue(j1="RUNNING", j2_0="RUNNING", j2_1="PENDING", j3="PENDING", j4="PENDING", j5="COMPLETED")
    capsys.readouterr()
    assert cli.main(["cancel", chain, "packk"]) == 2
    assert cli.main(["cancel", "--set.x", "y", chain, "pack"]) == 0
    assert slurm.cancelled == ["2", "3", "4"]
    assert capsys.readouterr().out.splitlines() == [
        "cancelled 2 pack (running)", "cancelled 3 pack (pending)", "cancelled 4 clip (pending)",
    ]  # fmt: skip
    slurm.set_queue(j1="CANCELLED")
    # also a chain whose options are wrong by now
    Path(chain).write_text(Path(chain).read_text().replace("group", "grroup"))
    assert cli.main(["cancel", chain]) == 0
    assert "no job of the chain waits or runs" in capsys.readouterr().out
    assert len(slurm.cancelled) == 3


def test_two_at_a_time_are_one_too_many(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    chain = write()
    run_dir(chain).mkdir()
    with (run_dir(chain) / ".submit").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert submit(chain) == 2
    assert "another `pairmill submit` is at work" in capsys.readouterr().err
    assert not slurm.jobs


def test_scripts_of_ones_own(
    write: Write, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own scripts"
    own.mkdir()
    (own / "dedup.sbatch").write_text("#!/bin/sh\n")
    assert submit(write(["dedup"]), "--scripts", str(own)) == 0
    assert slurm.jobs[0][-3] == str(own / "dedup.sbatch")
    assert submit(write(["dedup", "pack"]), "--scripts", str(own), "--dry-run") == 2
    assert "has no pack.sbatch; it has scripts for: dedup" in capsys.readouterr().err
