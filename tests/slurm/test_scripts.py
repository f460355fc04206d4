"""The batch scripts on a real SLURM: found from anywhere, and handing options on as they came."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from jobs.slurm.scripts import SUFFIX
from tests.slurm.cluster import Cluster
from tests.slurm.crawls import AWKWARD, SCRIPTS, SECRET

pytestmark = [pytest.mark.prove, pytest.mark.prove_ci, pytest.mark.timeout(180)]

VERBS = sorted(path.name.removesuffix(SUFFIX) for path in SCRIPTS.glob(f"*{SUFFIX}"))
HARMLESS = ("--nodes=1", "--cpus-per-task=1", "--mem=1G", "--output=log-%j")
#: what shells, templates and SLURM's own formats would make something else of
OPTIONS = [
    "--where=clip_score > 0.2 AND caption <> 'it''s \"so\"'",
    "--note", "$(touch injected) `touch injected` ${HOME} $$",
    "--empty=", "", "two  blanks", "*", "%j", "back\\slash", "new\nline", "ünïcode", "--", "-c", "; exit 0",
]  # fmt: skip


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A `pairmill` that notes how it was called, in a folder to be put on the PATH."""
    folder = tmp_path / "bin of told"
    folder.mkdir()
    program = folder / "pairmill"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"place = os.path.join({str(folder)!r}, os.environ['SLURM_JOB_ID'])\n"
        "json.dump([sys.argv[1:], dict(os.environ), os.getcwd()], open(place, 'w'))\n"
    )
    program.chmod(0o755)
    return folder


def submit(slurm: Cluster, told: Path, *words: str, **variables: str) -> int:
    return slurm.submit(
        *HARMLESS, *words, environment={"PATH": f"{told}:/usr/bin:/bin", "MY_SECRET": SECRET, **variables}
    )


def heard(slurm: Cluster, told: Path, job: int) -> tuple[list[str], dict[str, str], str]:
    facts = slurm.wait(job, seconds=90)
    log = Path(facts["WorkDir"]) / f"log-{job}"
    assert facts["ExitCode"] == "0:0", log.read_text() if log.exists() else facts
    words, environment, place = json.loads((told / str(job)).read_text())
    return words, environment, place


def test_every_script_hands_its_options_on_verbatim(
    slurm: Cluster, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / AWKWARD / "slurm"
    shutil.copytree(SCRIPTS, scripts)
    (scripts / "site.sh").write_text("export FROM_SITE=$MAY_BE_UNSET-yes\n")
    monkeypatch.chdir(tmp_path)
    jobs = {verb: submit(slurm, told, str(scripts / f"{verb}.sbatch"), *OPTIONS) for verb in VERBS}
    for verb, job in jobs.items():
        words, environment, _ = heard(slurm, told, job)
        assert words == ["batch", verb, *OPTIONS]
        assert environment["FROM_SITE"] == "-yes"
        assert "MY_SECRET" not in environment
        assert not [name for name, value in environment.items() if SECRET in value]
    assert not list(tmp_path.rglob("injected"))


def test_scripts_are_found_by_any_path(
    slurm: Cluster, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "some where" / "slurm"
    shutil.copytree(SCRIPTS, scripts)
    (scripts / "site.sh").write_text("export FROM_SITE=yes\n")
    shutil.copy(scripts / "crawl.sbatch", scripts / "crawl big.sbatch")
    other = tmp_path / "an other"
    other.mkdir()
    (other / "mine.sh").symlink_to(scripts / "crawl.sbatch")
    (other / "all").symlink_to(scripts)
    ways = [
        (scripts.parent, "slurm/crawl.sbatch"),
        (scripts, "crawl.sbatch"),
        (scripts, "./crawl big.sbatch"),
        (other, str(scripts / "crawl.sbatch")),
        (other, "../some where/slurm/crawl.sbatch"),
        (other, "mine.sh"),
        (other, "all/crawl.sbatch"),
    ]
    jobs = []
    for folder, path in ways:
        monkeypatch.chdir(folder)
        jobs.append(
            (folder, submit(slurm, told, path, "--config", "my own.yaml", str(scripts / "train.sbatch")))
        )
    for folder, job in jobs:
        words, environment, place = heard(slurm, told, job)
        assert words == ["batch", "crawl", "--config", "my own.yaml", str(scripts / "train.sbatch")]
        assert environment["FROM_SITE"] == "yes"
        assert place == str(folder)


def test_tasks_of_an_array_find_it_too(
    slurm: Cluster, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = submit(slurm, told, "--array=0-2", str(SCRIPTS / "crawl.sbatch"))
    slurm.until(lambda: len(list(told.glob("[0-9]*"))) == 3, 60, "three tasks")
    seen = [json.loads(path.read_text()) for path in told.glob("[0-9]*")]
    assert {e["SLURM_ARRAY_TASK_ID"] for _, e, _ in seen} == {"0", "1", "2"}
    assert {e["SLURM_ARRAY_JOB_ID"] for _, e, _ in seen} == {str(job)}
    assert [words for words, _, _ in seen] == [["batch", "crawl"]] * 3


def test_where_pairmill_is_missing_the_job_says_so(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = submit(slurm, tmp_path, str(SCRIPTS / "pack.sbatch"))
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert "pairmill is not on PATH" in (tmp_path / f"log-{job}").read_text()
