"""Jobs with GPUs: what SLURM gives, and what it hides, on nodes whose GPUs are empty files that it counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from models.training import verdicts
from tests.models.toy_shards import write_shards
from tests.slurm.cluster import Cluster
from tests.slurm.training_world import ROOT, World

pytestmark = [pytest.mark.prove, pytest.mark.timeout(400)]

#: a job that asks on each of its nodes what is to be had there
JOB = """\
import json, os, sys
from pathlib import Path
from jobs.slurm import steps
from jobs.slurm.allocation import read_allocation
from pipeline.errors import ConfigError
out = Path(sys.argv[1])
try:
    allocation = read_allocation()
except ConfigError as error:
    out.write_text(str(error))
    raise SystemExit(2)
os.environ[steps.ENTRY] = sys.argv[2]
seen = out.with_suffix(".nodes")
seen.mkdir()
code = steps.on_every_node(allocation, [str(seen)], environment={}).wait()
out.write_text(json.dumps([allocation.gpus, [int(p.read_text()) for p in sorted(seen.iterdir())]]))
raise SystemExit(code)
"""
ON_NODE = '#!/bin/sh\necho "${SLURM_GPUS_ON_NODE:-0}" > "$1/$SLURM_NODEID"\n'
#: a run of Ray on the nodes of the job: what it has in all
RAY = """\
import os, sys
from pathlib import Path
from jobs.slurm.allocation import read_allocation
from jobs.slurm.ray_nodes import RayNodes
with RayNodes(read_allocation(), Path(sys.argv[1]) / "ray") as nodes:
    os.environ.update(nodes.environment)
    import ray
    ray.init(address=nodes.address, log_to_driver=False)
    (Path(sys.argv[1]) / "found").write_text(str(int(ray.cluster_resources()["GPU"])))
"""


def script(folder: Path, name: str, code: str) -> str:
    """A batch script that runs Python code; sizes as those of slurm/."""
    (folder / f"{name}.py").write_text(code)
    path = folder / f"{name}.sh"
    path.write_text(
        "#!/bin/bash\n#SBATCH --ntasks-per-node=1\n#SBATCH --cpus-per-task=2\n#SBATCH --mem=8G\n"
        f"unset SLURM_EXPORT_ENV; export PYTHONPATH={ROOT}\n"
        f'exec {sys.executable} {folder}/{name}.py "$@"\n'
    )
    return str(path)


@pytest.mark.prove_ci
def test_every_node_of_a_job_has_the_gpus_that_were_given_however_they_were_asked_for(
    slurm_with_gpus: Cluster, tmp_path: Path
) -> None:
    entry = tmp_path / "entry"
    entry.write_text(ON_NODE)
    entry.chmod(0o755)
    probe = script(tmp_path, "probe", JOB)
    two = "--nodes=2"
    wanted: dict[tuple[str, ...], tuple[int, list[int]]] = {
        (): (0, [0]),
        ("--gpus-per-node=2",): (2, [2]),
        ("--gpus-per-node=a100:3", two): (3, [3, 3]),
        ("--gres=gpu:2", two): (2, [2, 2]),
        ("--gres=gpu:a100:1",): (1, [1]),
        ("--gpus=2",): (2, [2]),
        ("--gpus-per-task=2", two): (2, [2, 2]),
        # a node for oneself comes with all that it has; a step of the job only with what was asked for
        ("--exclusive", two): (4, [4, 4]),
        ("--exclusive", "--gpus-per-node=2"): (4, [4]),
        ("--exclusive", "--gres=gpu:2", two): (4, [4, 4]),
    }
    jobs = {}
    for number, words in enumerate(wanted):
        out = tmp_path / f"found-{number}"
        given = slurm_with_gpus.submit(
            *words, f"--output={tmp_path}/log-{number}", probe, str(out), str(entry)
        )
        jobs[words] = given, out
    uneven = tmp_path / "uneven"
    refused = slurm_with_gpus.submit("--gpus=4", two, "--output=/dev/null", probe, str(uneven), str(entry))
    found = {}
    for words, (job, out) in jobs.items():
        facts = slurm_with_gpus.wait(job)
        log = (tmp_path / f"log-{out.name.partition('-')[2]}").read_text()
        assert facts["ExitCode"] == "0:0", f"{words}: {log}"
        gpus, nodes = json.loads(out.read_text())
        found[words] = gpus, nodes
    assert found == wanted
    assert slurm_with_gpus.wait(refused)["ExitCode"] == "2:0"
    assert "use --gpus-per-node=2" in uneven.read_text()


def test_ray_has_the_gpus_of_all_nodes(slurm_with_gpus: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = slurm_with_gpus.submit(
        "--nodes=2", "--exclusive", f"--output={log}", script(tmp_path, "ray_run", RAY), str(tmp_path)
    )
    assert slurm_with_gpus.wait(job)["ExitCode"] == "0:0", log.read_text()
    assert (tmp_path / "found").read_text() == "8"


def test_a_training_has_a_process_for_each_gpu(slurm_with_gpus: Cluster, tmp_path: Path) -> None:
    """As SLURM counts them; without a real one each process trains on the CPU."""
    world = World(tmp_path, write_shards(tmp_path / "shards", shards=2, samples=24), tmp_path)
    world.configure("run", batch_size=8, accumulation=1, steps=2, checkpoint_every=0)
    job = world.submit(slurm_with_gpus, "run", "--gres=gpu:2", "--mem=16G", "--")
    job.finish(0)
    assert [row["step"] for row in job.rows()] == [1, 2]
    attempt = world.folder / "books" / "jobs" / str(job.number) / "torch-0"
    ranks = {path.name for path in attempt.iterdir() if path.name.startswith("rank-")}
    assert ranks == {f"rank-{number}" for number in range(4)}
    assert verdicts.read(attempt, processes=4).code == 0
