"""Fused crawl, score and floor: what it stores is what crawl, score and pack come to, and nothing else is
stored; every crash ends in the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from jobs import cli
from jobs.status import collect
from pipeline import manifest, storage
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError
from pipeline.fused import Fused
from pipeline.fused_retry import FusedRetry
from pipeline.planning import make_plan
from pipeline.stage import Stage
from pipeline.stages.crawl.retry import RetryStage
from pipeline.stages.pack import Pack, PackConfig
from tests.pipeline.crawl_server import Site, picture, serving
from tests.pipeline.folders import read_tar, run_here
from tests.pipeline.test_crawl import write_list
from tests.pipeline.test_score import write_model


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    picture(0)  # loads what the server makes pictures with, which would count as a slow answer
    with serving(Site()) as running:
        yield running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Path:
    """A list, a scorer of random weights, and the plain way: crawl, score; `median` is in the middle of the
    scores."""
    folder = tmp_path_factory.mktemp("world")
    write_list(folder / "list.parquet", site, more=30)
    write_model(folder / "run" / "model")
    ((crawl, output),) = stages("crawl", folder, site, folder / "images")
    run_here(crawl, output)
    score = ["--input", str(folder / "images"), "--model", str(folder / "run" / "model")]
    ((stage, output),) = built("score", [*score, "--batch_size", "8", "--output", str(folder / "clip")])
    run_here(stage, output)
    return folder


def built(verb: str, argv: list[str]) -> list[tuple[Stage, str]]:
    found, config, request = cli.parse_verb(verb, argv)
    assert found.stages is not None
    return list(found.stages(config, request.output))


def stages(verb: str, world: Path, site: Site, output: Path, *more: str) -> list[tuple[Stage, str]]:
    options = {
        "input": str(world / "list.parquet"),
        "output": str(output),
        "shard_size": "20",
        "image_size": "64",
        "min_image_size": "30",
        "fetch.allow_private": json.dumps([site.name]),
        "fetch.read_timeout": "1.0",
        "fetch.retries": "0",
        "fetch.backoff": "0.01",
        "fetch.max_bytes": "300000",
        "fetch.max_per_host": "8",
    }
    site.hits.clear()
    return built(verb, [*(w for k, v in options.items() for w in (f"--{k}", v)), *more])


def scores_of(folder: Path) -> dict[str, float | None]:
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["key"]: row["clip_score"] for row in rows}


def median(world: Path) -> float:
    values = sorted(v for v in scores_of(world / "clip").values() if v is not None)
    return values[len(values) // 2]


def fused(world: Path, site: Site, folder: Path, floor: str = "") -> Stage:
    floor = floor or f"clip_score >= {median(world)!r}"
    more = ["--fused.floor", floor, "--fused.output", str(folder / "clip")]
    more += ["--fused.score.model", str(world / "run" / "model"), "--fused.score.batch_size", "8"]
    ((stage, _),) = stages("crawl", world, site, folder / "images", *more)
    return stage


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".tar", ".parquet")}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))]
    return {row["key"]: row for rows in tables for row in rows}


def test_it_stores_what_crawl_score_and_pack_come_to(tmp_path: Path, world: Path, site: Site) -> None:
    counts = run_here(fused(world, site, tmp_path), tmp_path / "images")
    assert shards(tmp_path / "clip") == shards(world / "clip"), "the columns of all pictures"
    scores, limit = scores_of(tmp_path / "clip"), median(world)
    above = [key for key, score in scores.items() if score is not None and score >= limit]
    assert 0 < len(above) < len(scores)
    pictures = {k: m for p in sorted((tmp_path / "images").glob("*.tar")) for k, m in read_tar(p).items()}
    assert list(pictures) == above
    plain = {k: m for p in sorted((world / "images").glob("*.tar")) for k, m in read_tar(p).items()}
    assert pictures == {key: plain[key] for key in above}

    before, now = rows_of(world / "images"), rows_of(tmp_path / "images")
    for key, row in now.items():
        if key in scores and key not in above:
            assert (row["status"], row["reason"]) == ("below_floor", "below_floor")
            told = {k: row[k] for k in ("status", "reason", "error_message")}
            assert repr(row) == repr({**before[key], **told}), "nothing else of the row is lost"
        else:
            assert repr(row) == repr(before[key])
    assert counts.dropped["below_floor"] == len(scores) - len(above)
    assert counts.kept == len(above)
    stats = json.loads((tmp_path / "images" / "00000000_stats.json").read_text())
    assert stats["successes"] == stats["status_dict"]["success"]
    assert (
        stats["successes"] + stats["below_floor"] + stats["failed_to_download"] + stats["failed_to_resize"]
        == 20
    )

    for where in (tmp_path, world):
        rule = PackConfig(
            input=str(where / "images"),
            columns=(str(where / "clip"),),
            where=f"clip_score >= {limit + 0.001}",
            group=2,
        )
        run_here(Pack(rule), tmp_path / f"packed-{where.name}")
    packed = [tmp_path / f"packed-{where.name}" for where in (tmp_path, world)]
    assert shards(packed[0]) == shards(packed[1])
    assert any(read_tar(p) for p in packed[0].glob("*.tar"))


def test_no_picture_below_the_floor_reaches_the_storage(
    tmp_path: Path, world: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    put, write = storage.put_file, storage.write_bytes

    def seen_file(path: Path, url: str) -> None:
        written.append(path.read_bytes())
        put(path, url)

    def seen_bytes(url: str, data: bytes) -> None:
        written.append(data)
        write(url, data)

    monkeypatch.setattr(storage, "put_file", seen_file)
    monkeypatch.setattr(storage, "write_bytes", seen_bytes)
    run_here(fused(world, site, tmp_path), tmp_path / "images")
    plain = {k: m for p in sorted((world / "images").glob("*.tar")) for k, m in read_tar(p).items()}
    stored = {k for p in (tmp_path / "images").glob("*.tar") for k in read_tar(p)}
    everything = b"".join(written)
    for key, members in plain.items():
        assert (members["jpg"] in everything) == (key in stored)


def test_score_finds_nothing_to_do_and_the_books_are_in_order(
    tmp_path: Path, world: Path, site: Site
) -> None:
    stage = fused(world, site, tmp_path)
    run_here(stage, tmp_path / "images")
    argv = ["--input", str(tmp_path / "images"), "--model", str(world / "run" / "model")]
    ((alone, output),) = built("score", [*argv, "--batch_size", "8", "--output", str(tmp_path / "clip")])
    plan = make_plan(alone, output)
    assert (len(plan.units), plan.todo) == (3, [])
    assert make_plan(stage, str(tmp_path / "images")).todo == []
    (screen,) = collect([str(tmp_path / "images"), str(tmp_path / "clip")])
    states = [line.standing for line in screen.lines]
    assert [(s.done, s.total, s.quarantined) for s in states] == [(3, 3, 0), (3, 3, 0)]
    assert states[0].counts is not None
    assert states[0].counts.dropped["below_floor"] > 0
    assert cli.main(["verify", str(tmp_path / "images"), str(tmp_path / "clip")]) == 0


def test_what_it_is_made_of_is_in_its_digest(tmp_path: Path, world: Path, site: Site) -> None:
    stage = fused(world, site, tmp_path)
    run_here(stage, tmp_path / "images")
    with pytest.raises(ConfigError, match=r"fused.floor"):
        make_plan(fused(world, site, tmp_path, "clip_score >= -1"), str(tmp_path / "images"))
    write_model(tmp_path / "other" / "model", seed=1)
    other = ["--fused.floor", f"clip_score >= {median(world)!r}", "--fused.output", str(tmp_path / "clip")]
    other += ["--fused.score.model", str(tmp_path / "other" / "model"), "--fused.score.batch_size", "8"]
    ((changed, _),) = stages("crawl", world, site, tmp_path / "images", *other)
    with pytest.raises(ConfigError, match="inputs changed"):
        make_plan(changed, str(tmp_path / "images"))
    ((plain, _),) = stages("crawl", world, site, tmp_path / "images")
    with pytest.raises(ConfigError, match=r"fused"):
        make_plan(plain, str(tmp_path / "images"))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3, 4, 5, 6])
def test_a_crash_at_any_write_is_made_good_by_a_rerun(
    tmp_path: Path, world: Path, site: Site, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """One unit, broken off before its n-th write; then the whole, on a web that is slower."""
    stage = fused(world, site, tmp_path)
    plan = make_plan(stage, str(tmp_path / "images"))
    calls = 0

    def dying(function: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KilledError
            return function(*args, **kwargs)

        return called

    stage.start()
    with monkeypatch.context() as patched:
        patched.setattr(storage, "put_file", dying(storage.put_file))
        patched.setattr(storage, "write_bytes", dying(storage.write_bytes))
        try:
            run_and_commit(stage, plan.todo[0], str(tmp_path / "images"))
        except KilledError:
            assert not manifest.list_done(str(tmp_path / "images"))
    stage.close()
    run_here(fused(world, site, tmp_path), tmp_path / "images")
    assert shards(tmp_path / "clip") == shards(world / "clip")
    argv = ["--input", str(tmp_path / "images"), "--model", str(world / "run" / "model")]
    ((alone, output),) = built("score", [*argv, "--batch_size", "8", "--output", str(tmp_path / "clip")])
    assert make_plan(alone, output).todo == []
    assert len(manifest.list_manifests(str(tmp_path / "clip"))) == 3


def test_columns_of_an_attempt_that_died_are_replaced(
    tmp_path: Path, world: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns stand, the images do not, and the web has changed since."""
    stage = fused(world, site, tmp_path)
    plan = make_plan(stage, str(tmp_path / "images"))
    stage.start()
    with monkeypatch.context() as patched:
        patched.setattr(
            manifest,
            "write",
            lambda output, record, write=manifest.write: (
                write(output, record) if output.endswith("clip") else (_ for _ in ()).throw(KilledError())
            ),
        )
        with pytest.raises(KilledError):
            run_and_commit(stage, plan.todo[0], str(tmp_path / "images"))
    stage.close()
    (before,) = manifest.list_manifests(str(tmp_path / "clip"))
    original = site._answer

    async def without(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404) if request.path == "/picture/1.jpg" else await original(request)

    monkeypatch.setattr(site, "_answer", without)
    run_here(fused(world, site, tmp_path), tmp_path / "images")
    found = manifest.list_manifests(str(tmp_path / "clip"))
    assert len(found) == 3
    assert before not in found
    assert "000000000000" not in scores_of(tmp_path / "clip")
    argv = ["--input", str(tmp_path / "images"), "--model", str(world / "run" / "model")]
    ((alone, output),) = built("score", [*argv, "--batch_size", "8", "--output", str(tmp_path / "clip")])
    assert make_plan(alone, output).todo == []


def test_mistakes_are_told_before_anything_is_fetched(tmp_path: Path, world: Path, site: Site) -> None:
    model = ["--fused.score.model", str(world / "run" / "model")]
    output = ["--fused.output", str(tmp_path / "clip")]
    floor = ["--fused.floor", "clip_score >= 0.2"]
    for more, message in (
        ([*model, *output], "floor"),
        ([*model, *floor], "column folders"),
        ([*model, *floor, "--fused.output", str(tmp_path / "images")], "differ"),
        ([*model, *output, "--fused.floor", "clip_scores > 0"], "clip_scores"),
        ([*model, *output, *floor, "--fused.score.input", "elsewhere"], "leave them away"),
    ):
        with pytest.raises(ConfigError, match=message):
            stages("crawl", world, site, tmp_path / "images", *more)
    ((stage, _),) = stages("crawl", world, site, tmp_path / "images", *output, *floor)
    with pytest.raises(ConfigError, match="no model"):
        make_plan(stage, str(tmp_path / "images"))
    assert not site.hits


def test_a_retry_judges_what_comes_now_and_keeps_what_was_judged(
    tmp_path: Path, world: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, limit = site._answer, median(world)
    scores = scores_of(world / "clip")
    lost = {row["url"].rpartition("/")[2] for key, row in rows_of(world / "images").items() if key in scores}
    lost = {name for name in lost if name[0] in "123"}

    async def sick(request: web.Request) -> web.StreamResponse:
        gone = request.path.startswith("/picture/") and request.path.rpartition("/")[2] in lost
        return web.Response(status=404) if gone else await original(request)

    with monkeypatch.context() as patched:
        patched.setattr(site, "_answer", sick)
        run_here(fused(world, site, tmp_path), tmp_path / "images")
    before = scores_of(tmp_path / "clip")
    assert 0 < len(before) < len(scores)
    made_by = fused(world, site, tmp_path)
    assert isinstance(made_by, Fused)
    where = "http_status = 404 AND url NOT LIKE '%missing%'"
    first = RetryStage(
        made_by.first.config,
        images=str(tmp_path / "images"),
        where=where,
        numbers=[0, 1, 2],
        made_by=made_by,
    )
    stage = FusedRetry(made_by, first=first)
    plan = make_plan(stage, str(tmp_path / "images"), redo={0, 1, 2})
    stage.start()
    for unit in plan.todo:
        run_and_commit(stage, unit, str(tmp_path / "images"), stale=plan.stale[unit.number])
    stage.close()

    now = scores_of(tmp_path / "clip")
    assert list(now) == list(scores)
    assert {k: now[k] for k in before} == before, "to the last bit"
    for key, score in now.items():
        assert score == pytest.approx(scores[key], abs=1e-5)
    above = [key for key, score in scores.items() if score is not None and score >= limit]
    plain = {k: m for p in sorted((world / "images").glob("*.tar")) for k, m in read_tar(p).items()}
    pictures = {k: m for p in sorted((tmp_path / "images").glob("*.tar")) for k, m in read_tar(p).items()}
    assert pictures == {key: plain[key] for key in above}
    run_here(fused(world, site, tmp_path / "healthy"), tmp_path / "healthy" / "images")
    assert shards(tmp_path / "images") == shards(tmp_path / "healthy" / "images")
    for number in range(3):
        stats = [
            json.loads((tmp_path / place / f"{number:08d}_stats.json").read_text())
            for place in ("images", "healthy/images")
        ]
        for name in ("count", "successes", "below_floor", "status_dict"):
            assert stats[0][name] == stats[1][name]
    assert make_plan(made_by, str(tmp_path / "images")).todo == []
    argv = ["--input", str(tmp_path / "images"), "--model", str(world / "run" / "model")]
    ((alone, output),) = built("score", [*argv, "--batch_size", "8", "--output", str(tmp_path / "clip")])
    assert make_plan(alone, output).todo == []


def command(world: Path, site: Site, folder: Path) -> list[str]:
    """The fused crawl as a user types it."""
    options = {
        "input": str(world / "list.parquet"),
        "output": str(folder / "images"),
        "shard_size": "20",
        "image_size": "64",
        "min_image_size": "30",
        "fetch.allow_private": json.dumps([site.name]),
        "fetch.read_timeout": "1.0",
        "fetch.retries": "0",
        "fetch.backoff": "0.01",
        "fetch.max_bytes": "300000",
        "fused.floor": f"clip_score >= {median(world)!r}",
        "fused.output": str(folder / "clip"),
        "fused.score.model": str(world / "run" / "model"),
        "fused.score.batch_size": "8",
        "workers": "1",
    }
    return ["crawl", *(w for k, v in options.items() for w in (f"--{k}", v))]


@pytest.mark.prove
@pytest.mark.prove_ci
def test_on_the_real_runner(tmp_path: Path, world: Path, site: Site) -> None:
    argv = command(world, site, tmp_path)
    site.hits.clear()
    assert cli.main(argv) == 0
    assert shards(tmp_path / "clip") == shards(world / "clip")
    site.hits.clear()
    assert cli.main(argv) == 0
    assert cli.main(["score", "--config", str(tmp_path / "clip" / "_pairmill" / "config.yaml")]) == 0
    assert not site.hits
    assert cli.main(["retry", str(tmp_path / "images"), "--where", "reason = 'timeout'"]) == 0
    assert site.hits["/stream/silence"] == 1, "one row of the whole list"
    assert cli.main(argv) == 0


@pytest.mark.prove
@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.0, 2.0])
def test_killed_at_any_moment_a_rerun_ends_in_the_same_bytes(
    tmp_path: Path, world: Path, site: Site, seconds: float
) -> None:
    run_here(fused(world, site, tmp_path / "undisturbed"), tmp_path / "undisturbed" / "images")
    argv = command(world, site, tmp_path)
    site.hits.clear()
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *argv], start_new_session=True)
    while process.poll() is None and not site.hits["/picture/15.jpg"]:
        time.sleep(0.02)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.0)  # Ray ends the workers of a driver that is gone
    site.hits.clear()
    assert cli.main(argv) == 0
    for name in ("images", "clip"):
        assert shards(tmp_path / name) == shards(tmp_path / "undisturbed" / name)
        done = manifest.list_manifests(str(tmp_path / name))
        assert [d.number for d in done] == [0, 1, 2]
    assert cli.main(["score", "--config", str(tmp_path / "clip" / "_pairmill" / "config.yaml")]) == 0
    assert cli.main(["verify", str(tmp_path / "images"), str(tmp_path / "clip")]) == 0
