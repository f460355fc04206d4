"""Archives whole, packed in other ways, cut off, damaged, and no archives at all."""

from __future__ import annotations

import gzip
import io
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from pipeline.errors import InputError
from pipeline.stages.discover import archive
from pipeline.stages.discover.archive import Source, read_records
from tests.pipeline.web_archives import members, raw_record, warc

PAGES = {f"http://site.example/{i}": b"<p>" + bytes(range(48, 110)) * (20 + i) for i in range(4)}


class Drip(io.RawIOBase):
    """A stream that gives a few bytes at a time, as networks do, and cannot be sought."""

    def __init__(self, data: bytes, error_at: int | None = None) -> None:
        self.data, self.at, self.error_at = data, 0, error_at

    def read(self, size: int = -1) -> bytes:
        if self.error_at is not None and self.at >= self.error_at:
            raise ConnectionResetError("peer went away")
        piece = self.data[self.at : self.at + min(size if size >= 0 else 997, 997)]
        self.at += len(piece)
        return piece


def read(data: bytes, stream: object = None) -> list[tuple[int, str, bytes]]:
    records: Iterator = read_records(stream or io.BytesIO(data), "x.warc.gz")
    return [(r.stream_pos, r.headers.get("WARC-Target-URI") or "", r.reader.read()) for r in records]


PLAIN, PACKED = warc(PAGES, packed=False), warc(PAGES)


def test_plain_and_record_wise_gzip_give_the_same_records_with_offsets_to_seek_to() -> None:
    plain, packed = read(PLAIN), read(PACKED)
    assert [r[1:] for r in plain] == [r[1:] for r in packed]
    assert len(plain) == 9  # warcinfo, four requests, four responses
    for offset, url, _ in plain:
        assert PLAIN[offset:].startswith(b"WARC/1.0\r\n")
        assert url in PLAIN[offset : offset + 400].decode(errors="replace")
    for offset, url, _ in packed:
        text = gzip.GzipFile(fileobj=io.BytesIO(PACKED[offset:])).read(400)
        assert text.startswith(b"WARC/1.0\r\n")
        assert url.encode() in text


def test_an_archive_packed_as_a_whole_has_the_offsets_of_the_plain_one() -> None:
    assert read(gzip.compress(PLAIN)) == read(PLAIN)
    halves = gzip.compress(PLAIN[:3000]) + gzip.compress(PLAIN[3000:])
    assert read(halves) == read(PLAIN)


@pytest.mark.parametrize("data", [PLAIN, PACKED, gzip.compress(PLAIN)], ids=["plain", "members", "whole"])
def test_a_dripping_stream_reads_alike(data: bytes) -> None:
    assert read(b"", Drip(data)) == read(data)


def test_a_single_record_is_an_archive() -> None:
    record = raw_record(b"a: b\r\n", "warcinfo", "http://x/", "application/warc-fields")
    assert len(read(record)) == len(read(gzip.compress(record))) == 1


@pytest.mark.parametrize("data", [PLAIN, PACKED, gzip.compress(PLAIN)], ids=["plain", "members", "whole"])
def test_a_cut_is_found_wherever_it_is(data: bytes) -> None:
    starts = {r[0] for r in read(data)} if data != gzip.compress(PLAIN) else {0}
    for size in [*range(1, 40), *range(40, len(data), 61), *range(len(data) - 12, len(data))]:
        if size in starts or data[size:].strip(b"\r\n") == b"":
            continue  # cut between records: nothing shows that any are missing
        near = [s for s in starts if s < size]
        if data == PLAIN and data[max(near) : size].endswith(b"\r\n\r\n") and size + 4 in starts:
            continue
        with pytest.raises(InputError, match=r"x\.warc\.gz: (cut off|damaged|not a WARC|not a readable)"):
            read(data[:size])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"archive x.warc.gz: the file is empty \(0 bytes\)"),
        (b"<html>not an archive</html>", "not a WARC or WAT file .*<html>not an arc'"),
        (gzip.compress(b"hello"), "not a WARC or WAT file .*'hello'"),
        (gzip.compress(b""), "cut off|not a WARC"),
        (b"\x1f\x8b" + b"garbage" * 100, "not a readable gzip"),
        (b"PK\x03\x04", "not a WARC or WAT"),
        (PLAIN + b"garbage", "damaged|cut off"),
        (PACKED + b"garbage", "damaged|no gzip"),
        (PACKED + b"\x1f", "cut off"),
        (members([b"WARC/1.0\r\nnonsense"]), "cut off|damaged"),
    ],
)
def test_what_is_no_archive_is_said_to_be_none(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(data)


def test_damage_in_the_middle_names_the_place() -> None:
    offsets = [r[0] for r in read(PACKED)]
    broken = bytearray(PACKED)
    broken[offsets[4] + 250] ^= 0xFF
    with pytest.raises(InputError, match=rf"damaged after byte {offsets[4]}|damaged after byte {offsets[3]}"):
        read(bytes(broken))
    start = read(PLAIN)[3][0]
    with pytest.raises(InputError, match="damaged after byte"):
        read(PLAIN[:start] + b"some text that is no record\r\n\r\n" + PLAIN[start:])


def test_a_lost_connection_is_no_fault_of_the_archive() -> None:
    big = warc(
        {f"http://site.example/{i}": bytes(range(48, 110)) * 800 * (i + 1) for i in range(60)}, packed=False
    )
    assert len(big) > 1 << 21
    with pytest.raises(ConnectionResetError):
        read(b"", Drip(big, error_at=1_500_000))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("last", [True, False], ids=["at the end", "in the middle"])
def test_long_records_are_passed_by_in_little_memory(
    monkeypatch: pytest.MonkeyPatch, packed: bool, last: bool
) -> None:
    monkeypatch.setattr(archive, "MAX_RECORD_BYTES", 1 << 20)
    film = raw_record(random.Random(0).randbytes(8 << 20), "resource", "http://x/film", "video/mp4")
    page = raw_record(b"<p>", "resource", "http://x/page", "text/html")
    records = [page, film] if last else [page, film, page]
    data = members(records) if packed else b"".join(records)
    expected = ["http://x/page"] * (len(records) - 1)
    tracemalloc.start()
    assert [url for _, url, _ in read(b"", Drip(data))] == expected
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
    cuts = [len(data) // 2, len(data) - 100] if last else [len(data) // 2, len(data) - 30, len(data) - 12]
    for size in cuts:
        with pytest.raises(InputError, match="cut off"):
            read(data[:size])


def test_memory_is_bounded_by_the_record_under_way() -> None:
    big = warc({f"http://site.example/{i}": bytes(range(48, 110)) * 800 for i in range(100)}, packed=False)
    source = Source(io.BytesIO(big), keep_from=0)
    held = []
    while piece := source.read(65536):
        source.keep_from = source.position - len(piece) // 2
        held.append(len(source.kept()))
    assert max(held[1:]) <= 2 * 65536
