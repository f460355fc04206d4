"""The crawl after a takedown: what was taken down is never asked for again, and nothing else is redone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline import manifest, tombstones
from pipeline.planning import make_plan
from pipeline.shards.format import sample_uid
from pipeline.stages.crawl.stage import CrawlConfig, CrawlStage, FetchConfig
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.discover.stage import DiscoverConfig, DiscoverStage
from pipeline.tombstones import with_book
from tests.pipeline import web_archives
from tests.pipeline.crawl_server import Site, picture, serving
from tests.pipeline.folders import read_tar, run_here
from tests.pipeline.takedown_world import everything_in


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


def write_list(path: Path, urls: list[str]) -> Path:
    count = len(urls)
    table = {
        "url": urls,
        "caption": [f"caption number {i}" for i in range(count)],
        "page_url": [f"http://page{i}.blog.example/" for i in range(count)],
        "license": [f"by author {i}" for i in range(count)],
    }
    pq.write_table(pa.table(table), path)
    return path


def crawl_stage(source: Path, site: Site, output: Path, **options: Any) -> CrawlStage:
    fetch = FetchConfig(allow_private=[site.name], retries=0, robots=False, tdm=False)
    config = CrawlConfig(input=str(source), image_size=64, fetch=fetch, shard_size=5, **options)
    return CrawlStage(with_book(config, str(output)))


def crawl(stage: CrawlStage, output: Path, *, overwrite: bool = False) -> None:
    try:
        run_here(stage, output, overwrite=overwrite)
    finally:
        stage.close()


def rows_in(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(output.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]


def reasons_in(output: Path) -> list[str | None]:
    return [row["reason"] for row in rows_in(output)]


def test_a_shard_crawled_again_leaves_out_what_was_taken_down(tmp_path: Path, site: Site) -> None:
    """Byte for byte what the takedown left, so that nothing made from the images is redone."""
    urls = [site.url(f"/picture/{i}.jpg") for i in range(10)]
    source, images = write_list(tmp_path / "list.parquet", urls), tmp_path / "images"
    crawl(crawl_stage(source, site, images), images)
    words = ["--url", urls[2], "--page-domain", "page7.blog.example"]
    words += ["--uid", sample_uid("caption number 3", urls[3])]
    assert main(["takedown", "--images", str(images), *words]) == 0
    taken = {2, 3, 7}
    assert [i for i, reason in enumerate(reasons_in(images)) if reason == "taken_down"] == sorted(taken)
    marks = {d.number: (d.digest, d.content) for d in manifest.list_manifests(str(images))}
    tars = {path.name: path.read_bytes() for path in images.glob("*.tar")}

    for path in images.glob("0*"):
        path.unlink()
    site.hits.clear()
    crawl(crawl_stage(source, site, images), images)
    assert sorted(site.hits) == [f"/picture/{i}.jpg" for i in range(10) if i not in taken]
    assert {d.number: (d.digest, d.content) for d in manifest.list_manifests(str(images))} == marks
    assert {path.name: path.read_bytes() for path in images.glob("*.tar")} == tars
    there = everything_in(images)
    for i in range(10):
        for mark in (urls[i], f"caption number {i}", f"http://page{i}.blog", f"by author {i}"):
            assert (mark.encode() in there) == (i not in taken)

    site.hits.clear()
    crawl(crawl_stage(source, site, images, resize_mode="center_crop"), images, overwrite=True)
    assert len(site.hits) == 7
    assert reasons_in(images).count("taken_down") == 3


def test_a_hash_is_dropped_after_the_download(tmp_path: Path, site: Site) -> None:
    urls = [site.url("/picture/1.jpg"), site.url("/picture/2.jpg"), site.url("/picture/1.jpg?again")]
    source, images = write_list(tmp_path / "list.parquet", urls), tmp_path / "images"
    crawl(crawl_stage(source, site, images), images)
    wanted = rows_in(images)[0]["sha256"]
    before = {d.number: d.content for d in manifest.list_manifests(str(images))}
    assert main(["takedown", "--images", str(images), "--sha256", wanted]) == 0
    after = {d.number: d.content for d in manifest.list_manifests(str(images))}
    assert before != after
    assert main(["takedown", "--images", str(images), "--sha256", wanted]) == 0
    for path in images.glob("0*"):
        path.unlink()
    crawl(crawl_stage(source, site, images), images)
    assert reasons_in(images) == ["taken_down", None, "taken_down"]
    assert {d.number: d.content for d in manifest.list_manifests(str(images))} == after
    assert wanted.encode() not in everything_in(images)
    stats = json.loads((images / "00000000_stats.json").read_text())
    assert (stats["successes"], stats["failed_to_download"]) == (1, 2)


def test_redirects_do_not_lead_to_what_was_taken_down(tmp_path: Path, site: Site) -> None:
    target = site.url("/picture/5.jpg")
    source = write_list(tmp_path / "list.parquet", [site.url(f"/to?u={target}"), site.url("/picture/6.jpg")])
    images = tmp_path / "images"
    tombstones.append(str(images), [tombstones.make_entry("url", target)])
    crawl(crawl_stage(source, site, images), images)
    assert reasons_in(images) == ["taken_down", None]
    assert sorted(site.hits) == ["/picture/6.jpg", "/to"]
    assert target.encode() not in everything_in(images)


def test_lists_of_tombstones_are_shared(tmp_path: Path, site: Site) -> None:
    source = write_list(tmp_path / "list.parquet", [site.url(f"/picture/{i}.jpg") for i in range(3)])
    (tmp_path / "shared.txt").write_text(f"url:{site.url('/picture/0.jpg')}\n")
    other = tmp_path / "other"
    tombstones.append(str(other), [tombstones.make_entry("domain", "127.0.0.1")])
    images = tmp_path / "images"
    shared = [str(tmp_path / "shared.txt")]
    crawl(crawl_stage(source, site, images, tombstones=shared), images)
    assert reasons_in(images) == ["taken_down", None, None]
    # tombstones are no part of what a unit is made from: nothing is redone for another list
    stage = crawl_stage(source, site, images, tombstones=[*shared, str(other)])
    assert not make_plan(stage, str(images)).todo
    site.hits.clear()
    crawl(crawl_stage(source, site, tmp_path / "more", tombstones=[str(other)]), tmp_path / "more")
    assert reasons_in(tmp_path / "more") == ["taken_down"] * 3
    assert not site.hits


def test_pictures_of_a_folder(tmp_path: Path, site: Site) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        (pictures / f"{i}.jpg").write_bytes(picture(i))
    source = write_list(tmp_path / "list.parquet", [f"{i}.jpg" for i in range(3)])
    images = tmp_path / "images"
    tombstones.append(str(images), [tombstones.make_entry("url", "1.jpg")])
    stage = crawl_stage(source, site, images, local_pictures=str(pictures))
    crawl(stage, images)
    assert reasons_in(images) == [None, "taken_down", None]


def test_candidates_keep_their_places(tmp_path: Path, site: Site) -> None:
    """Emptied rows keep the keys of the others; images and columns made from them stay as they are."""
    for n in range(2):
        tags = [f'<img src="{site.url(f"/picture/{n}{i}.jpg")}" alt="picture {n} of {i}">' for i in range(4)]
        page = {f"http://site{n}.example/": f"<html><body>{''.join(tags)}</body></html>".encode()}
        (tmp_path / f"{n}.warc.gz").write_bytes(web_archives.warc(page))
    found, images = tmp_path / "candidates", tmp_path / "images"
    run_here(DiscoverStage(DiscoverConfig(input=f"{tmp_path}/*.warc.gz")), found)
    marks = tmp_path / "columns" / "dedup"
    dedup = dedup_stages(DedupConfig(input=str(found), buckets=2), str(marks))
    for stage, folder in dedup:
        run_here(stage, Path(folder))
    crawl(crawl_stage(found, site, images), images)
    before = {path.name: path.read_bytes() for path in images.glob("0*.tar")}

    words = ["--candidates", str(found), "--images", str(images), "--columns", str(marks)]
    url = site.url("/picture/12.jpg")
    assert main(["takedown", *words, "--url", url]) == 0
    there = everything_in(found, images, marks)
    assert url.encode() not in there
    assert b"picture 1 of 2" not in there
    assert b"picture 1 of 3" in there
    rows = pq.read_table(found / "part-00000001.parquet").to_pylist()
    assert [row["url"] is None for row in rows] == [False, False, True, False]
    assert set(rows[2].values()) == {None}
    assert len(pq.read_table(marks / "00000001.parquet")) == 4
    changed = {path.name for path in images.glob("0*.tar") if path.read_bytes() != before[path.name]}
    assert len(changed) == 1

    site.hits.clear()
    stage = crawl_stage(found, site, images)
    assert not make_plan(stage, str(images)).todo
    assert not make_plan(dedup[0][0], dedup[0][1]).todo
    again = {path: path.stat().st_mtime_ns for f in (found, images, marks) for path in f.rglob("*.*")}
    assert main(["takedown", *words, "--url", url]) == 0
    assert {path: path.stat().st_mtime_ns for f in (found, images, marks) for path in f.rglob("*.*")} == again
    assert len([key for path in images.glob("*.tar") for key in read_tar(path)]) == 7
