"""The whole chain on S3, and uploads that are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import yaml

from jobs import cli
from pipeline import manifest, storage
from pipeline.runner import run_stage
from pipeline.shards.reader import iter_samples
from tests.pipeline.folders import run_here
from tests.prove.bad_stage import BadConfig, BadStage
from tests.prove.checks import Damage, compare
from tests.prove.conftest import Figures
from tests.prove.s3 import BUCKET, Wire, serving_s3, speaking_to
from tests.prove.world import World, chain_yaml, write_archives

ROOT = Path(__file__).parents[2]
OUTPUTS = ("discover", "crawl", "columns/clip", "columns/dedup", "shards")

pytestmark = [pytest.mark.prove, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def s3() -> Iterator[int]:
    with serving_s3() as port:
        yield port


@pytest.fixture
def wire(s3: int) -> Iterator[Wire]:
    """Everything of the test goes over it."""
    found = Wire(s3)
    # one try a request: what it takes to come through is to be ours, not the client's
    slow = '{"config_kwargs": {"read_timeout": 2, "connect_timeout": 2, "retries": {"max_attempts": 0}}}'
    with speaking_to(found.port, FSSPEC_S3=slow):
        yield found
    found.close()


def _pairmill(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250)


def _objects(prefix: str) -> dict[str, tuple[str, str]]:
    """Every object below a prefix: its name -> (ETag, when it was written)."""
    fs, path = storage.resolve(prefix)
    fs.invalidate_cache()
    return {
        name: (info["ETag"], str(info["LastModified"])) for name, info in fs.find(path, detail=True).items()
    }


def _unfinished() -> list[dict]:
    return fsspec.filesystem("s3").list_multipart_uploads(BUCKET.removeprefix("s3://"))


@pytest.mark.prove_ci
def test_the_whole_chain_on_s3(
    undisturbed: World, s3: int, tmp_path: Path, figures: Figures, clock: float, one_ray: None
) -> None:
    local = undisturbed.at(str(tmp_path / "local"))
    write_archives(local)
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(chain_yaml(local), sort_keys=False))
    assert cli.main(["run", str(tmp_path / "local.yaml")]) == 0
    with speaking_to(s3):
        remote = undisturbed.at(f"{BUCKET}/chain")
        for info in storage.list_files(storage.join(local.root, "web")):
            storage.write_bytes(
                storage.join(remote.root, "web", storage.basename(info.url)), storage.read_bytes(info.url)
            )
        chain = tmp_path / "chain.yaml"
        chain.write_text(yaml.safe_dump(chain_yaml(remote), sort_keys=False))
        ended = _pairmill("run", str(chain))
        assert ended.returncode == 0, ended.stderr
        damage = Damage()
        for name in OUTPUTS:
            damage.add(compare(storage.join(local.root, name), storage.join(remote.root, name)))
        before = _objects(remote.root)
        again = _pairmill("run", str(chain))
        assert again.returncode == 0, again.stderr
        assert again.stderr.count("nothing to do") == 7  # dedup is three stages
        assert _objects(remote.root) == before
        status = _pairmill("status", str(chain))
        assert f": {len(OUTPUTS)} of {len(OUTPUTS)} steps done\n" in status.stdout, status.stdout
        _read_by_others(storage.join(remote.root, "shards"), storage.join(local.root, "shards"))
        assert not _unfinished()
    figures.note("the whole chain on S3", damage, time.monotonic() - clock)
    assert not damage


def _read_by_others(remote: str, local: str) -> None:
    """webdataset reads the shards from S3, and sees what our reader sees in the local ones."""
    import webdataset
    from webdataset.gopen import gopen_schemes

    gopen_schemes["s3"] = lambda url, mode="rb", *_, **__: fsspec.open(url, mode).open()
    urls = [i.url for i in storage.list_files(remote) if i.url.endswith(".tar")]
    seen = {s["__key__"]: s["jpg"] for s in webdataset.WebDataset(urls, shardshuffle=False)}
    ours = {s.key: s.members["jpg"] for url in urls for s in iter_samples(url)}
    here = [i.url for i in storage.list_files(local) if i.url.endswith(".tar")]
    assert seen == ours == {s.key: s.members["jpg"] for url in here for s in iter_samples(url)}
    assert len(seen) > 50


@pytest.mark.prove_ci
def test_uploads_that_are_cut(undisturbed: World, wire: Wire, figures: Figures, clock: float) -> None:
    output = f"{BUCKET}/cut"
    pack = ["pack", *undisturbed.options("pack"), f"--output={output}", "--workers=1", "--ray.cpus=1"]
    wire.trouble = "cut"
    ended = _pairmill(*pack, "--limit=1")
    assert ended.returncode == 1
    assert "1 units failed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert wire.met >= 3  # three attempts
    assert not [i.url for i in storage.list_files(output) if i.url.endswith(".tar")]
    assert manifest.list_quarantined(output) == {0}
    assert not manifest.list_done(output)
    wire.left = 3  # from now on only some are cut
    ended = _pairmill(*pack)
    assert ended.returncode == 0, ended.stderr
    assert wire.left == 0
    assert not _unfinished()
    damage = compare(undisturbed.place("pack"), output)
    figures.note("S3: uploads cut", damage, time.monotonic() - clock)
    assert not damage


@pytest.mark.prove_ci
def test_uploads_that_are_never_answered(
    wire: Wire, tmp_path: Path, figures: Figures, clock: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SEND_SECONDS", 12.0)
    output, stage = f"{BUCKET}/silence", BadStage(BadConfig(units=3, size=20_000))
    wire.trouble = "silence"
    with pytest.raises(
        OSError, match=r"00000000.tar cannot be written: (ReadTimeout|TimeoutError: not done)"
    ):
        run_here(stage, output)
    assert wire.met
    assert not [i.url for i in storage.list_files(output) if i.url.endswith(".tar")]
    wire.trouble = ""
    run_here(stage, output)
    run_here(stage, tmp_path / "peace")
    damage = compare(str(tmp_path / "peace"), output)
    figures.note("S3: uploads never answered", damage, time.monotonic() - clock)
    assert not damage


def test_large_uploads_leave_nothing(wire: Wire, tmp_path: Path, figures: Figures, clock: float) -> None:
    """Above 100 MB in several pieces: given up when one is cut; swept when the process is killed."""
    large = tmp_path / "large.tar"
    large.write_bytes(os.urandom(1 << 20) * 110)
    url = f"{BUCKET}/large/00000000.tar"
    wire.most, wire.trouble = 1 << 20, "cut"
    with pytest.raises(OSError):
        storage.put_file(large, url)
    assert large.exists()
    assert not storage.exists(url)
    wire.trouble = ""
    assert not _unfinished()
    script = (
        "import sys; from pathlib import Path; from pipeline import storage; "
        "storage.put_file(Path(sys.argv[1]), sys.argv[2])"
    )
    wire.trouble, wire.met = "silence", 0
    process = subprocess.Popen([sys.executable, "-c", script, str(large), url], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not wire.met:
        assert time.monotonic() < deadline, "no upload within a minute"
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wire.trouble = ""
    assert not storage.exists(url)
    storage.sweep_temporary(f"{BUCKET}/larg")  # not below this
    left = len(_unfinished())
    storage.sweep_temporary(f"{BUCKET}/large")  # the server says that it is from 2010
    assert (left, len(_unfinished())) == (1, 0)
    storage.put_file(large, url)
    assert storage.find(url)[0].size == 110 << 20
    figures.note("S3: large uploads cut or killed", Damage(), time.monotonic() - clock)


def test_killed_on_s3(s3: int, seed: int, tmp_path: Path, figures: Figures, clock: float) -> None:
    """A process that commits unit by unit, killed at a random moment."""
    import random

    output = f"{BUCKET}/killed-{seed}"
    stage = BadStage(BadConfig(units=8, seconds=0.1))
    with speaking_to(s3):
        process = subprocess.Popen([sys.executable, "-m", "tests.prove.committing", output], cwd=ROOT)
        deadline = time.monotonic() + 60
        rng = random.Random(seed)
        while len(manifest.list_done(output)) < rng.randrange(6):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        run_here(stage, output)
        run_here(stage, tmp_path / "peace")
        from pipeline import locks

        locks.sweep(output)
        damage = compare(str(tmp_path / "peace"), output)
    figures.note("S3: SIGKILL while committing", damage, time.monotonic() - clock)
    assert not damage
    assert run_stage(stage, str(tmp_path / "peace")).done == 0
