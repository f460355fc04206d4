"""Retry, on loopback and the real runner: only what was named is asked for again, and the bytes are those of
a crawl that went well."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from jobs import cli
from jobs.saved import load_saved
from pipeline import commit, manifest, session, storage
from pipeline.errors import ConfigError
from pipeline.planning import make_plan
from pipeline.predicate import Predicate
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.shards.reader import iter_samples
from pipeline.stage import Output, Unit
from pipeline.stages.crawl.again import choose, survey
from pipeline.stages.crawl.retry import RetryStage
from pipeline.stages.crawl.stage import CrawlStage
from pipeline.stages.score import ScoreConfig, ScoreStage
from tests.pipeline.crawl_server import Site, picture, serving
from tests.pipeline.folders import crawled, make_foreign, run_here
from tests.pipeline.object_store import s3_bucket
from tests.pipeline.test_score import write_model
from tests.pipeline.toy_stage import ToyConfig, ToyStage

ROWS = 24


class Recovering(Site):
    """While `sick`, pictures are answered by 429, by silence or by 500, as their number says."""

    sick = True
    slow = 0.0

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        number = request.path.rpartition("/")[2].partition(".")[0]
        if self.sick and request.path.startswith("/picture/"):
            if int(number) % 4 == 1:
                return web.Response(status=429)
            if int(number) % 4 == 2:
                await asyncio.sleep(5)
            if int(number) % 8 == 3:
                return web.Response(status=500)
        await asyncio.sleep(self.slow)
        return await super()._answer(request)


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


@pytest.fixture(scope="module")
def web_site() -> Iterator[Recovering]:
    site = Recovering()
    picture(0)  # loads what the server makes pictures with, which would count as a slow answer
    with serving(site):
        yield site


@pytest.fixture
def site(web_site: Recovering) -> Recovering:
    """The site, sick and unasked."""
    web_site.sick, web_site.slow = True, 0.0
    web_site.hits.clear()
    return web_site


def write_list(path: Path, site: Site, rows: int = ROWS) -> Path:
    urls = [site.url(f"/picture/{i}.jpg") for i in range(rows)]
    urls[5] = site.url("/noai/noai")
    urls[6] = "http://192.168.0.1/private.jpg"
    urls[7] = site.url("/missing.jpg")
    facts = {
        "page_url": [f"http://page.example/{i}" for i in range(rows)],
        "score": [None if i % 3 else i / 7 for i in range(rows)],
        "labels": [["a", f"é{i}"] for i in range(rows)],
    }
    captions = [None if i == 9 else f"caption {i} ü" for i in range(rows)]
    pq.write_table(pa.table({"url": urls, "text": captions, **facts}), path, row_group_size=7)
    return path


def crawl(source: Path, site: Recovering, output: Path, *more: str, size: int = 8) -> int:
    options = {
        "input": str(source),
        "output": str(output),
        "shard_size": str(size),
        "image_size": "64",
        "fetch.allow_private": json.dumps([site.name]),
        "fetch.read_timeout": "1.5" if site.sick else "20",
        "fetch.retries": "0",
        "fetch.backoff": "0.01",
        "fetch.max_per_host": "16",
        "workers": "1",
    }
    return cli.main(["crawl", *(w for k, v in options.items() for w in (f"--{k}", v)), *more])


@pytest.fixture(scope="module")
def crawled_once(tmp_path_factory: pytest.TempPathFactory, web_site: Recovering) -> Path:
    """A folder with the list, `images` crawled while the site was sick, and `healthy` when it was not."""
    folder = tmp_path_factory.mktemp("crawl")
    source = write_list(folder / "list.parquet", web_site)
    for web_site.sick, name in ((True, "images"), (False, "healthy")):
        assert crawl(source, web_site, folder / name) == 0
    return folder


@pytest.fixture
def folder(crawled_once: Path, tmp_path: Path, site: Recovering) -> Path:
    """A copy for one test, modification times included."""
    return Path(shutil.copytree(crawled_once, tmp_path / "copy"))


def retry(output: Path, where: str, *more: str) -> int:
    """Patient, unless told otherwise: the machine may be busy, and the site is well."""
    return cli.main(["retry", str(output), "--where", where, "--fetch.read_timeout", "20", *more])


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def state(output: Path) -> dict[str, tuple[int, bytes]]:
    """Every part but the statistics: when it was written, and its bytes."""
    parts = [p for p in output.iterdir() if p.suffix in (".tar", ".parquet")]
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in parts}


FAILED = "reason = 'timeout' OR http_status = 429"


def test_gaps_are_filled_as_if_the_servers_had_answered_at_once(
    folder: Path, site: Recovering, capsys: pytest.CaptureFixture[str]
) -> None:
    sick = rows_of(folder / "images")
    assert {r["reason"] for r in sick} == {None, "http_status", "timeout", "opt_out", "refused_address"}
    site.sick = False
    assert retry(folder / "images", FAILED + " OR http_status >= 500") == 0
    told = capsys.readouterr().out
    assert "rows to fetch again in 3 of 3 shards" in told
    assert "--overwrite" in told
    failed = [r for r in sick if r["reason"] and r["url"] and "/picture/" in r["url"]]
    assert sorted(p for p in site.hits if p != "/robots.txt") == sorted(
        "/picture/" + r["url"].rpartition("/")[2] for r in failed
    )
    for name, (_, data) in state(folder / "healthy").items():
        assert (folder / "images" / name).read_bytes() == data, name
    books = [manifest.read_all(str(folder / x)) for x in ("images", "healthy")]
    for here, there in zip(*books, strict=True):
        assert here["counts"] == there["counts"]
        assert here["digest"] == there["digest"]
        assert {k: v["sha256"] for k, v in here["files"].items() if not v.get("volatile")} == {
            k: v["sha256"] for k, v in there["files"].items() if not v.get("volatile")
        }
        (note,) = here["notes"]["retries"]
        assert note["asked"] == note["got"] > 0
    stats = json.loads((folder / "images" / "00000001_stats.json").read_text())
    assert stats["successes"] == manifest.read_all(str(folder / "images"))[1]["counts"]["out"]

    site.hits.clear()
    assert crawl(folder / "list.parquet", site, folder / "images") == 0
    assert not site.hits, "the crawl finds all of it done"


def test_only_touched_shards_are_written(folder: Path, site: Recovering) -> None:
    before, rows = state(folder / "images"), rows_of(folder / "images")
    site.sick = False
    assert retry(folder / "images", "http_status = 429 AND url LIKE '%/picture/13.jpg'") == 0
    after = state(folder / "images")
    assert {n for n in after if after[n] != before[n]} == {"00000001.tar", "00000001.parquet"}
    now = rows_of(folder / "images")
    assert [i for i in range(ROWS) if now[i] != rows[i]] == [13]
    assert now[13]["key"] == rows[13]["key"]
    assert (now[13]["status"], now[13]["reason"], now[13]["score"]) == ("success", None, rows[13]["score"])
    keys = [s.key for s in iter_samples(str(folder / "images" / "00000001.tar"))]
    assert now[13]["key"] in keys
    assert keys == sorted(keys)
    assert not (folder / "images" / "_pairmill" / "pending").is_dir() or not list(
        (folder / "images" / "_pairmill" / "pending").iterdir()
    )


def test_what_was_forbidden_is_never_asked_for(
    folder: Path, site: Recovering, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(folder / "healthy")
    assert retry(folder / "healthy", "reason IN ('opt_out', 'refused_address') OR status = 'success'") == 0
    told = capsys.readouterr().out
    assert "nothing to fetch again" in told
    assert "pictures that stand 21" in told
    assert "opt_out 1" in told
    assert "refused_address 1" in told
    assert not site.hits
    assert state(folder / "healthy") == before


def test_a_dry_run_asks_nobody(folder: Path, site: Recovering, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(folder / "images")
    assert retry(folder / "images", "http_status = 429 AND key < '000000020000'", "--dry-run") == 0
    assert "00000000  1\n00000001  2\n" in capsys.readouterr().out
    assert not site.hits
    assert state(folder / "images") == before


def test_what_fails_again_keeps_its_row_up_to_date(
    folder: Path, site: Recovering, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(folder / "images")
    failed = sum(r["reason"] == "timeout" or r["http_status"] == 429 for r in rows_of(folder / "images"))
    assert retry(folder / "images", FAILED, "--fetch.read_timeout", "1.5") == 0
    assert state(folder / "images").keys() == before.keys()
    assert {n: data for n, (_, data) in state(folder / "images").items()} == {
        n: data for n, (_, data) in before.items()
    }, "the same failures are the same bytes"
    assert f"0 of {failed} rows have their picture now; 0 shards are new" in capsys.readouterr().out


def test_mistakes_are_told(folder: Path, site: Recovering, capsys: pytest.CaptureFixture[str]) -> None:
    make_foreign(folder / "foreign", {0: [crawled(0, 0)]})
    for argv, message in (
        (["images", "--where", "colour = 1"], "unknown column 'colour'"),
        (["images", "--where", "reason ="], "reason ="),
        (["absent", "--where", "true"], "does not exist"),
        (["foreign", "--where", "true"], "img2dataset"),
        (["images", "--where", "http_status = 404", "--image_size", "32"], "image_size 64 -> 32"),
        (["images", "--where", "http_status = 404", "--fetch.total_timeout", "never"], "total_timeout"),
    ):
        assert cli.main(["retry", str(folder / argv[0]), *argv[1:]]) == 2, argv
        assert message in capsys.readouterr().err, argv


def test_a_damaged_shard_is_not_passed_off_as_good(folder: Path, site: Recovering) -> None:
    tar = folder / "images" / "00000001.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 1
    tar.write_bytes(data)
    site.sick = False
    assert retry(folder / "images", FAILED) == 1
    assert tar.read_bytes() == bytes(data)
    rows = rows_of(folder / "images")
    assert {r["key"][:8] for r in rows if r["reason"] == "timeout"} == {"00000001"}


def test_only_failures_are_chosen() -> None:
    table = pa.table(
        {
            "status": ["success", "failed_to_download", "failed_to_download", None],
            "reason": [None, "timeout", "taken_down", "timeout"],
            "error_message": [None, "no answer in time", None, "refused before it was asked for"],
            "width": [1, None, None, None],
        }
    )
    everything = choose(table, Predicate("true"))
    assert everything.positions == [1]
    assert everything.left_out == {"pictures that stand": 1, "taken_down": 1, "refused by a rule": 1}
    assert choose(table, Predicate("width > 0")).positions == []
    assert choose(table, Predicate("carried_elsewhere IS NULL")).positions == [1]


def test_the_stages_behind_redo_only_what_changed(folder: Path, site: Recovering) -> None:
    model = write_model(folder / "run" / "model")
    stage = ScoreStage(ScoreConfig(input=str(folder / "images"), model=str(model)))
    run_here(stage, folder / "clip")
    site.sick = False
    assert retry(folder / "images", "http_status = 429 AND key < '000000010000'") == 0
    with pytest.raises(ConfigError, match="inputs changed"):
        make_plan(stage, str(folder / "clip"))
    plan = make_plan(stage, str(folder / "clip"), overwrite=True)
    assert [u.number for u in plan.todo] == [0]


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3_bucket("retried") as url:
        yield url


def test_images_on_an_object_store(folder: Path, site: Recovering, bucket: str) -> None:
    images, healthy = f"{bucket}/images", f"{bucket}/healthy"
    for local, there in (("images", images), ("healthy", healthy)):
        fsspec.filesystem("s3").put(str(folder / local), there.removeprefix("s3://"), recursive=True)
    site.sick = False
    saved = load_saved(images)
    assert isinstance(saved.stage, CrawlStage)
    places = [(n, f"{images}/{n:08d}.parquet") for n in range(3)]
    numbers = [n for n, choice in survey(places, Predicate("http_status = 429")) if choice.positions]
    where = "http_status IN (429, 500) OR reason = 'timeout'"
    config = saved.stage.config
    patient = dataclasses.replace(config, fetch=dataclasses.replace(config.fetch, read_timeout=20.0))
    stage = RetryStage(patient, images=images, where=where, numbers=numbers)
    plan = make_plan(stage, images, redo=set(numbers))
    stage.start()
    for unit in plan.todo:
        record = commit.run_and_commit(stage, unit, images, stale=plan.stale[unit.number])
        assert record["counts"]["dropped"].keys() <= {"opt_out", "refused_address", "http_status"}, record
    stage.close()
    for number in numbers:
        for suffix in (".tar", ".parquet"):
            name = f"{number:08d}{suffix}"
            assert storage.read_bytes(f"{images}/{name}") == storage.read_bytes(f"{healthy}/{name}")
    assert [d.content for d in manifest.list_manifests(images)] == [
        d.content for d in manifest.list_manifests(healthy)
    ]


def test_failures_of_a_foreign_folder_are_a_list_like_any_other(folder: Path, site: Recovering) -> None:
    """What docs/retry.md says of img2dataset's folders."""
    make_foreign(folder / "theirs", {0: [crawled(0, 0), crawled(0, 1, reason="timeout")]})
    table = pq.read_table(folder / "theirs" / "00000.parquet")
    pq.write_table(table.filter(pc.field("status") != "success"), folder / "failures.parquet")
    options = ["--input", str(folder / "failures.parquet"), "--output", str(folder / "again")]
    _, config, _ = cli.parse_verb("crawl", options)
    (unit,) = CrawlStage(config.crawl).plan([])
    assert unit.source["rows"] == [0, 1]


class DiesWhileReplacing(ToyStage):
    """The first worker that replaces a unit is killed when the first of the new parts has taken its place."""

    def run(self, unit: Unit, scratch: Path) -> Output:
        output = super().run(unit, scratch)
        flag, move = Path(self.config.mode["flag"]), storage.move

        def once(source: str, target: str) -> None:
            move(source, target)
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def arm() -> None:
            storage.move = once

        output.before_manifest = arm
        return output


def test_a_worker_killed_while_it_replaces_a_shard_leaves_one_whole_shard(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run_here(ToyStage(ToyConfig()), output)
    stage = DiesWhileReplacing(ToyConfig(factor=3, mode={"flag": str(tmp_path / "flag")}))
    summary = run_stage(stage, output, RunOptions(workers=1, overwrite=True))
    assert (summary.exit_code, summary.done, summary.failed) == (0, 3, {})
    assert (tmp_path / "flag").exists()
    assert [d.number for d in manifest.list_manifests(output)] == [0, 1, 2]
    for unit, done in enumerate(manifest.list_manifests(output)):
        files = manifest.read(done)["files"]
        for name, facts in files.items():
            assert storage.sha256_file(tmp_path / "out" / name) == facts["sha256"]
        assert pq.read_table(tmp_path / "out" / f"{unit:08d}.parquet")["value"].to_pylist() == [
            3 * ord("abc"[unit])
        ]
    assert storage.list_folders(commit.pending_folder(output)) == []


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(4))
def test_killed_in_the_middle_nothing_is_lost(tmp_path: Path, site: Recovering, seed: int) -> None:
    """SIGKILL of the whole retry at some moment; every old picture stands, and a rerun ends where an
    undisturbed retry ends."""
    source = write_list(tmp_path / "list.parquet", site, rows=60)
    assert crawl(source, site, tmp_path / "images", size=10) == 0
    before = {r["key"]: r for r in rows_of(tmp_path / "images") if r["reason"] is None}
    site.sick = False
    assert crawl(source, site, tmp_path / "healthy", size=10) == 0
    site.slow = 0.15
    command = [sys.executable, "-m", "jobs.retry", str(tmp_path / "images"), "--where", "reason IS NOT NULL"]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not any(site.hits.values()):
        time.sleep(0.05)
    start = sum(site.hits.values())
    while process.poll() is None and sum(site.hits.values()) < start + 4 + 7 * seed:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.0)
    site.slow = 0.0
    commit.roll_forward(str(tmp_path / "images"))
    standing = {r["key"]: r for r in rows_of(tmp_path / "images") if r["reason"] is None}
    assert {k: standing.get(k) for k in before} == before
    assert retry(tmp_path / "images", "reason IS NOT NULL") == 0
    for name, (_, data) in state(tmp_path / "healthy").items():
        assert (tmp_path / "images" / name).read_bytes() == data, name
