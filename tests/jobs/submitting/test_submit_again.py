"""What is submitted of a chain of which some is done, waits, runs or has failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import remaining
from jobs.chain import Step, load_chain
from jobs.slurm import books
from jobs.slurm.books import Submitted
from pipeline import commit, manifest, storage
from pipeline.errors import ConfigError
from pipeline.planning import make_plan
from tests.jobs.submitting.chains import Run, Write, end_well, files, run_dir, submit
from tests.slurm.fake import FakeSlurm


def test_what_is_done_is_not_submitted_again(
    write: Write, run_step: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write(["dedup", "pack", "report"])
    run_step(chain, "dedup")
    assert submit(chain) == 0
    assert [slurm.options(n)["--job-name"] for n in (1, 2)] == ["pairmill.pack", "pairmill.report"]
    assert "--dependency" not in slurm.options(1)
    assert capsys.readouterr().out.splitlines()[1].split() == ["dedup", "-", "done:", "20", "units"]

    run_step(chain, "pack")
    end_well(chain, 1)
    (Path(chain).parent / "report.html").touch()
    before = files(Path(chain).parent / "shards")
    assert submit(chain) == 0
    assert len(slurm.jobs) == 2
    assert "nothing to submit" in capsys.readouterr().out
    assert files(Path(chain).parent / "shards") == before

    # one file less is one unit to do, and the report is about to be outdated
    (Path(chain).parent / "shards/00000001.tar").unlink()
    assert submit(chain) == 0
    assert [slurm.options(n)["--job-name"] for n in (3, 4)] == ["pairmill.pack", "pairmill.report"]


def test_a_folder_whose_last_job_was_killed_is_finished(
    write: Write, run_step: Run, slurm: FakeSlurm
) -> None:
    """All units stand, but the indexes over them may not."""
    chain = write(["dedup", "pack", "clip"], slurm={"pack": {"array": 2}})
    run_step(chain, "dedup")
    assert submit(chain) == 0
    run_step(chain, "pack")
    assert submit(chain, "--only", "pack") == 0
    words, finish = slurm.options(1), slurm.options(4)
    assert words["--array"] == "0-1"
    assert "--array" not in finish
    assert "--dependency" not in finish
    end_well(chain, 4, code=1)
    assert submit(chain, "--only", "pack") == 0
    assert len(slurm.jobs) == 5
    end_well(chain, 5)
    assert submit(chain, "--only", "pack") == 0
    assert len(slurm.jobs) == 5


def test_jobs_that_wait_or_run_are_not_submitted_again(
    write: Write, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write(["dedup", "pack", "clip"])
    assert submit(chain) == 0
    slurm.set_queue(j1="RUNNING", j2="PENDING", j3="CANCELLED")
    before = files(run_dir(chain) / "steps")
    assert submit(chain) == 0
    assert [slurm.options(4)[o] for o in ("--job-name", "--dependency")] == ["pairmill.clip", "afterok:2"]
    assert len(slurm.jobs) == 4
    after = files(run_dir(chain) / "steps")
    assert {k: v for k, v in after.items() if k != "clip.yaml"} == {
        k: v for k, v in before.items() if k != "clip.yaml"
    }
    assert "job 1 is running already" in capsys.readouterr().out

    # a job that is requeued reads its file again, so that must stay
    text = (run_dir(chain) / "steps/pack.yaml").read_text()
    assert submit(chain, "--pack.group", "2") == 2
    said = capsys.readouterr().err
    assert "job 2 waits or runs with other options (group 1 -> 2)" in said
    assert "pairmill cancel" in said
    assert (run_dir(chain) / "steps/pack.yaml").read_text() == text
    assert len(slurm.jobs) == 4


def test_jobs_that_wait_for_one_that_has_failed_give_way(write: Write, slurm: FakeSlurm) -> None:
    """SLURM takes them out within a minute or so; who submits again meanwhile must not rely on them."""
    chain = write(["dedup", "pack", "clip"])
    assert submit(chain) == 0
    slurm.set_queue(j1="FAILED", j2="PENDING:Dependency", j3="PENDING:Dependency")
    assert submit(chain, "--pack.group", "2") == 0
    assert slurm.cancelled == ["2", "3"]
    assert [slurm.options(n).get("--dependency") for n in (4, 5, 6)] == [None, "afterok:4", "afterok:5"]
    slurm.set_queue(j4="COMPLETED", j5="RUNNING", j6="PENDING:DependencyNeverSatisfied")
    assert submit(chain, "--pack.group", "2", "--from", "pack") == 0
    assert slurm.cancelled == ["2", "3", "6"]
    assert slurm.options(7)["--dependency"] == "afterok:5"


def test_a_path_that_has_come_to_exist_is_no_other_option(
    write: Write, run_step: Run, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Relative paths are saved as absolute ones once they exist."""
    monkeypatch.chdir(tmp_path)
    chain = write(["dedup", "pack"])
    assert submit(chain, "--set.root", "root") == 0
    assert yaml.safe_load((run_dir(chain) / "steps/pack.yaml").read_text())["columns"] == [
        "root/columns/dedup"
    ]
    slurm.set_queue(j1="COMPLETED", j2="RUNNING")
    run_step(chain, "dedup")
    assert submit(chain, "--set.root", "root") == 0
    assert len(slurm.jobs) == 2


def test_an_array_that_lost_the_job_behind_it(write: Write, run_step: Run, slurm: FakeSlurm) -> None:
    chain = write(["dedup", "pack", "clip"], slurm={"pack": {"array": 2}})
    run_step(chain, "dedup")
    books.note_submitted(run_dir(chain), Submitted(step="pack", verb="pack", job=7, tasks=2))
    slurm.set_queue(j7_0="RUNNING", j7_1="PENDING")
    assert submit(chain) == 0
    assert slurm.options(1)["--dependency"] == "afterok:7"
    assert slurm.options(1)["--job-name"] == "pairmill.pack.finish"
    assert slurm.options(2)["--dependency"] == "afterok:1"


def test_dependencies_reach_over_steps_that_are_done(write: Write, run_step: Run, slurm: FakeSlurm) -> None:
    other = {"job": "dedup", "input": "{root}/images", "output": "{root}/columns/other"}
    chain = write(["other", "dedup", "pack"], other=other)
    run_step(chain, "dedup")
    assert submit(chain) == 0
    assert [slurm.options(n)["--job-name"] for n in (1, 2)] == ["pairmill.other", "pairmill.pack"]
    assert slurm.options(2)["--dependency"] == "afterok:1"


def test_quarantined_units_within_what_is_allowed_are_done(
    write: Write, run_step: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write(["dedup", "pack"])
    run_step(chain, "dedup")
    run_step(chain, "pack")
    shards = Path(chain).parent / "shards"
    (shards / "00000001.tar").unlink()
    storage.write_bytes(manifest.quarantine_url(str(shards), 1), b"{}")
    assert submit(chain, "--pack.allow_failed", "1") == 0
    assert "done: 2 units, 1 quarantined, 1 allowed" in capsys.readouterr().out
    assert not slurm.jobs
    assert submit(chain) == 0
    assert len(slurm.jobs) == 1


def test_what_was_made_differently_is_refused_before_anything_is_submitted(
    write: Write, run_step: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write(["dedup", "pack"])
    run_step(chain, "dedup")
    run_step(chain, "pack")
    assert submit(chain, "--pack.where", "width > 3") == 2
    assert "step pack: " in capsys.readouterr().err
    assert not slurm.jobs
    assert submit(chain, "--pack.where", "width > 3", "--overwrite") == 0
    assert len(slurm.jobs) == 1


def test_looking_writes_nothing(write: Write, run_step: Run) -> None:
    chain = write(["dedup"])
    (step,) = load_chain(chain)
    root = Path(chain).parent
    before = files(root)
    stage, folder = remaining.stages_of(step)[0]
    assert len(make_plan(stage, folder, look=True).todo) == 2
    assert remaining.look(step) == remaining.Remaining(done=False, units=2, left=2)
    assert files(root) == before
    run_step(chain, "dedup")
    pending = Path(commit.pending_folder(step.output)) / "00000001-x"
    pending.mkdir(parents=True)
    (pending / commit.INTENT).write_text("{}")
    assert remaining.look(step).left == 1  # a replacement that a crash has cut off


def test_neither_ray_nor_torch_is_needed(write: Write, run_step: Run) -> None:
    chain = write()
    run_step(chain, "dedup")
    run_step(chain, "pack")
    program = (
        "import sys; from jobs import cli; code = cli.main(sys.argv[1:]); "
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "submit", chain, "--dry-run"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


def test_training_evaluation_and_report_are_known_when_done(
    write: Write, run_step: Run, slurm: FakeSlurm
) -> None:
    from jobs.evaluate import MARK, evaluation_mark
    from jobs.train import input_fingerprints
    from models.training.rundir import finish_run, prepare_run

    chain = write()
    root = Path(chain).parent
    run_step(chain, "dedup")
    run_step(chain, "pack")
    steps = {step.name: step for step in load_chain(chain)}
    config = steps["clip"].config
    prepare_run(config, inputs=input_fingerprints(config))
    assert not remaining.look(steps["clip"]).done
    (root / "runs/clip/model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (root / "runs/clip/model" / name).write_text("{}")
    finish_run(root / "runs/clip")
    assert remaining.look(steps["clip"]).done
    with pytest.raises(ConfigError, match=r"step clip: .* made differently"):
        remaining.look(_changed(chain, "--clip.seed", "5"))

    assert not remaining.look(steps["evaluate"]).done
    mark = evaluation_mark(steps["evaluate"].config, root / "runs/clip/model", {})
    (root / "runs/clip/eval").mkdir()
    (root / "runs/clip/eval/retrieval.json").write_text("{}")
    (root / "runs/clip/eval" / MARK).write_text(json.dumps({**mark, "results": ["retrieval"]}))
    assert remaining.look(steps["evaluate"]).done
    assert submit(chain) == 0
    assert [slurm.options(n)["--job-name"] for n in range(1, len(slurm.jobs) + 1)] == ["pairmill.report"]


def _changed(chain: str, option: str, value: str) -> Step:
    step, _, name = option.removeprefix("--").partition(".")
    (found,) = (s for s in load_chain(chain, overrides={step: [f"--{name}={value}"]}) if s.name == step)
    return found
