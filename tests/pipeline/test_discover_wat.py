"""Reading WAT records: what is cut out of the bytes is what parsing all of them gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastwarc.warc import ArchiveIterator
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench.discover_run import main as run_ours
from jobs.bench.webarchive import make
from pipeline.stages.discover import wat
from pipeline.stages.discover.html import Page
from tests.pipeline.web_archives import wat_record

_texts = st.text(max_size=8) | st.text(st.sampled_from('{}",:\\[]/ IMG@/src"path'), max_size=12)
_values = (
    _texts
    | st.sampled_from(['{"path":"IMG@/src",', '"},{"', "}", '\\"}', '"Base":', "\ud83c\udf4e"])
    | st.none()
)
_paths = st.sampled_from(["IMG@/src"] * 4 + ["A@/href", "IMG@/longdesc", "FORM@/action"])
_links = st.builds(
    lambda path, rest: {"path": path, **rest},
    _paths,
    st.dictionaries(st.sampled_from(["url", "alt", "title", "text"]), _values | st.integers(), max_size=4),
)


def block(html: dict[str, Any], *, ascii_only: bool, compact: bool) -> bytes:
    record = json.loads(wat_record("http://x/", None).partition(b"\r\n\r\n")[2])
    record["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"] = {"HTML-Metadata": html}
    separators = (",", ":") if compact else None
    return json.dumps(record, ensure_ascii=ascii_only, separators=separators).encode("utf-8", "replace")


@settings(max_examples=500, deadline=None)
@given(st.lists(_links, max_size=8), st.none() | _texts, st.booleans(), st.sampled_from([True, True, False]))
def test_cutting_out_is_parsing(links: list[Any], base: str | None, ascii_only: bool, compact: bool) -> None:
    html = {
        "Links": links,
        "Head": {"Title": '{"path":"IMG@/src","Base":"', **({"Base": base} if base else {})},
    }
    payload = block(html, ascii_only=ascii_only, compact=compact)
    whole = json.loads(payload)["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
    expected = [
        tuple(x.get(name) if isinstance(x.get(name), str) else None for name in ("url", "alt"))
        for x in whole["Links"]
        if x["path"] == "IMG@/src"
    ]
    page = wat.read_page(payload)
    assert (page.links if page else []) == expected
    if page and expected:
        assert page.base_href == (whole["Head"].get("Base") or None)
        assert page.total == len(expected)


def test_records_as_common_crawl_writes_them_are_not_parsed_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "x.wat.gz", 60, seed=3)
    wholes: list[bytes] = []
    real = wat._read_whole

    def noted(payload: bytes) -> Page:
        wholes.append(payload)
        return real(payload)

    monkeypatch.setattr(wat, "_read_whole", noted)
    with (tmp_path / "x.wat.gz").open("rb") as stream:
        pages = [wat.read_page(r.reader.read()) for r in ArchiveIterator(stream, parse_http=False)]
    found = [page for page in pages if page]
    assert len(found) > 40
    assert all(b'"Base"' in payload for payload in wholes)


def test_the_benchmarks_archive_is_the_same_every_time_and_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = make(tmp_path / "a.wat.gz", 40, seed=1)
    make(tmp_path / "b.wat.gz", 40, seed=1)
    assert (tmp_path / "a.wat.gz").read_bytes() == (tmp_path / "b.wat.gz").read_bytes()
    assert "120 records of 40 pages" in facts.describe(1000)
    run_ours(str(tmp_path / "a.wat.gz"))
    said = json.loads(capsys.readouterr().out)
    assert sum(said.values()) == facts.of["images"]
    assert 0.8 * facts.of["texts"] < said["rows"] <= facts.of["texts"]
