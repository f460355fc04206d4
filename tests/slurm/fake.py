"""Programs that stand in for sbatch, squeue and scancel: they note what they are given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.slurm.queue import SQUEUE_FIELDS

#: ids from 1 on; the job whose number stands in `refuse` is refused
SBATCH = """\
#!/bin/sh
number=$(($(ls "{folder}" | grep -c '^argv-') + 1))
if [ "$(cat "{folder}/refuse")" = "$number" ]; then
  echo "sbatch: error: Batch job submission failed: Invalid account" >&2
  exit 1
fi
printf '%s\\0' "$@" > "{folder}/argv-$number"
env -0 > "{folder}/env-$number"
echo $number
"""
SQUEUE = '#!/bin/sh\ncat "{folder}/queue"\n'
SCANCEL = '#!/bin/sh\nprintf \'%s\\n\' "$@" >> "{folder}/cancelled"\n'


@dataclass
class FakeSlurm:
    """What the programs were given, and what they are to say."""

    folder: Path

    @property
    def jobs(self) -> list[list[str]]:
        """The words of each call of sbatch."""
        calls = sorted(self.folder.glob("argv-*"), key=lambda p: int(p.name.partition("-")[2]))
        return [path.read_text().split("\0")[:-1] for path in calls]

    def environment(self, job: int) -> dict[str, str]:
        words = (self.folder / f"env-{job}").read_text().split("\0")[:-1]
        return dict(word.split("=", 1) for word in words)

    def set_queue(self, **states: str) -> None:
        """What squeue says: `j17="RUNNING"`, of an array's task `j17_3="PENDING"`, with a reason
        `j17="PENDING:Resources"`."""
        rows = []
        for name, text in states.items():
            state, _, reason = text.partition(":")
            values = {"JobArrayID": name.removeprefix("j"), "State": state, "Reason": reason}
            rows.append("|".join(values.get(field, "") for field in SQUEUE_FIELDS) + "|\n")
        (self.folder / "queue").write_text("".join(rows))

    def refuse(self, job: int) -> None:
        (self.folder / "refuse").write_text(str(job))

    @property
    def cancelled(self) -> list[str]:
        path = self.folder / "cancelled"
        return path.read_text().split() if path.exists() else []

    def options(self, job: int) -> dict[str, str]:
        """The options of a job, `""` for those without a value; what stands behind the script left out."""
        words = self.jobs[job - 1]
        script = next(i for i, word in enumerate(words) if not word.startswith("--"))
        return {name: value for name, _, value in (word.partition("=") for word in words[:script])}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Puts the programs first on PATH."""
    programs, notes = folder / "bin", folder / "notes"
    programs.mkdir(parents=True)
    notes.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (programs / name).write_text(text.format(folder=notes))
        (programs / name).chmod(0o755)
    (notes / "queue").touch()
    (notes / "refuse").touch()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return FakeSlurm(notes)
