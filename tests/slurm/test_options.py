"""Every option that a chain may give is one that a real sbatch takes beside what the batch scripts give."""

from __future__ import annotations

import re
import subprocess

import pytest

from jobs.slurm.options import FORMS, INSTEAD
from jobs.slurm.scripts import scripts_folder

pytestmark = [pytest.mark.prove, pytest.mark.prove_ci]

#: sizes that fit the nodes of the tests
SMALL = ("--nodes=1", "--cpus-per-task=1", "--mem=1G")
#: what this site has not: the option was understood
NOT_HERE = re.compile(
    "Requested node configuration is not available|Invalid feature specification|Invalid node name specified|"
    "Invalid license specification|Invalid partition name specified|Requested reservation is invalid"
)


def refused(name: str, value: str, *more: str) -> str:
    """What sbatch says against a job of train.sbatch with this option; empty where it takes it."""
    words = [word for word in SMALL if not word.startswith(f"--{name}=")]
    option = f"--{name}" if value == "true" else f"--{name}={value}"
    script = str(scripts_folder() / "train.sbatch")
    done = subprocess.run(
        ["sbatch", "--test-only", *words, *more, option, script], capture_output=True, text=True
    )
    return done.stderr.strip() if done.returncode else ""


@pytest.mark.usefixtures("slurm_with_gpus")
@pytest.mark.parametrize("name", FORMS)
def test_an_option_of_a_chain(name: str) -> None:
    value = "n1" if name == "nodelist" else FORMS[name].example  # four nodes are no list for one
    told = refused(name, value)
    assert not told or NOT_HERE.search(told), told


@pytest.mark.usefixtures("slurm_with_gpus")
@pytest.mark.parametrize("name", INSTEAD)
def test_an_option_that_has_to_be_given_otherwise(name: str) -> None:
    assert "mutually exclusive" in refused(name, "1", "--gpus-per-node=1")
    assert not refused(INSTEAD[name], "1", "--gpus-per-node=1")
