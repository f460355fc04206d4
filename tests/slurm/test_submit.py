"""Chains submitted to a real SLURM: a stage that fails, mended and gone on with; quarantine; cancelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli
from jobs.slurm import books
from jobs.slurm.scripts import scripts_folder
from tests.pipeline.web_archives import warc
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]

SMALL = {"cpus-per-task": 1, "mem": "2G"}
NAMES = ("first", "second", "third")


def archive(word: str) -> bytes:
    page = f"<html><body><img src='/{word}.jpg' alt='a picture of a {word}, taken by hand'></body></html>"
    return warc({f"http://site.example/{word}.html": page.encode()})


def write_chain(root: Path, **changes: dict[str, Any]) -> str:
    """Two steps over archives of their own, which follow each other by order alone, and a report."""
    for name in NAMES[:2]:
        (root / "web" / name).mkdir(parents=True, exist_ok=True)
        (root / "web" / name / "a.warc.gz").write_bytes(archive(name))
    steps = {
        name: {
            "job": "discover", "input": f"{{root}}/web/{name}/*.gz", "output": f"{{root}}/{name}",
            "rules": "none", **changes.get(name, {}),
        }
        for name in NAMES[:2]
    }  # fmt: skip
    steps["third"] = {"job": "report", "candidates": "{root}/second", "output": "{root}/third.html"}
    path = root / "chain.yaml"
    document = {"root": str(root), "steps": steps, "slurm": {"all": SMALL}}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(path)


def ends(slurm: Cluster, root: Path, first: int = 0) -> dict[str, str]:
    """Waits for the jobs from the one of this place on in the books; step -> how its job ended."""
    jobs = books.read_submitted(root / "slurm")[first:]
    return {job.step: slurm.wait(job.job, seconds=240)["JobState"] for job in jobs}


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def logs(root: Path) -> str:
    return "\n".join(f"== {p.name}\n{p.read_text()}" for p in sorted((root / "slurm/logs").iterdir()))


@pytest.mark.prove_ci
def test_a_stage_that_fails_is_mended_and_the_chain_goes_on(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cr3t-of-the-shell")
    root = tmp_path / "a 100% odd 'root'"
    chain = write_chain(root)
    damaged = root / "web/second/a.warc.gz"
    damaged.write_bytes(archive("second")[:-40])

    assert cli.main(["submit", chain]) == 0
    assert ends(slurm, root) == {"first": "COMPLETED", "second": "FAILED", "third": "CANCELLED"}, logs(root)
    assert not (root / "third.html").exists()
    before = times(root / "first")
    assert before

    damaged.write_bytes(archive("second"))
    capsys.readouterr()
    assert cli.main(["submit", chain]) == 0
    assert "first   -    done: 1 unit" in capsys.readouterr().out
    assert ends(slurm, root, 3) == {"second": "COMPLETED", "third": "COMPLETED"}, logs(root)
    assert times(root / "first") == before
    assert (root / "third.html").is_file()

    assert cli.main(["submit", chain]) == 0
    assert "nothing to submit" in capsys.readouterr().out
    assert len(books.read_submitted(root / "slurm")) == 5
    assert not [p for p in root.rglob("*") if p.is_file() and b"s3cr3t-of-the-shell" in p.read_bytes()]


def test_quarantined_units_that_are_allowed_do_not_stop_the_chain(
    slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = write_chain(tmp_path, second={"allow_failed": 1})
    (tmp_path / "web/second/b.warc.gz").write_bytes(archive("b")[:-40])
    assert cli.main(["submit", chain]) == 0
    assert set(ends(slurm, tmp_path).values()) == {"COMPLETED"}, logs(tmp_path)
    assert "00000001.json" in {p.name for p in (tmp_path / "second/_pairmill/quarantine").iterdir()}
    capsys.readouterr()
    assert cli.main(["submit", chain]) == 0
    said = capsys.readouterr().out
    assert "done: 2 units, 1 quarantined, 1 allowed" in said
    assert "nothing to submit" in said
    assert cli.main(["submit", chain, "--second.allow_failed=0", "--dry-run"]) == 0
    assert "second: 1 of 2 units to do" in capsys.readouterr().out


def test_an_array_and_the_job_behind_it(slurm: Cluster, tmp_path: Path) -> None:
    chain = write_chain(tmp_path)
    for name in "bcd":
        (tmp_path / f"web/first/{name}.warc.gz").write_bytes(archive(name))
    assert cli.main(["submit", chain, "--only=first", "--slurm.first.array=3%2"]) == 0
    assert ends(slurm, tmp_path) == {"first": "COMPLETED"}, logs(tmp_path)
    shared, end = books.read_submitted(tmp_path / "slurm")
    assert (shared.tasks, end.finishes, tuple(end.after)) == (3, True, (shared.job,))
    assert len(list((tmp_path / "first").glob("part-*.parquet"))) == 4
    written = {p.name for p in (tmp_path / "slurm/logs").iterdir()}
    assert written == {f"first-{shared.job}_{n}.log" for n in range(3)} | {f"first-{end.job}.log"}
    assert cli.main(["submit", chain, "--only=first"]) == 0
    assert len(books.read_submitted(tmp_path / "slurm")) == 2


@pytest.mark.prove_ci
def test_cancel_ends_what_waits_and_runs(
    slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for verb in ("discover", "report"):
        (scripts / f"{verb}.sbatch").write_text("#!/bin/sh\nexec sleep 600\n")
    chain = write_chain(tmp_path)
    words = ["submit", chain, "--scripts", str(scripts), "--slurm.first.array=2"]
    assert cli.main(words) == 0
    jobs = [job.job for job in books.read_submitted(tmp_path / "slurm")]
    slurm.until(lambda: slurm.state(f"{jobs[0]}_0") == "RUNNING", 60, "the first task to run")
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "nothing to submit" in capsys.readouterr().out
    assert cli.main([*words, "--second.rules=coyo"]) == 2
    assert 'rules "none" -> "coyo"' in capsys.readouterr().err

    assert cli.main(["cancel", chain, "second"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"cancelled {jobs[2]} second (pending)",
        f"cancelled {jobs[3]} third (pending)",
    ]
    assert cli.main(["cancel", chain]) == 0
    assert f"cancelled {jobs[0]} first (running)" in capsys.readouterr().out
    slurm.until(slurm.idle, 60, "all jobs to end")
    assert cli.main(["cancel", chain]) == 0
    assert "no job of the chain waits or runs" in capsys.readouterr().out


@pytest.mark.prove_ci
def test_no_variable_of_the_shell_comes_into_a_job(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of our batch scripts by its header, each time as that of a report; its work is to print what it
    sees."""
    monkeypatch.setenv("SECRET_TOKEN", "s3cr3t")
    monkeypatch.setenv("SBATCH_EXPORT", "ALL")
    monkeypatch.setenv("SLURM_EXPORT_ENV", "ALL")
    monkeypatch.setenv("PAIRMILL_LOG", "INFO")
    chain = tmp_path / "c.yaml"
    report = {"images": str(tmp_path), "output": str(tmp_path / "report.html")}
    chain.write_text(yaml.safe_dump({"steps": {"report": report}, "slurm": {"all": SMALL}}))
    runs = []
    for script in sorted(scripts_folder().glob("*.sbatch")):
        header = [line for line in script.read_text().splitlines() if line.startswith("#")]
        own = tmp_path / script.stem / "scripts"
        own.mkdir(parents=True)
        (own / "report.sbatch").write_text("\n".join([*header, "cat /proc/self/environ"]) + "\n")
        runs.append(tmp_path / script.stem / "run")
        assert cli.main(["submit", str(chain), f"--scripts={own}", f"--run_dir={runs[-1]}"]) == 0
    assert len(runs) > 10
    for run in runs:
        (job,) = books.read_submitted(run)
        assert slurm.wait(job.job)["JobState"] == "COMPLETED"
        seen = (run / f"logs/report-{job.job}.log").read_text()
        assert {"PAIRMILL_STEP=report", f"PAIRMILL_RUN_DIR={run}", "PAIRMILL_LOG=INFO"} <= set(
            seen.split("\0")
        )
        assert "SECRET_TOKEN" not in seen
        assert "s3cr3t" not in seen
