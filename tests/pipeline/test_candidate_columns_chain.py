"""From archives to shards with columns over candidates on the way: the commands, on Ray and on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import cli
from pipeline import manifest, session
from tests.pipeline.crawl_server import Site, serving
from tests.pipeline.folders import read_tar
from tests.pipeline.web_archives import warc

ENGLISH = "a small boat with red sails on a quiet lake"
TEXTS = {
    ENGLISH: None,
    "two children are flying a kite on the beach": None,
    "ein kleines Boot mit roten Segeln auf dem ruhigen See": "not_selected",
    "маленькая лодка с красными парусами на тихом озере": "not_selected",
    "2024-05-18 17:30:12": "not_selected_null",
}


@pytest.fixture
def site() -> Iterator[Site]:
    with session.shared_session(), serving(Site()) as running:
        yield running


def _archive(root: Path, site: Site, number: int) -> None:
    """Each text with a picture of its own, on two pages; one pair is on every page of every archive."""
    pages = {}
    for page in range(2):
        tags = [
            f'<img src="{site.url(f"/picture/{number * 10 + at}.jpg")}" alt="{text}">'
            for at, text in enumerate(TEXTS)
        ]
        tags.append(f'<img src="{site.url("/picture/0.jpg")}" alt="{ENGLISH}">')
        pages[f"http://site.example/{number}/{page}"] = "<html>{}</html>".format("".join(tags)).encode()
    (root / "web").mkdir(parents=True, exist_ok=True)
    (root / "web" / f"{number}.warc.gz").write_bytes(warc(pages))


def _chain(root: Path, site: Site) -> str:
    steps = {
        "discover": {"input": "{root}/web/*.gz", "output": "{root}/candidates", "rules": "datacomp-basic"},
        "first": {
            "job": "dedup",
            "input": "{root}/candidates",
            "output": "{root}/columns/first",
            "buckets": 2,
        },
        "language": {
            "job": "score",
            "kind": "language",
            "input": "{root}/candidates",
            "columns": "{root}/columns/first",
            "where": "duplicate_of IS NULL",
            "output": "{root}/columns/language",
        },
        "crawl": {
            "input": "{root}/candidates",
            "with_columns": ["{root}/columns/first", "{root}/columns/language"],
            "where": "duplicate_of IS NULL AND language = 'en'",
            "output": "{root}/images",
            "image_size": 64,
            "fetch": {"allow_private": json.dumps([site.name])},
        },
        "pack": {
            "input": "{root}/images",
            "preset": "datacomp-basic",
            "output": "{root}/shards",
        },
    }
    path = root / "chain.yaml"
    path.write_text(yaml.safe_dump({"root": str(root), "steps": steps}, sort_keys=False))
    return str(path)


def test_from_archives_to_shards(
    tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _archive(tmp_path, site, 0)
    chain = _chain(tmp_path, site)
    assert cli.main(["run", chain]) == 0
    assert {p for p in site.hits if p.startswith("/picture/")} == {"/picture/0.jpg", "/picture/1.jpg"}
    rows = pq.read_table(tmp_path / "images/00000000.parquet").to_pylist()
    # rules of the preset drop the text of two words before; the second page repeats the first
    english = [r for r in rows if r["reason"] is None]
    assert [(r["url"], r["language"]) for r in english] == [
        (site.url(f"/picture/{i}.jpg"), "en") for i in range(2)
    ]
    assert {r["caption"]: r["reason"] for r in reversed(rows)} == {
        caption: reason for caption, reason in TEXTS.items() if len(caption.split()) > 2
    }
    samples = read_tar(tmp_path / "shards/00000000.tar")
    assert sorted(json.loads(s["json"])["caption"] for s in samples.values()) == sorted(list(TEXTS)[:2])
    assert all(json.loads(s["json"])["language"] == "en" for s in samples.values())

    # an archive more: what stands stays as it is, and only what is new is judged and fetched
    before = {p: p.read_bytes() for p in tmp_path.rglob("images/0*.*")}
    hits, standing = dict(site.hits), manifest.list_done(str(tmp_path / "images"))
    columns = {p: p.read_bytes() for p in tmp_path.glob("columns/*/00000000.parquet")}
    _archive(tmp_path, site, 1)
    assert cli.main(["run", chain]) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert {p: p.read_bytes() for p in columns} == columns
    assert {
        n: d for n, d in manifest.list_done(str(tmp_path / "images")).items() if n in standing
    } == standing
    asked = {p for p, n in site.hits.items() if p.startswith("/picture/") and n != hits.get(p)}
    assert asked == {"/picture/10.jpg", "/picture/11.jpg"}
    table = pa.concat_tables(pq.read_table(p) for p in sorted((tmp_path / "shards").glob("*.parquet")))
    assert sorted(table["url"].to_pylist()) == [site.url(f"/picture/{i}.jpg") for i in (0, 1, 10, 11)]
    capsys.readouterr()
    assert cli.main(["run", chain]) == 0
    assert capsys.readouterr().err.count("nothing to do") == 7
