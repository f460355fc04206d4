"""Chains on SLURM: which jobs they come to, in which order, with which words. No SLURM is needed."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli, remaining
from jobs.chain import Step, load_chain
from jobs.slurm import books
from jobs.slurm.books import Submitted
from jobs.slurm.scripts import scripts_folder
from pipeline import commit, manifest, storage
from pipeline.errors import ConfigError
from pipeline.planning import make_plan
from tests.pipeline.folders import crawled, make_images, run_here
from tests.slurm.fake import FakeSlurm, install

STEPS: dict[str, dict[str, Any]] = {
    "dedup": {"input": "{root}/images", "output": "{root}/columns/dedup"},
    "pack": {
        "input": "{root}/images", "columns": ["{root}/columns/dedup"], "where": "duplicate_of IS NULL",
        "output": "{root}/shards", "group": 1,
    },
    "clip": {
        "job": "train", "shards": "{root}/shards", "output": "{root}/runs/clip", "recipe": "clip",
        "size": "tiny", "steps": 3, "batch_size": 4,
    },
    "evaluate": {"model": "{root}/runs/clip", "shards": "{root}/shards", "pool": 0},
    "report": {"images": "{root}/images", "shards": "{root}/shards", "output": "{root}/report.html"},
}  # fmt: skip
NAMES = list(STEPS)


@pytest.fixture(scope="module", autouse=True)
def quick_parsers() -> Iterator[None]:
    """Building a parser takes most of the time that a chain takes to be read; here each is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", functools.lru_cache(cli.build_parser))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` of two shards, and beside them what dedup and pack make of these."""
    folder = tmp_path_factory.mktemp("made")
    make_images(folder / "images", {n: [crawled(n, i) for i in range(2)] for n in range(2)})
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"root": str(folder), "steps": {n: STEPS[n] for n in ("dedup", "pack")}}))
    for step in load_chain(str(path)):
        for stage, place in remaining.stages_of(step):
            run_here(stage, place)
        Path(step.output).rename(folder / step.name)
        Path(step.output).symlink_to(folder / step.name)
    return folder


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return install(tmp_path / "fake", monkeypatch)


Write = Callable[..., str]


@pytest.fixture
def write(made: Path, tmp_path: Path) -> Write:
    """Writes a chain of some of STEPS over the images, and returns its path."""
    root = tmp_path / "root"
    shutil.copytree(made / "images", root / "images")

    def write_chain(steps: list[str] | None = None, slurm: Any = None, **changes: dict[str, Any]) -> str:
        chosen = {name: {**STEPS.get(name, {}), **changes.get(name, {})} for name in steps or NAMES}
        path = root / "chain.yaml"
        document = {"root": str(root), "steps": chosen, **({"slurm": slurm} if slurm is not None else {})}
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return str(path)

    return write_chain


def submit(*words: str) -> int:
    return cli.main(["submit", *words])


def run_dir(chain: str) -> Path:
    return Path(chain).parent / "slurm"


@pytest.fixture
def run_step(made: Path) -> Callable[[str, str], None]:
    """What the job of dedup or pack would do."""

    def run(chain: str, name: str) -> None:
        (step,) = (s for s in load_chain(chain) if s.name == name)
        shutil.copytree(made / name, step.output)

    return run


Run = Callable[[str, str], None]


def end_well(chain: str, job: int, code: int = 0) -> None:
    books.note_end(
        run_dir(chain),
        books.End(
            job=str(job), restart=0, verb="", code=code, requeued=False, why="", mark="", began=0, ended=1,
            node="n1",
        ),
    )  # fmt: skip


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


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


def test_dependencies_reach_over_steps_that_are_done(write: Write, run_step: Run, slurm: FakeSlurm) -> None:
    other = {"job": "dedup", "input": "{root}/images", "output": "{root}/columns/other"}
    chain = write(["other", "dedup", "pack"], other=other)
    run_step(chain, "dedup")
    assert submit(chain) == 0
    assert [slurm.options(n)["--job-name"] for n in (1, 2)] == ["pairmill.other", "pairmill.pack"]
    assert slurm.options(2)["--dependency"] == "afterok:1"


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
