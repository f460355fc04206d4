"""A stage on a Ray cluster that somebody else started, by `--ray.address`; and a local run beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import manifest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pipeline.runner import run_stage
from pipeline.runner_options import RayOptions, RunOptions
from tests.pipeline.toy_stage import ToyConfig, ToyStage
options = RunOptions(ray=RayOptions(address=sys.argv[2]))
summary = run_stage(ToyStage(ToyConfig()), sys.argv[1], options)
import ray
print(summary.exit_code, ray.is_initialized())
"""


@pytest.fixture
def cluster() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # a short folder: Ray's socket paths must stay under 107 bytes
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [
            *[str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1"],
            *[f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"],
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.DEVNULL)
        yield f"127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.prove
@pytest.mark.prove_ci
def test_stage_on_a_cluster_by_address(cluster: str, tmp_path: Path) -> None:
    for address, output in ((cluster, tmp_path / "there"), ("", tmp_path / "here")):
        command = [sys.executable, "-c", SCRIPT, str(output), address]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == ["0", "False"], done.stderr
    marks = [[d.content for d in manifest.list_done(str(tmp_path / p)).values()] for p in ("there", "here")]
    assert marks[0] == marks[1]
    assert len(marks[0]) == 3
