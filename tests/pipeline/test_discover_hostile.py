"""Archives that somebody made to break the reader: no crash, little memory, little time, a clear word."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.stage import Output
from pipeline.stages.discover import DiscoverConfig, DiscoverStage
from tests.pipeline import web_archives as made

LINK = {"path": "IMG@/src", "url": "/a.jpg", "alt": "a picture"}
GOOD = made.wat_record("http://site.example/", {"Head": {}, "Links": [LINK]})
HTML = made.response(
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><img src=a.jpg alt='a picture'>"
)


def discover(path: Path, data: bytes) -> Output:
    path.write_bytes(data)
    stage = DiscoverStage(DiscoverConfig(input=str(path), rules="none"))
    (unit,) = stage.plan([])
    result = stage.run(unit, path.parent)
    result.counts.check()
    return result


def wat_block(block: bytes) -> bytes:
    return made.raw_record(block, "metadata", "http://x.example/", "application/json")


def in_little_memory(path: Path, data: bytes, *, megabytes: int, seconds: int) -> dict[str, object]:
    """Reads an archive in a process that may take so much address space beyond its start, and CPU time."""
    path.write_bytes(data)
    code = f"""
        import json, resource, sys
        from pathlib import Path
        from pipeline.errors import InputError
        from pipeline.stages.discover import DiscoverConfig, DiscoverStage
        stage = DiscoverStage(DiscoverConfig(input={str(path)!r}, rules="none"))
        (unit,) = stage.plan([])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_CPU, ({seconds + 20}, {seconds + 20}))
        try:
            found = stage.run(unit, Path("."))
            said = {{"counts": found.counts.to_json(), "notes": found.notes}}
        except InputError as error:
            said = {{"error": str(error)}}
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({{**said, "megabytes": (usage.ru_maxrss - before) / 1024}}))
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["megabytes"] < megabytes, said
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds + 5  # 5 for imports
    return dict(said)


def zeros(megabytes: int) -> bytes:
    """A gzip member with a record of so many megabytes of blanks, a thousandth of that in size."""
    size = megabytes << 20
    head = GOOD.partition(b"Content-Length: ")[0] + f"Content-Length: {size}\r\n\r\n".encode()
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(head)]
    parts += [packer.compress(b" " * (1 << 20)) for _ in range(megabytes)]
    return b"".join([*parts, packer.compress(b"\r\n\r\n"), packer.flush()])


def test_a_gzip_bomb_is_passed_by_in_little_memory(tmp_path: Path) -> None:
    data = gzip.compress(GOOD) + zeros(400) + gzip.compress(GOOD)
    assert len(data) < 1 << 20
    said = in_little_memory(tmp_path / "x.wat.gz", data, megabytes=100, seconds=15)
    assert said["counts"] == {"in": 2, "out": 2, "dropped": {}}


def test_a_bomb_in_the_head_of_a_record(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(b"WARC/1.0\r\nX: ")]
    parts += [packer.compress(b"y" * (1 << 20)) for _ in range(200)]
    data = gzip.compress(GOOD) + b"".join(parts) + packer.flush()
    said = in_little_memory(tmp_path / "x.wat.gz", data, megabytes=100, seconds=15)
    assert "archive x.wat.gz: " in str(said["error"])


def test_many_pictures_in_one_record(tmp_path: Path) -> None:
    links = b",".join(b'{"path":"IMG@/src","url":"/%d","alt":"a"}' % n for n in range(300_000))
    page = json.dumps({"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {}}}}})
    block = page.replace('"HTML-Metadata": {}', '"HTML-Metadata": {"Links": [LINKS]}').encode()
    data = made.members([wat_block(block.replace(b"LINKS", links)), GOOD])
    said = in_little_memory(tmp_path / "x.wat.gz", data, megabytes=200, seconds=15)
    assert said["counts"] == {"in": 300_001, "out": 20_001, "dropped": {"too_many_links": 280_000}}


def test_many_pictures_in_one_page(tmp_path: Path) -> None:
    body = b"<html>" + b"<img src=a alt=b>" * 100_000
    data = made.response(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body)
    said = in_little_memory(tmp_path / "x.warc", data, megabytes=250, seconds=15)
    assert said["counts"] == {
        "in": 100_000,
        "out": 1,
        "dropped": {"duplicate_in_page": 19_999, "too_many_links": 80_000},
    }


@pytest.mark.parametrize(
    "block",
    [
        b'{"Envelope":' + b'{"a":' * 500_000 + b'"IMG@/src"' + b"}" * 500_001,
        b'{"Links":' + b"[" * 2_000_000 + b'{"path":"IMG@/src",',
        b'{"IMG@": ' + b"9" * 200_000 + b"}",
        b"\xff\xfe" + b'{"path":"IMG@/src","url":"\xff\xff"}' * 100,
        b'{"path":"IMG@/src","url":"\\ud800","alt":"}"},' * 100,
        b'{"path":"IMG@/src",' * 100_000,
        b'"IMG@' * 1_000_000,
        b'[1, 2, "IMG@/src"]',
        b'{"Envelope":{"Payload-Metadata":{"HTTP-Response-Metadata":{"HTML-Metadata":{"Links":"IMG@/src","x":"IMG@"}}}}}'
        b'"IMG@',
    ],
    ids=lambda block: repr(block[:18]),
)
def test_json_that_is_none_or_too_deep_is_malformed(tmp_path: Path, block: bytes) -> None:
    result = discover(tmp_path / "x.wat.gz", made.members([GOOD, wat_block(block), GOOD]))
    assert (result.notes["malformed"], result.counts.kept) == (1, 2)


def test_texts_of_ten_megabytes_are_texts(tmp_path: Path) -> None:
    links = [
        {**LINK, "alt": "long " * 2_000_000},
        {**LINK, "url": "http://x.example/" + "../" * 3_000_000},
        LINK,
    ]
    data = made.members([made.wat_record("http://site.example/", {"Links": links[:1]}), GOOD])
    assert discover(tmp_path / "a.wat.gz", data).counts.kept == 2
    data = made.members([made.wat_record("http://site.example/", {"Links": links[1:]}), GOOD])
    assert discover(tmp_path / "b.wat.gz", data).counts.kept == 3


def test_null_bytes_and_wrong_bytes_in_texts_and_headers(tmp_path: Path) -> None:
    record = made.wat_record(
        "http://site.example/\x00\udcff".encode("utf-8", "replace").decode(), {"Links": [LINK]}
    )
    broken = GOOD.replace(b"http://site.example/", b"http://site.example/\x00\xff", 1)
    html = HTML.replace(b"a picture", b"a\x00pict\xffre\xed\xa0\x80").replace(b"a.jpg", b"\x00.jpg")
    html = made.response(html.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n"))
    result = discover(tmp_path / "x.warc.gz", made.members([record, broken, html, HTML]))
    table = result.parts[".parquet"]
    assert isinstance(table, pa.Table)
    assert "\x00" not in "".join(table["caption"].to_pylist())
    assert result.notes["records"] == 4


@pytest.mark.parametrize(
    "length",
    [b"-1", b"-99999999999", b"99999999999999999999999", b"18446744073709551615", b"1e9", b"0x10", b"", b"1"],
)
@pytest.mark.parametrize("packed", [True, False])
def test_content_lengths_that_lie(tmp_path: Path, length: bytes, packed: bool) -> None:
    head, _, rest = HTML.partition(b"Content-Length: ")
    lie = head + b"Content-Length: " + length + rest[rest.index(b"\r\n") :]
    data = made.members([GOOD, lie, HTML]) if packed else GOOD + lie + HTML
    said = ""
    try:
        kept = discover(tmp_path / "x.warc", data).counts.kept
    except InputError as error:
        kept, said = 0, str(error)
    assert kept or "archive x.warc: " in said


@pytest.mark.parametrize("packed", [True, False])
def test_a_length_that_is_too_long_by_little_is_seen(tmp_path: Path, packed: bool) -> None:
    head, _, rest = HTML.partition(b"Content-Length: ")
    size = int(rest[: rest.index(b"\r\n")])
    lie = head + b"Content-Length: %d" % (size + 400) + rest[rest.index(b"\r\n") :]
    with pytest.raises(InputError, match=r"archive x\.warc: (cut off|damaged)"):
        discover(tmp_path / "x.warc", made.members([GOOD, lie]) if packed else GOOD + lie)


def test_an_endless_header_and_an_endless_line(tmp_path: Path) -> None:
    for lie in (b"WARC/1.0\r\n" + b"A: b\r\n" * 3_000_000, b"WARC/1.0\r\nA: " + b"b" * 20_000_000):
        for data in (lie, made.members([GOOD, lie])):
            with pytest.raises(InputError, match=r"archive x\.warc: "):
                discover(tmp_path / "x.warc", data)


def test_gzip_in_gzip_is_no_archive(tmp_path: Path) -> None:
    data = made.members([GOOD, HTML])
    for _ in range(2):
        data = gzip.compress(data)
        with pytest.raises(InputError, match=r"archive x\.warc: not a WARC"):
            discover(tmp_path / "x.warc", data)


@pytest.mark.parametrize("packing", ["plain", "members", "whole"])
def test_cut_at_every_block_of_512_bytes(tmp_path: Path, packing: str) -> None:
    noise = [
        made.wat_record(f"http://site.example/{n}", {"Head": {"T": str(n) * 900}, "Links": [LINK]})
        for n in range(20)
    ]
    plain = b"".join(noise)
    data = {"plain": plain, "members": made.members(noise), "whole": gzip.compress(plain)}[packing]
    ends, at = set(), 0
    for record in noise:
        at += len(record) if packing == "plain" else len(gzip.compress(record))
        ends |= {at, at - 2, at - 4} if packing == "plain" else {at}
    seen = 0
    for size in range(512, len(data), 512):
        if packing != "whole" and size in ends:
            continue  # what is missing there are whole records: nothing in the file shows it
        with pytest.raises(InputError, match=r"archive x\.warc: (cut off|damaged|not a)"):
            discover(tmp_path / "x.warc", data[:size])
        seen += 1
    assert seen >= len(data) // 512 - len(ends)
