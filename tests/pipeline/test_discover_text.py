from __future__ import annotations

import html
import re
import unicodedata
from urllib.parse import urljoin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.discover.addresses import Base, url_fault
from pipeline.stages.discover.text import clean_text


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("  a\tred\r\n car ", "a red car"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("&#127822; &#x1F34E; &eacute;t&eacute;", "🍎 🍎 été"),
        ("AT&T &copy2020 x&section=2", "AT&T &copy2020 x&section=2"),
        ("cafe\u0301", "café"),
        ("a\u202egpj.exe\u202c b", "agpj.exe b"),
        ("zero\u200bwidth \ufeffmark so\xadft", "zerowidth mark soft"),
        ("می\u200cخواهم 👩\u200d👧", "می\u200cخواهم 👩\u200d👧"),
        ("nul\x00 bell\x07 esc\x1b[31m", "nul bell esc[31m"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("no-break\xa0space\u3000wide", "no-break space wide"),
        ("&#0; &#xD800; &nbsp;", "\ufffd \ufffd"),
        ("\u200e \u200f", ""),
    ],
)
def test_alt_texts_are_cleaned(written: str, cleaned: str) -> None:
    assert clean_text(written) == cleaned


@given(st.text(st.characters(exclude_characters="&")))
def test_cleaning_gives_tidy_text_and_cleaning_twice_changes_nothing(written: str) -> None:
    cleaned = clean_text(written)
    cleaned.encode()  # raises where a lone surrogate is left, which parquet cannot hold
    assert cleaned == " ".join(cleaned.split()) == clean_text(cleaned)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in cleaned)
    assert not any(
        unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "LRI", "RLI") for c in cleaned
    )


PAGE = "https://site.example:8443/a/b/page.html?x=1/2#top"


@pytest.mark.parametrize(
    ("written", "joined"),
    [
        ("http://other.example/i.jpg", "http://other.example/i.jpg"),
        ("i.jpg", "https://site.example:8443/a/b/i.jpg"),
        ("./i.jpg", "https://site.example:8443/a/b/i.jpg"),
        ("../i.jpg", "https://site.example:8443/a/i.jpg"),
        ("../../../i.jpg", "https://site.example:8443/i.jpg"),
        ("/i.jpg?w=1#x", "https://site.example:8443/i.jpg?w=1"),
        ("/x/../i.jpg", "https://site.example:8443/i.jpg"),
        ("//cdn.example/i.jpg", "https://cdn.example/i.jpg"),
        ("?img=3", "https://site.example:8443/a/b/page.html?img=3"),
        (" \n/two words/i\n.jpg ", "https://site.example:8443/two%20words/i.jpg"),
        ("data:image/gif;base64,", "data:image/gif;base64,"),
        ("javascript:void(0)", "javascript:void(0)"),
        ("img/12:30.jpg", "https://site.example:8443/a/b/img/12:30.jpg"),
        ("HTTPS://Other.Example/i.jpg", "HTTPS://Other.Example/i.jpg"),
    ],
)
def test_urls_are_joined_to_the_page(written: str, joined: str) -> None:
    assert Base(PAGE).join(written) == joined


@pytest.mark.parametrize(
    ("href", "joined"),
    [
        ("http://static.example/root/", "http://static.example/root/i.jpg"),
        ("/pictures/", "https://site.example:8443/pictures/i.jpg"),
        ("../up/x.html", "https://site.example:8443/a/up/i.jpg"),
        ("", "https://site.example:8443/a/b/i.jpg"),
        ("data:text/plain,x", "https://site.example:8443/a/b/i.jpg"),
        ("http://[broken", "https://site.example:8443/a/b/i.jpg"),
    ],
)
def test_the_base_tag_is_itself_relative_to_the_page(href: str, joined: str) -> None:
    assert Base(PAGE, href).join("i.jpg") == joined


def test_a_page_without_a_path_is_a_base_too() -> None:
    assert Base("http://site.example").join("i.jpg") == "http://site.example/i.jpg"
    assert Base("http://site.example?q=a/b").join("x/i.jpg") == "http://site.example/x/i.jpg"


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://a.example/i.jpg", None),
        ("https://bücher.example/ü.jpg", None),
        ("http://127.0.0.1:8000/i.jpg", None),
        ("http://[2001:db8::1]:80/i.jpg", None),
        ("http://a.example", None),
        ("data:image/png;base64,AAAA", "not_http"),
        ("ftp://a.example/i.jpg", "not_http"),
        ("file:///etc/passwd", "not_http"),
        ("javascript:alert(1)", "not_http"),
        ("blob:https://a.example/1", "not_http"),
        ("http:///i.jpg", "bad_url"),
        ("http:i.jpg", "bad_url"),
        ("http://user:secret@a.example/i.jpg", "bad_url"),
        ("http://a.example:port/i.jpg", "bad_url"),
        ("http://a b.example/i.jpg", "bad_url"),
        ("http://<b>/i.jpg", "bad_url"),
        ("http://a.example/\x00", "bad_url"),
        ("http://a.example/\ud800", "bad_url"),
    ],
)
def test_only_addresses_that_http_can_fetch_are_kept(url: str, fault: str | None) -> None:
    assert url_fault(url) == fault


def slow_clean(text: str) -> str:
    """What cleaning is, in the order in which one would say it."""
    text = re.sub(
        r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});",
        lambda found: html.unescape(found.group()),
        text,
    )
    unwanted = "\u200b\u200e\u200f\ufeff\u061c\xad\ufffe\uffff"
    kept = [
        c
        for c in text
        if c.isspace()
        or not (
            unicodedata.category(c) in ("Cc", "Cs")
            or c in unwanted
            or "\u202a" <= c <= "\u202e"
            or "\u2060" <= c <= "\u206f"
            or "\ufff9" <= c <= "\ufffb"
        )
    ]
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


@given(st.text() | st.text("ab &;#x\t\n\x1c\x85\xa0\u2003\u2028e\u0301\u200b\u202e\x00\ud800", max_size=30))
def test_cleaning_takes_its_short_cuts_rightly(written: str) -> None:
    assert clean_text(written) == slow_clean(written)


_PIECES = [
    "http:",
    "https:",
    "HTTP://",
    "data:,",
    "//",
    "/",
    "/",
    "..",
    ".",
    "..a",
    ".b",
    "a.example",
    "b-c.example:80",
    "x",
    "i.jpg",
    "?",
    "w=1&h=2",
    "#t",
    ";p",
    ":",
    "@",
    "%20",
    "\\",
    "ü",
    "[",
    "]",
    '"',
    "=",
    "~",
    " ",
    "\n",
]
_pieces = st.sampled_from(_PIECES)
_written = st.lists(_pieces, max_size=9).map("".join)
_pages = st.lists(_pieces, max_size=7).map(lambda parts: "http://site.example" + "".join(parts))


@settings(max_examples=1500, deadline=None)
@given(_pages | st.just(PAGE) | st.text(), st.none() | _written, _written | st.text())
def test_an_address_is_what_joining_and_judging_would_give(page: str, href: str | None, written: str) -> None:
    base = Base(page, href)
    url, fault = base.address(written)
    try:
        joined = base.join(written)
    except ValueError:
        assert fault == "bad_url"
        return
    assert (url, fault) == (joined, url_fault(joined))


_plain = st.lists(st.sampled_from(["a", "b.c", "d-e", "%20", "..", "."]), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=4), _plain.map("/".join), st.sampled_from(["", "/"])
)
def test_plain_relative_addresses_are_joined_as_urljoin_joins_them(
    folders: list[str], written: str, root: str
) -> None:
    page = "https://site.example/" + "".join(f"{folder}/" for folder in folders) + "page.html"
    assert Base(page).address(root + written) == (urljoin(page, root + written), None)
