"""discover over archives of other makers: warcio, wget, and Common Crawl's WAT fields."""

from __future__ import annotations

import gzip
import http.server
import shutil
import subprocess
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.capture_http import capture_http

from pipeline import manifest, session
from pipeline.errors import ConfigError, InputError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.stage import Output
from pipeline.stages.discover import DiscoverConfig, DiscoverStage
from tests.pipeline import web_archives as made

PAGE = """<html><head><base href="/static/"></head><body>
<img src="one.jpg" alt="a red car &amp; a tree">
<img src="http://cdn.example/two.png" alt="  two
  lines ">
<img src="data:image/gif;base64,R0lGOD" data-src="/lazy.jpg" alt="loaded lazily">
<img src="small.jpg" srcset="small.jpg 1x, large.jpg 2x" alt="in two sizes">
<img src="one.jpg" alt="a red car &amp; a tree">
<img src="one.jpg" alt="another text">
<img src="none.jpg"><img src="none.jpg" alt=" ">
<img src="data:image/gif;base64,R0lGOD" alt="only a placeholder">
<img src="logo.svg" alt="the logo of the site">
<img alt="no address at all">
<img src="http://[bad/x.jpg" alt="a broken address">
</body></html>"""

FOUND = [
    ("http://site.example/static/one.jpg", "a red car & a tree", 0),
    ("http://cdn.example/two.png", "two lines", 1),
    ("http://site.example/lazy.jpg", "loaded lazily", 2),
    ("http://site.example/static/large.jpg", "in two sizes", 3),
    ("http://site.example/static/one.jpg", "another text", 5),
]
COUNTS: dict[str, Any] = {
    "in": 12,
    "out": 5,
    "dropped": {
        "bad_url": 1,
        "duplicate_in_page": 1,
        "no_alt": 2,
        "no_url": 1,
        "not_http": 1,
        "svg_or_gif": 1,
    },
}


def discover(path: Path, data: bytes, rules: str = "laion5b") -> Output:
    path.write_bytes(data)
    stage = DiscoverStage(DiscoverConfig(input=str(path), rules=rules))
    (unit,) = stage.plan([])
    result = stage.run(unit, path.parent)
    result.counts.check()
    return result


def rows(result: Output) -> list[tuple[Any, ...]]:
    table = result.parts[".parquet"]
    assert isinstance(table, pa.Table)
    return [(r["url"], r["caption"], r["position"]) for r in table.to_pylist()]


@pytest.mark.parametrize("packed", [True, False])
def test_a_warc_by_warcio(tmp_path: Path, packed: bool) -> None:
    pages = {
        "http://site.example/a/page.html": PAGE.encode(),
        "http://site.example/text.html": b"<p>no picture</p>",
    }
    result = discover(tmp_path / "x.warc", made.warc(pages, packed=packed))
    assert rows(result) == FOUND
    assert result.counts.to_json() == COUNTS
    assert result.notes == {
        "records": 5,
        "pages": 2,
        "pages_with_images": 1,
        "bytes": len(PAGE.encode()) + 17,
        "malformed": 0,
    }
    table = result.parts[".parquet"]
    assert isinstance(table, pa.Table)
    assert table.schema.names == ["url", "caption", "page_url", "archive", "record_offset", "position"]
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["page_url"], first["archive"]) == ("http://site.example/a/page.html", "x.warc")
    record = (tmp_path / "x.warc").read_bytes()[first["record_offset"] :]
    text = gzip.decompress(record) if packed else record
    assert text.index(b"WARC-Type: response") < text.index(b"site.example/a/page.html") < 300


def test_the_rules_of_the_preset_decide(tmp_path: Path) -> None:
    page = b"<img src=a.jpg alt=1234><img src=b.jpg alt=12345><img src=c.gif alt=12345>"
    data = made.warc({"http://site.example/": page})
    by_rules = {
        "none": ["a.jpg", "b.jpg", "c.gif"],
        "laion400m": ["b.jpg", "c.gif"],
        "laion5b": ["a.jpg", "b.jpg"],
        "coyo": [],
    }
    for rules, kept in by_rules.items():
        result = discover(tmp_path / "x.warc.gz", data, rules)
        assert [url.rpartition("/")[2] for url, _, _ in rows(result)] == kept
    assert result.counts.to_json()["dropped"] == {"short_caption": 3}


def test_what_is_no_page_is_passed_by(tmp_path: Path) -> None:
    body = b'<html><img src="http://a.example/a.jpg" alt="a picture">'
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\n\r\n"
    data = b"".join(
        [
            made.response(head % (b"404 Not Found", b"text/html") + body),
            made.response(head % (b"301 Moved", b"text/html") + body),
            made.response(head % (b"200 OK", b"image/jpeg") + body),
            made.response(b"HTTP/1.1 200 OK\r\n\r\n" + body, "http://site.example/untyped"),
            made.response(head % (b"200 OK", b"TEXT/HTML; charset=x") + body, "<http://site.example/typed>"),
            made.raw_record(b"20240518 a.example 1.2.3.4", "response", "dns:a.example", "text/dns"),
            made.raw_record(b"fetchTimeMs: 3", "metadata", "http://x/", "application/warc-fields"),
            made.raw_record(head % (b"200 OK", b"text/html"), "revisit", "http://x/", "application/http"),
        ]
    )
    result = discover(tmp_path / "x.warc", data)
    table = result.parts[".parquet"]
    assert isinstance(table, pa.Table)
    assert table["page_url"].to_pylist() == ["http://site.example/untyped", "http://site.example/typed"]
    assert (result.notes["pages"], result.notes["malformed"]) == (2, 0)


def test_bodies_in_every_encoding(tmp_path: Path) -> None:
    body = b'<html><img src="a.jpg" alt="a picture">'
    deflate = zlib.compressobj(wbits=-15)
    chunks = b"%x\r\n%s\r\n%x;ext=1\r\n%s\r\n0\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
    bodies = {
        "Content-Encoding: gzip": gzip.compress(body),
        "Content-Encoding: x-gzip": body,  # stored decoded, the header left
        "Content-Encoding: deflate": zlib.compress(body),
        "Content-Encoding: Deflate": deflate.compress(body) + deflate.flush(),
        "Transfer-Encoding: chunked": chunks,
        "Transfer-Encoding: Chunked": body,
        "Transfer-Encoding: chunked ": b"ff\r\n" + body,  # cut off
        "Content-Encoding: gzip\r\nTransfer-Encoding: chunked": b"%x\r\n%s\r\n0\r\n\r\n"
        % (len(gzip.compress(body)), gzip.compress(body)),
        "Content-Encoding: identity": body,
    }
    data = b"".join(
        made.response(f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{header}\r\n\r\n".encode() + encoded)
        for header, encoded in bodies.items()
    )
    result = discover(tmp_path / "x.warc", data)
    assert rows(result) == [("http://site.example/a.jpg", "a picture", 0)] * len(bodies)


@pytest.mark.parametrize("packed", [True, False])
def test_malformed_records_are_counted_and_passed_by(tmp_path: Path, packed: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    good = made.response(head + b"\r\n<img src=a.jpg alt='a picture'>")
    bad = [
        made.response(b"\x00\xff garbage, not HTTP" * 20),
        made.response(b""),
        made.response(head + b"Content-Encoding: gzip\r\n\r\nnot gzip at all"),
        made.response(head + b"Content-Encoding: zork\r\n\r\nwhat is this"),
        made.response(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"),
        made.raw_record(b'{"Envelope": {"IMG@/src', "metadata", "http://x/", "application/json"),
        made.raw_record(
            b'{"Links": [{"path":"IMG@/src"}], "Base":1}', "metadata", "http://x/", "application/json"
        ),
        made.raw_record(b'[1, "IMG@/src"]', "metadata", "http://x/", "application/json"),
    ]
    records = [x for one in bad for x in (one, good)]
    result = discover(tmp_path / "x.warc", made.members(records) if packed else b"".join(records))
    assert result.notes["malformed"] == len(bad)
    assert result.counts.to_json() == {"in": len(bad), "out": len(bad), "dropped": {}}


def test_pages_in_other_charsets_and_with_wrong_bytes(tmp_path: Path) -> None:
    tag = "<html><img src=a.jpg alt='{}'>"
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html{}\r\n\r\n"
    pages = [
        (
            head.format("; charset=windows-1251").encode() + tag.format("красный дом").encode("cp1251"),
            "красный дом",
        ),
        (head.format("").encode() + b"<meta charset=gbk>" + tag.format("红房子").encode("gbk"), "红房子"),
        (head.format("").encode() + tag.format("赤い家").encode("utf-16"), "赤い家"),
        (
            head.format("; charset=utf-8").encode()
            + tag.format("grün\udcff Haus").encode(errors="surrogateescape"),
            "grün\ufffd Haus",
        ),
    ]
    result = discover(tmp_path / "x.warc", b"".join(made.response(page) for page, _ in pages))
    assert [caption for _, caption, _ in rows(result)] == [caption for _, caption in pages]


WAT_LINKS = [
    {"path": "A@/href", "url": "/i.jpg", "text": "see"},
    {"path": "IMG@/src", "url": "/i/one.jpg", "alt": "a red car & a tree", "title": "car"},
    {"path": "IMG@/src", "url": "two.jpg", "alt": 'says "IMG@/src": {"path":"IMG@/src"} \\ \n end'},
    {"path": "IMG@/src", "url": "data:image/gif;base64,", "alt": "a placeholder"},
    {"path": "IMG@/src", "url": "/i/none.jpg"},
    {"path": "IMG@/longdesc", "url": "/about.html"},
    {"path": "IMG@/src", "url": "//cdn.example/3.jpg", "alt": "Grüße \ud83c\udf4e"},
    {"path": "IMG@/src", "url": "/i/one.jpg", "alt": "a red car & a tree"},
]
WAT_COUNTS: dict[str, Any] = {
    "in": 6,
    "out": 3,
    "dropped": {"duplicate_in_page": 1, "no_alt": 1, "not_http": 1},
}


def wat_found(folder: str) -> list[tuple[str, str, int]]:
    return [
        ("http://site.example/i/one.jpg", "a red car & a tree", 0),
        (f"http://site.example{folder}two.jpg", 'says "IMG@/src": {"path":"IMG@/src"} \\ end', 1),
        ("http://cdn.example/3.jpg", "Grüße 🍎", 4),
    ]


@pytest.mark.parametrize("escape", [False, True], ids=["as it is", "slashes escaped"])
def test_a_wat_as_common_crawl_writes_it(tmp_path: Path, escape: bool) -> None:
    links = [
        {k: v.encode("utf-16", "surrogatepass").decode("utf-16") for k, v in x.items()} for x in WAT_LINKS
    ]
    record = made.wat_record("http://site.example/d/p.html", {"Head": {"Title": "t"}, "Links": links})
    if escape:
        _, _, block = record.partition(b"\r\n\r\n")
        block = block.removesuffix(b"\r\n\r\n").replace(b"/", b"\\/")
        record = made.raw_record(block, "metadata", "http://site.example/d/p.html", "application/json")
    data = made.members([made.wat_info(), made.wat_record("http://site.example/d/p.html", None), record])
    result = discover(tmp_path / "x.warc.wat.gz", data)
    assert rows(result) == wat_found("/d/")
    assert result.counts.to_json() == WAT_COUNTS
    assert (result.notes["records"], result.notes["pages"], result.notes["pages_with_images"]) == (3, 1, 1)
    table = result.parts[".parquet"]
    assert isinstance(table, pa.Table)
    (offset,) = set(table["record_offset"].to_pylist())
    assert b"IMG@" in gzip.decompress((tmp_path / "x.warc.wat.gz").read_bytes()[offset:])


def test_a_wat_with_a_base_or_fields_in_another_order_reads_alike(tmp_path: Path) -> None:
    links = [
        {k: v.encode("utf-16", "surrogatepass").decode("utf-16") for k, v in x.items()} for x in WAT_LINKS
    ]
    shuffled = [dict(reversed(link.items())) for link in links]
    for head, parts, folder in (({"Base": "/b/"}, links, "/b/"), ({}, shuffled, "/d/")):
        record = made.wat_record("http://site.example/d/p.html", {"Head": head, "Links": parts})
        result = discover(tmp_path / "x.wat.gz", made.members([made.wat_info(), record]))
        assert rows(result) == wat_found(folder)
        assert result.counts.to_json() == WAT_COUNTS


def test_lone_surrogates_in_a_wat_do_not_stop_the_table(tmp_path: Path) -> None:
    links = [
        {"path": "IMG@/src", "url": "a.jpg", "alt": "x"},
        {"path": "IMG@/src", "url": "b.jpg", "alt": "x"},
    ]
    record = made.wat_record("http://site.example/", {"Links": links})
    _, _, block = record.partition(b"\r\n\r\n")
    block = (
        block.removesuffix(b"\r\n\r\n").replace(b'"x"', b'"cut \\ud83c"', 1).replace(b"b.jpg", b"\\ud83c.jpg")
    )
    data = made.raw_record(block, "metadata", "http://site.example/", "application/json")
    result = discover(tmp_path / "x.wat", data)
    assert rows(result) == [("http://site.example/a.jpg", "cut", 0)]
    assert result.counts.to_json()["dropped"] == {"bad_url": 1}


def test_an_archive_without_pages_is_done_with_no_rows(tmp_path: Path) -> None:
    result = discover(tmp_path / "x.warc.gz", made.warc({}))
    table = result.parts[".parquet"]
    assert isinstance(table, pa.Table)
    assert (len(table), result.counts.to_json()) == (0, {"in": 0, "out": 0, "dropped": {}})
    assert table.schema.field("record_offset").type == pa.int64()


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "site"
    (root / "a").mkdir(parents=True)
    (root / "index.html").write_text("<a href='a/page.html'>page</a> <img src='/i.png' alt='front page'>")
    (root / "a" / "page.html").write_text(PAGE)
    (root / "i.png").write_bytes(b"\x89PNG")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", root
    server.shutdown()
    server.server_close()


def _archive_site(folder: Path, url: str) -> None:
    """Crawls with wget; where it is not installed, warcio notes what urllib fetches."""
    if shutil.which("wget"):
        options = ["-q", "-r", "-l", "2", "--no-parent", "-e", "robots=off", "--delete-after", "-A", "html"]
        subprocess.run(
            ["wget", *options, "--no-proxy", f"--warc-file={folder / 'crawl'}", url],
            cwd=folder,
            check=False,  # wget exits 8 because the page's other links are dead
            timeout=60,
        )
        return
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with capture_http(str(folder / "crawl.warc.gz")):
        for page in ("", "a/page.html"):
            opener.open(url + page, timeout=60).read()


def test_a_warc_by_wget(tmp_path: Path, website: tuple[str, Path]) -> None:
    url, _ = website
    _archive_site(tmp_path, url)
    stage = DiscoverStage(DiscoverConfig(input=[str(tmp_path / "crawl*.warc.gz")]))
    (unit,) = stage.plan([])
    result = stage.run(unit, tmp_path)
    expected = [(f"{url}i.png", "front page", 0)]
    expected += [(found.replace("http://site.example/", url), text, place) for found, text, place in FOUND]
    assert rows(result) == expected
    table = result.parts[".parquet"]
    assert isinstance(table, pa.Table)
    assert table["page_url"].to_pylist() == [url, *[f"{url}a/page.html"] * 5]


def test_archives_by_url_glob_and_folder_of_any_filesystem(tmp_path: Path, website: tuple[str, Path]) -> None:
    url, root = website
    data = made.warc({"http://site.example/": PAGE.encode()})
    (root / "x.warc.gz").write_bytes(data)
    with fsspec.open("memory://discover/deep/y.warc.gz", "wb") as stream:
        stream.write(data)
    stage = DiscoverStage(DiscoverConfig(input=[f"{url}x.warc.gz", "memory://discover/*/*.warc.gz"]))
    units = stage.plan([])
    assert [unit.source["archive"] for unit in units] == ["x.warc.gz", "deep/y.warc.gz"]
    for unit in units:
        assert rows(stage.run(unit, tmp_path)) == FOUND


def test_wrong_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="discover has no input; give --input"):
        DiscoverStage(DiscoverConfig())
    with pytest.raises(ConfigError, match="rules 'laion6b' are not known; presets: coyo"):
        DiscoverStage(DiscoverConfig(input="x", rules="laion6b"))
    with pytest.raises(ConfigError, match="names no file"):
        DiscoverStage(DiscoverConfig(input=str(tmp_path / "*.warc.gz"))).plan([])


def test_a_file_that_went_away_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "x.warc").write_bytes(made.warc({}))
    stage = DiscoverStage(DiscoverConfig(input=str(tmp_path / "x.warc")))
    (unit,) = stage.plan([])
    (tmp_path / "x.warc").unlink()
    with pytest.raises(InputError, match=r"archive x\.warc: .* is not there any more"):
        stage.run(unit, tmp_path)


def test_through_the_runner_bad_archives_fail_alone_and_new_ones_are_appended(tmp_path: Path) -> None:
    crawl, output = tmp_path / "crawl", str(tmp_path / "candidates")
    crawl.mkdir()
    good = made.warc({f"http://site.example/{i}": PAGE.encode() for i in range(3)})
    (crawl / "b.warc.gz").write_bytes(good)
    (crawl / "c.warc.gz").write_bytes(good[:-40])
    (crawl / "d.warc.gz").write_bytes(b"")
    stage = DiscoverStage(DiscoverConfig(input=str(crawl / "*.warc.gz")))
    with session.shared_session():
        _run_twice(stage, crawl, output, good)


def _run_twice(stage: DiscoverStage, crawl: Path, output: str, good: bytes) -> None:
    summary = run_stage(stage, output, RunOptions(workers=1))
    assert (summary.done, sorted(summary.failed), summary.exit_code) == (1, [1, 2], 1)
    assert "cut off" in summary.failed[1]
    assert "empty (0 bytes)" in summary.failed[2]
    assert summary.counts.to_json() == {
        "in": 36,
        "out": 15,
        "dropped": {k: 3 * v for k, v in COUNTS["dropped"].items()},
    }
    assert not (Path(output) / "part-00000001.parquet").exists()
    before = (Path(output) / "part-00000000.parquet").read_bytes()
    # mended files and one that sorts before all others: numbers stay, nothing is done twice
    for name in ("a", "c", "d"):
        (crawl / f"{name}.warc.gz").write_bytes(good)
    again = run_stage(stage, output, RunOptions(workers=1))
    assert (again.done, again.done_before, again.exit_code) == (3, 1, 0)
    assert (Path(output) / "part-00000000.parquet").read_bytes() == before
    archives = [pq.read_table(Path(output) / f"part-{n:08d}.parquet")["archive"][0].as_py() for n in range(4)]
    assert archives == ["b.warc.gz", "c.warc.gz", "d.warc.gz", "a.warc.gz"]
    assert [m["notes"]["pages"] for m in manifest.read_all(output)] == [3, 3, 3, 3]
