"""One SLURM for all tests of this folder, and one with GPUs for a few. Where there is none they say so
and are skipped, unless PAIRMILL_REQUIRE_SLURM is set: then they fail, as in CI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.crawl_server import serving
from tests.slurm import cluster
from tests.slurm.cluster import Cluster
from tests.slurm.crawls import AWKWARD, Crawl, SlowSite


def running(**sizes: int) -> Iterator[Cluster]:
    cluster.need()
    started = cluster.start(**sizes)
    try:
        yield started
    finally:
        cluster.stop(started)


def within(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster with both nodes idle, and found by every command that the test runs."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    running.cancel_all()


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    yield from running()


@pytest.fixture(scope="session")
def running_cluster_with_gpus() -> Iterator[Cluster]:
    yield from running(cpus=8, gpus=4)


@pytest.fixture
def slurm(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster that most tests share."""
    yield from within(running_cluster, monkeypatch)


@pytest.fixture
def slurm_with_gpus(running_cluster_with_gpus: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Another one, whose nodes have GPUs."""
    yield from within(running_cluster_with_gpus, monkeypatch)


@pytest.fixture(scope="session")
def site() -> Iterator[SlowSite]:
    with serving(SlowSite()) as running:
        assert isinstance(running, SlowSite)
        yield running


@pytest.fixture(scope="session")
def reference(site: SlowSite, tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    """The crawl in peace, without SLURM."""
    made = Crawl(tmp_path_factory.mktemp("reference"), site)
    made.here()
    return made


@pytest.fixture
def crawl(site: SlowSite, reference: Crawl, tmp_path: Path) -> Iterator[Crawl]:
    """The same crawl, not begun, in a folder with an awkward name, on a web that is somewhat slow."""
    site.hits.clear()
    site.delay = 0.5
    yield Crawl(tmp_path / AWKWARD, site)
    site.delay = 0.0
