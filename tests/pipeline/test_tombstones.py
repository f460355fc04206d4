"""Tombstones: what they match, one row at a time and whole tables alike; lists; books that grow."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import tombstones
from pipeline.errors import ConfigError
from pipeline.tombstones import Tombstones, book_url, empty_rows, load, make_entry, read_list
from pipeline.urls import host_of, normal_url, without_secrets


def stones(*pairs: tuple[str, str]) -> Tombstones:
    return Tombstones(make_entry(kind, value) for kind, value in pairs)


@pytest.mark.parametrize(
    ("kind", "value", "url", "expected"),
    [
        ("url", "http://a.example/x.jpg", "http://a.example/x.jpg", True),
        ("url", "http://a.example/x.jpg", "HTTP://A.Example.:80/x.jpg#top", True),
        ("url", "https://a.example:443", "https://a.example/", True),
        ("url", "http://a.example:443/", "http://a.example/", False),
        ("url", "http://a.example/%7eann/caf%C3%A9.jpg", "http://a.example/~ann/café.jpg", True),
        ("url", "http://a.example/x%2fy.jpg", "http://a.example/x%2Fy.jpg", True),
        ("url", "http://a.example/x%2Fy.jpg", "http://a.example/x/y.jpg", False),
        ("url", "http://a.example/x.jpg", "http://a.example/X.jpg", False),
        ("url", "http://a.example/x.jpg", "http://a.example/x.jpg?", False),
        ("url", "http://a.example/x.jpg", "https://a.example/x.jpg", False),
        ("url", "photos/1.jpg", "photos/1.jpg", True),
        ("domain", "example.org", "https://example.org/a", True),
        ("domain", "example.org", "https://IMG.Example.ORG:8443/a", True),
        ("domain", "*.example.org", "https://user:pw@img.example.org/a", True),
        ("domain", "example.org", "https://notexample.org/a", False),
        ("domain", "example.org", "https://example.org.evil.example/a", False),
        ("domain", "example.org", "https://evil.example/example.org", False),
        ("domain", "example.org", r"http:\\example.org\a", True),
        ("domain", "example.org", "http://ex%61mple.org/", True),
        ("domain", "img.example.org", "http://example.org/", False),
        ("domain", "bücher.example", "http://xn--bcher-kva.example/1", True),
        ("domain", "xn--bcher-kva.example", "http://shop.BÜCHER.example/1", True),
        ("domain", "10.0.0.1", "http://10.0.0.1:8000/a", True),
        ("domain", "0.0.1", "http://10.0.0.1/a", False),
        ("domain", "[::1]", "http://[::1]:80/a", True),
        ("domain", "example.org", "file.jpg", False),
    ],
)
def test_urls_and_domains(kind: str, value: str, url: str, expected: bool) -> None:
    found = stones((kind, value))
    assert found.matches(url=url) is expected
    assert found.mask(pa.table({"url": [url, None]})).to_pylist() == [expected, False]


def test_the_other_kinds() -> None:
    uid, sha = "ab" * 16, "cd" * 32
    found = stones(("uid", uid.upper()), ("sha256", sha), ("page_domain", "blog.example"))
    assert found.matches(uid=uid)
    assert found.matches(sha256=sha)
    assert found.matches(page_url="http://ann.blog.example/1", url="http://cdn.example/1.jpg")
    assert not found.matches(url="http://ann.blog.example/1.jpg", uid=sha, sha256=uid)
    assert found.columns == ("page_url", "uid", "sha256")
    table = pa.table({"uid": [uid, None, "x"], "sha256": [None, None, sha], "other": [1, 2, 3]})
    assert found.mask(table).to_pylist() == [True, False, True]
    assert not Tombstones()
    assert Tombstones().mask(table).to_pylist() == [False] * 3


hosts = st.sampled_from(
    ["a.example", "A.Example", "b.a.example", "xa.example", "bücher.example", "1.2.3.4", ""]
)
urls = st.one_of(
    st.builds(
        lambda scheme, user, host, port, path: f"{scheme}://{user}{host}{port}{path}",
        st.sampled_from(["http", "HTTPS", " http", "ftp"]),
        st.sampled_from(["", "u:p@"]),
        hosts,
        st.sampled_from(["", ":80", ":443", ":8", ".:80"]),
        st.sampled_from(["", "/", "/%7Ea", "/~a", "/é", "/x?q#f", "\\x", "#f"]),
    ),
    st.text(max_size=20),
)


@given(
    st.lists(urls.filter(str.strip), max_size=4),
    st.lists(hosts.filter(bool), max_size=2),
    st.lists(st.none() | urls, max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_a_table_is_judged_as_its_rows_are(known: list[str], domains: list[str], asked: list) -> None:
    found = stones(*(("url", u) for u in known), *(("domain", d) for d in domains))
    table = pa.table({"url": pa.array(asked, pa.string())})
    assert found.mask(table).to_pylist() == [u is not None and found.matches(url=u) for u in asked]


@given(urls)
@example("http://.:80/%7Ea")
@example("http://a%2Fb.example/x")
@example("http://a%20.example:80")
@example("http://%.example/%zz")
@settings(max_examples=200, deadline=None)
def test_the_normal_form_is_its_own_and_keeps_the_host(url: str) -> None:
    normal = normal_url(url)
    assert normal_url(normal) == normal
    assert host_of(normal) == host_of(url)


def test_thousands_of_entries_are_fast() -> None:
    import time

    entries = [("domain", f"d{i}.example") for i in range(5000)] + [
        ("url", f"http://u{i}.example/{i}.jpg") for i in range(5000)
    ]
    found = stones(*entries)
    table = pa.table({"url": [f"http://x.d{i % 40_000}.example/{i}" for i in range(100_000)]})
    began = time.process_time()
    mask = found.mask(table)
    assert time.process_time() - began < 5.0
    assert sum(mask.to_pylist()) == sum(i % 40_000 < 5000 for i in range(100_000))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("uid", "abc", "32 hex digits"),
        ("sha256", "g" * 64, "64 hex digits"),
        ("domain", "http://example.org", "host name alone"),
        ("domain", "com", "no dot"),
        ("domain", "", "host name alone"),
        ("url", " ", "empty url"),
        ("face", "x", "unknown"),
    ],
)
def test_values_that_are_none_of_their_kind(kind: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_entry(kind, value)


def test_lists() -> None:
    text = "# request 12\n\nurl:http://a.example/?q=1,2\n domain: Example.org \nuid:" + "0" * 32 + "\n"
    found = read_list(text, "list.txt", note="n")
    assert [(e.kind, e.value, e.note) for e in found] == [
        ("url", "http://a.example/?q=1,2", "n"),
        ("domain", "example.org", "n"),
        ("uid", "0" * 32, "n"),
    ]
    csv = '\ufeffvalue,Kind,note\n"http://a.example/?q=1,2",url,mail of May\nexample.org,domain,\n'
    assert [(e.kind, e.value, e.note) for e in read_list(csv, "list.csv", note="n")] == [
        ("url", "http://a.example/?q=1,2", "mail of May"),
        ("domain", "example.org", "n"),
    ]
    with pytest.raises(ConfigError, match=r"x.txt: line 2: .*KIND:VALUE"):
        read_list("domain:a.example\nhttp://a.example/1.jpg\n", "x.txt")


def test_a_book_grows_and_holds_each_entry_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "images")
    assert not load([book_url(folder)])  # nothing was taken down from it yet
    first, second = make_entry("domain", "a.example", note="n"), make_entry("url", "http://b.example/ü")
    assert tombstones.append(folder, [first]) == 1
    assert tombstones.append(folder, [first, second, second]) == 1
    before = Path(book_url(folder)).stat().st_mtime_ns
    assert tombstones.append(folder, [second]) == 0
    assert Path(book_url(folder)).stat().st_mtime_ns == before
    lines = [json.loads(line) for line in Path(book_url(folder)).read_text().splitlines()]
    assert [(x["kind"], x["value"], x["note"]) for x in lines] == [
        ("domain", "a.example", "n"),
        ("url", "http://b.example/ü", ""),
    ]
    assert load(folder).entries == (first, second)
    shared = tmp_path / "shared.txt"
    shared.write_text("domain:c.example\n")
    assert len(load([folder, book_url(folder), str(shared)])) == 3
    with pytest.raises(ConfigError, match="do not exist"):
        load(str(tmp_path / "missing"))
    Path(book_url(folder)).write_text('{"kind": "domain"}\n')
    with pytest.raises(ConfigError, match="line 1 is no tombstone"):
        load(folder)


def test_emptied_rows_keep_their_place_and_nothing_else() -> None:
    table = pa.table(
        {
            "tags": [["a"], ["b"], None],
            "caption": ["x", "y", "z"],
            "key": ["1", "2", "3"],
            "status": ["success"] * 3,
            "reason": pa.nulls(3, pa.string()),
            "error_message": pa.nulls(3, pa.string()),
            "uid": ["u", "v", "w"],
            "sizes": [{"w": 1}, {"w": 2}, {"w": 3}],
        }
    )
    emptied = empty_rows(table, pa.array([False, True, False]))
    assert emptied.schema.equals(table.schema)
    assert emptied.to_pylist()[1] == {
        **dict.fromkeys(table.column_names),
        "key": "2",
        "uid": "v",
        "status": "failed_to_download",
        "reason": "taken_down",
        "error_message": "taken down",
    }
    assert emptied.take([0, 2]).to_pylist() == table.take([0, 2]).to_pylist()
    assert empty_rows(table, pa.array([False] * 3)) is table


def test_what_is_printed_tells_no_secrets() -> None:
    assert (
        without_secrets("https://ann:pw@a.example/x\x1b[1m.jpg?token=1#f") == "https://…@a.example/x[1m.jpg?…"
    )
    assert without_secrets("a/b.jpg") == "a/b.jpg"
