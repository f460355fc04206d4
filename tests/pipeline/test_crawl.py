"""The whole crawl, on loopback: every URL's fate, the same bytes on every run, the real runner."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import manifest
from pipeline.commit import run_and_commit
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from pipeline.shards.format import sample_uid
from pipeline.shards.reader import iter_samples
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.crawl.config import ColumnOptions
from pipeline.stages.crawl.stage import CrawlConfig, CrawlStage, FetchConfig
from tests.pipeline.crawl_server import Site, picture, serving

PLANTED = {
    "/picture/1.jpg": None,
    "/picture/2.png": None,
    "/picture/3.webp": None,
    "/chain/2": None,
    "/flaky/1": None,
    "/missing.jpg": "http_status",
    "/bytes/empty": "empty",
    "/bytes/html.jpg": "not_an_image",
    "/bytes/gzip.jpg": "not_an_image",
    "/bytes/truncated.jpg": "damaged",
    "/bytes/bomb.png": "too_many_pixels",
    "/bytes/small.jpg": "too_small",
    "/bytes/wide.jpg": "aspect_ratio",
    "/noai/noai": "opt_out",
    "/stream/silence": "timeout",
    "/stream/endless": "too_large",
    "/loop": "too_many_redirects",
    "/to?u=http://127.0.0.1/": "refused_address",
    "file:///etc/passwd": "bad_url",
}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


def planted_urls(site: Site) -> list[str]:
    return [site.url(p) if p.startswith("/") else p for p in PLANTED]


def write_list(path: Path, site: Site, *, more: int = 20) -> Path:
    urls = [*planted_urls(site), None, *(site.url(f"/picture/{i}.jpg") for i in range(10, 10 + more))]
    facts = {
        "page_url": [f"http://page.example/{i}" for i in range(len(urls))],
        "key": ["theirs"] * len(urls),
    }
    facts["similarity"] = [0.5 if i else float("nan") for i in range(len(urls))]  # type: ignore[misc]
    facts["license"] = [None if i % 2 else "by" for i in range(len(urls))]  # type: ignore[misc]
    captions = [f"caption {i} ü" for i in range(len(urls))]
    pq.write_table(pa.table({"URL": urls, "TEXT": captions, **facts}), path)
    return path


def config(source: Path | str, site: Site, **options: Any) -> CrawlConfig:
    fetch = FetchConfig(
        allow_private=[site.name],
        read_timeout=0.5,
        total_timeout=2.0,
        backoff=0.01,
        max_bytes=300_000,
        max_per_host=8,
    )
    base = {"image_size": 64, "min_image_size": 30, "max_aspect_ratio": 5.0, "fetch": fetch}
    return CrawlConfig(input=str(source), **{**base, **options})


def crawl(wanted: CrawlConfig, output: Path) -> list[dict[str, Any]]:
    """All units, one after the other, without Ray: their manifests."""
    stage = CrawlStage(wanted)
    units = stage.plan([])
    stage.start()
    try:
        return [run_and_commit(stage, unit, str(output)) for unit in units]
    finally:
        stage.close()


def test_every_url_has_its_fate(tmp_path: Path, site: Site) -> None:
    source = write_list(tmp_path / "list.parquet", site)
    [record] = crawl(config(source, site), tmp_path / "images")
    rows = pq.read_table(tmp_path / "images" / "00000000.parquet").to_pylist()
    assert [r["reason"] for r in rows] == [*PLANTED.values(), "no_url", *[None] * 20]
    assert [r["key"] for r in rows] == [f"00000000{i:04d}" for i in range(40)]
    by_path = dict(zip(PLANTED, rows, strict=False))
    assert by_path["/missing.jpg"]["error_message"] == "HTTP 404"
    assert by_path["/missing.jpg"]["http_status"] == 404
    assert by_path["/missing.jpg"]["status"] == "failed_to_download"
    assert by_path["/bytes/html.jpg"]["status"] == "failed_to_resize"
    good = by_path["/picture/1.jpg"]
    assert (good["width"], good["height"], good["original_width"]) == (85, 64, 320)
    assert good["uid"] == sample_uid(good["caption"], good["url"])
    assert good["bytes"] == len(picture(1))
    assert (good["page_url"], good["source_key"], good["exif"]) == ("http://page.example/0", "theirs", None)

    counts = record["counts"]
    assert (counts["in"], counts["out"]) == (40, 25)
    assert sum(counts["dropped"].values()) == 15
    stats = json.loads((tmp_path / "images" / "00000000_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (40, 25)
    assert stats["failed_to_download"] + stats["failed_to_resize"] == 15
    assert stats["status_dict"]["success"] == 25
    assert site.hits["/noai/noai"] == 1


def test_the_tar_holds_the_successes_in_img2datasets_layout(tmp_path: Path, site: Site) -> None:
    crawl(config(write_list(tmp_path / "list.parquet", site), site), tmp_path / "images")
    rows = pq.read_table(tmp_path / "images" / "00000000.parquet").to_pylist()
    samples = list(iter_samples(str(tmp_path / "images" / "00000000.tar")))
    assert [s.key for s in samples] == [r["key"] for r in rows if r["reason"] is None]
    for sample in samples:
        assert list(sample.members) == ["jpg", "json", "txt"]
        facts = json.loads(sample.members["json"], parse_constant=pytest.fail)
        row = rows[int(sample.key)]
        expected = {k: v for k, v in row.items() if v is not None and not (k == "similarity" and v != v)}
        assert facts == expected, "the json is the row without its nulls"
        assert sample.members["txt"].decode() == row["caption"]


def test_the_schema_is_img2datasets_and_ours_behind_it(tmp_path: Path, site: Site) -> None:
    crawl(config(write_list(tmp_path / "list.parquet", site), site), tmp_path / "images")
    schema = pq.read_schema(tmp_path / "images" / "00000000.parquet")
    assert schema.names[:4] == ["page_url", "source_key", "similarity", "license"]
    assert schema.names[4:15] == [
        "caption", "url", "key", "status", "error_message", "width", "height", "original_width",
        "original_height", "exif", "sha256",
    ]  # fmt: skip
    assert schema.names[15:] == ["reason", "http_status", "uid", "bytes"]
    assert schema.field("width").type == pa.int32()


def test_bytes_do_not_depend_on_timing(tmp_path: Path, site: Site) -> None:
    source = write_list(tmp_path / "list.parquet", site, more=100)
    crawl(config(source, site, shard_size=50), tmp_path / "a")
    site.hits.clear()
    site.jitter = 0.1
    wanted = config(source, site, shard_size=50, decode_threads=4)
    records = crawl(wanted, tmp_path / "b")
    assert len(records) == 3
    for number in range(3):
        for suffix in (".tar", ".parquet"):
            name = f"{number:08d}{suffix}"
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    contents = [[d.content for d in manifest.list_manifests(str(tmp_path / x))] for x in "ab"]
    assert contents[0] == contents[1]


class Candidates(Stage):
    """Stands for discover: one part of candidates for each list of rows."""

    name: ClassVar[str] = "discover"
    prefix: ClassVar[str] = "part-"

    def __init__(self, parts: Sequence[Sequence[dict[str, Any]]]) -> None:
        self.config, self.parts = CrawlConfig(), parts

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        return [Unit(number=i, source={"part": i}, inputs=()) for i in range(len(self.parts))]

    def run(self, unit: Unit, scratch: Path) -> Output:
        rows = list(self.parts[unit.number])
        return Output(parts={".parquet": pa.Table.from_pylist(rows)}, counts=Counts(len(rows), len(rows)))


def test_candidates_through_the_real_runner(tmp_path: Path, site: Site) -> None:
    rows = [
        {"url": site.url(f"/picture/{i}.jpg"), "caption": f"c{i}", "page_url": "p", "position": i}
        for i in range(12)
    ]
    parts = Candidates([rows[:7], rows[7:]])
    for unit in parts.plan([]):
        run_and_commit(parts, unit, str(tmp_path / "candidates"))
    output = str(tmp_path / "images")
    wanted = config(tmp_path / "candidates", site, shard_size=5)
    summary = run_stage(CrawlStage(wanted), output)
    assert (summary.exit_code, summary.done, summary.counts.kept) == (0, 3, 12)
    found = [r for i in range(3) for r in pq.read_table(f"{output}/{i:08d}.parquet").to_pylist()]
    assert [r["caption"] for r in found] == [f"c{i}" for i in range(12)]
    assert [r["position"] for r in found] == list(range(12))
    site.hits.clear()
    again = run_stage(CrawlStage(wanted), output)
    assert (again.done, again.done_before, sum(site.hits.values())) == (0, 3, 0)


def test_a_folder_of_pictures_with_a_caption_file(tmp_path: Path, site: Site) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "7.jpg").write_bytes(picture(7))
    coco = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [{"image_id": n, "id": i, "caption": f"c{n}{i}"} for n in (7, 8) for i in range(2)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(coco))
    wanted = config(tmp_path / "captions.json", site, local_pictures=str(tmp_path / "pictures"))
    [record] = crawl(wanted, tmp_path / "images")
    assert record["counts"] == {"in": 4, "out": 2, "dropped": {"not_found": 2}}
    samples = list(iter_samples(str(tmp_path / "images" / "00000000.tar")))
    assert [s.members["txt"] for s in samples] == [b"c70", b"c71"]
    without = crawl(config(tmp_path / "captions.json", site), tmp_path / "web")
    assert without[0]["counts"]["dropped"] == {"no_url": 4}, "no local path without the option"


def test_the_hashes_of_a_list_are_verified(tmp_path: Path, site: Site) -> None:
    hashes = [hashlib.sha256(picture(i)).hexdigest() for i in range(3)] + [None]
    hashes[1] = hashes[0]
    table = pa.table(
        {
            "url": [site.url(f"/picture/{i}.jpg") for i in range(4)],
            "text": ["a", "b", "c", "d"],
            "sha256": hashes,
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    wanted = config(tmp_path / "list.parquet", site, verify_hash=["sha256", "sha256"])
    [record] = crawl(wanted, tmp_path / "images")
    assert record["counts"] == {"in": 4, "out": 2, "dropped": {"hash_mismatch": 2}}
    rows = pq.read_table(tmp_path / "images" / "00000000.parquet").to_pylist()
    assert [r["status"] for r in rows] == ["success", "failed_to_download", "success", "failed_to_download"]
    for wrong in ({"verify_hash": ["md5", "md5"]}, {"columns": ColumnOptions(carry=[])}):
        with pytest.raises(ConfigError, match=r"md5|carry"):
            crawl(dataclasses.replace(wanted, **wrong), tmp_path / "other")


READ_BACK = """
import sys, img2dataset
if __name__ == "__main__":
    img2dataset.download(
        url_list=sys.argv[1], input_format="parquet", url_col="url", caption_col="caption",
        save_additional_columns=["uid"], output_folder=sys.argv[2], output_format="webdataset",
        processes_count=1, thread_count=4, image_size=64, resize_mode="keep_ratio",
        resize_only_if_bigger=True, enable_wandb=False)
"""


@pytest.mark.prove
@pytest.mark.prove_ci
def test_img2dataset_takes_our_parquet_as_its_list(tmp_path: Path, site: Site) -> None:
    """And makes the same pictures of it as the crawl does with img2dataset's Resizer."""
    urls = [site.url(f"/picture/{i}.jpg") for i in range(8)] + [site.url("/missing.jpg")]
    pq.write_table(pa.table({"url": urls, "text": [f"c{i}" for i in range(9)]}), tmp_path / "list.parquet")
    exactly = {"resizer": "img2dataset", "skip_reencode": False}
    crawl(config(tmp_path / "list.parquet", site, **exactly), tmp_path / "images")
    (tmp_path / "read_back.py").write_text(READ_BACK)
    theirs = tmp_path / "theirs"
    command = [sys.executable, str(tmp_path / "read_back.py")]
    command += [str(tmp_path / "images" / "00000000.parquet"), str(theirs)]
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = list(iter_samples(str(tmp_path / "images" / "00000000.tar")))
    found = sorted(iter_samples(str(theirs / "00000.tar")), key=lambda s: s.key)
    assert [s.members["jpg"] for s in found] == [s.members["jpg"] for s in ours]
    assert [json.loads(s.members["json"])["uid"] for s in found] == [
        json.loads(s.members["json"])["uid"] for s in ours
    ]
    mine, other = (
        pq.read_schema(p) for p in (tmp_path / "images/00000000.parquet", theirs / "00000.parquet")
    )
    for name in other.names:
        assert mine.field(name).type == other.field(name).type, name
