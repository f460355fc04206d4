"""One SLURM for all tests of this folder. Where there is none they say so and are skipped, unless
PAIRMILL_REQUIRE_SLURM is set: then they fail, as in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm import cluster
from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    if reason := cluster.missing():
        if os.environ.get("PAIRMILL_REQUIRE_SLURM"):
            pytest.fail(f"PAIRMILL_REQUIRE_SLURM is set, but {reason}")
        pytest.skip(reason)
    running = cluster.start()
    try:
        yield running
    finally:
        cluster.stop(running)


@pytest.fixture
def slurm(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, with both nodes idle, and found by every command that the test runs."""
    for name, value in running_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield running_cluster
    running_cluster.cancel_all()
