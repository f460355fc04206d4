"""What robots.txt, tdmrep.json and headers say: the RFC's own examples, and what the web makes of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.crawl.patterns import Pattern, canonical_path
from pipeline.stages.crawl.robots import MAX_BYTES, Robots, parse_robots
from pipeline.stages.crawl.signals import TdmRules, parse_tdmrep, tag_forbids, tdm_forbids
from tests.pipeline.effort import calls

RFC_SIMPLE = b"""
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""
RFC_LONGEST = b"""
User-Agent: foobot
Allow: /example/page/
Disallow: /example/page/disallowed.gif
"""
RFC_MERGED = b"""
User-Agent: ExampleBot
Disallow: /foo
Disallow: /bar

User-Agent: ExampleBot
Disallow: /baz
"""


@pytest.mark.parametrize(
    ("robots", "agent", "path", "allowed"),
    [
        # RFC 9309, 5.1
        (RFC_SIMPLE, "foobot", "/", False),
        (RFC_SIMPLE, "foobot", "/example/page.html", True),
        (RFC_SIMPLE, "foobot", "/example/allowed.gif", True),
        (RFC_SIMPLE, "foobot", "/publications/a", False),
        (RFC_SIMPLE, "barbot", "/example/page.html", False),
        (RFC_SIMPLE, "bazbot", "/example/page.html", False),
        (RFC_SIMPLE, "bazbot", "/x.gif", True),
        (RFC_SIMPLE, "quxbot", "/example/page.html", True),
        (RFC_SIMPLE, "pairmill", "/x.gif", False),
        (RFC_SIMPLE, "pairmill", "/x.gif?a", True),
        (RFC_SIMPLE, "pairmill", "/example/x", False),
        (RFC_SIMPLE, "pairmill", "/publications/x.gif", True),
        # RFC 9309, 5.2 and 2.2.1
        (RFC_LONGEST, "foobot", "/example/page/a.gif", True),
        (RFC_LONGEST, "foobot", "/example/page/disallowed.gif", False),
        (RFC_MERGED, "examplebot", "/foo", False),
        (RFC_MERGED, "examplebot", "/baz/x", False),
        (RFC_MERGED, "examplebot", "/qux", True),
        # ties, empty patterns, case of paths, names as they are written
        (b"User-agent: *\nDisallow: /a\nAllow: /a", "pairmill", "/a", True),
        (b"User-agent: *\nDisallow:", "pairmill", "/a", True),
        (b"User-agent: *\nDisallow: /A", "pairmill", "/a", True),
        (b"USER-AGENT: PairMill/2.0 (x)\nDISALLOW: /", "pairmill", "/a", False),
        (b"User-agent: mill\nDisallow: /", "pairmill", "/a", True),
        (b"User-agent: pairmillx\nDisallow: /", "pairmill", "/a", True),
        (b"User-agent: img2dataset\nDisallow: /", "img2dataset", "/a", False),
        (b"User-agent: *\nDisallow: /\n\nUser-agent: pairmill\nAllow: /", "pairmill", "/a", True),
        (b"User-agent: *\nDisallow: /\n\nUser-agent: pairmill\nDisallow:", "pairmill", "/a", True),
        (b"Disallow: /\nUser-agent: other\nDisallow: /", "pairmill", "/a", True),
        (b"User-agent: *\nDisallow: /", "pairmill", "/robots.txt", True),
        # lines that are no rules do not end a group; a Crawl-delay does, as it is a rule to us
        (b"User-agent: *\nSitemap: http://x/\nUser-agent: b\nDisallow: /", "pairmill", "/a", False),
        (b"User-agent: *\nCrawl-delay: 5\n\nUser-agent: b\nDisallow: /", "pairmill", "/a", True),
        # ends of lines, comments, spaces, a byte order mark, bytes that are no text
        (b"\xef\xbb\xbfUser-agent: *\rDisallow: /a # no\r\n\r\nDisallow:/b", "pairmill", "/a", False),
        (b"\xef\xbb\xbfUser-agent: *\rDisallow: /a # no\r\n\r\nDisallow:/b", "pairmill", "/b", False),
        (b"  user-agent :  *  \n  disallow :  /a  ", "pairmill", "/ab", False),
        (b"\xff\xfe\x00User-agent: *\nDisallow: /", "pairmill", "/a", True),
        (b"<html>User-agent: *<br>Disallow: /</html>", "pairmill", "/a", True),
        # wildcards
        (b"User-agent: *\nDisallow: /*/private/*.jpg$", "pairmill", "/a/b/private/c/d.jpg", False),
        (b"User-agent: *\nDisallow: /*/private/*.jpg$", "pairmill", "/a/private/c.jpg?x", True),
        (b"User-agent: *\nDisallow: /a$", "pairmill", "/a", False),
        (b"User-agent: *\nDisallow: /a$", "pairmill", "/ab", True),
        (b"User-agent: *\nDisallow: /a$b", "pairmill", "/a$bc", False),
        (b"User-agent: *\nDisallow: /a%2A", "pairmill", "/a*b", False),
        (b"User-agent: *\nDisallow: /a%2A", "pairmill", "/axb", True),
        (b"User-agent: *\nDisallow: /*?", "pairmill", "/a?b", False),
        (b"User-agent: *\nDisallow: *", "pairmill", "/a", False),
        (b"User-agent: *\nDisallow: images", "pairmill", "/images/a.jpg", False),
        (b"User-agent: *\nAllow: /p\nDisallow: /", "pairmill", "/page", True),
        (b"User-agent: *\nAllow: /page\nDisallow: /*.htm", "pairmill", "/page.htm", False),
        (b"User-agent: *\nAllow: /$\nDisallow: /", "pairmill", "/", True),
        (b"User-agent: *\nAllow: /$\nDisallow: /", "pairmill", "/page", False),
        # RFC 9309, 2.2.2: one spelling of both sides
        (b"User-agent: *\nDisallow: /foo/bar?baz=quz", "pairmill", "/foo/bar?baz=quz", False),
        (b"User-agent: *\nDisallow: /f?b=https://foo.bar", "pairmill", "/f?b=https%3A%2F%2Ffoo.bar", False),
        ("User-agent: *\nDisallow: /foo/bar/ツ".encode(), "pairmill", "/foo/bar/%E3%83%84", False),
        (b"User-agent: *\nDisallow: /foo/bar/%e3%83%84", "pairmill", "/foo/bar/%E3%83%84", False),
        (b"User-agent: *\nDisallow: /foo/bar/%62%61%7A", "pairmill", "/foo/bar/baz", False),
        (b"User-agent: *\nDisallow: /foo/bar/baz", "pairmill", "/foo/bar/%62%61%7A", False),
        (b"User-agent: *\nDisallow: /a%2Fb", "pairmill", "/a/b", True),
    ],
)  # fmt: skip
def test_robots(robots: bytes, agent: str, path: str, allowed: bool) -> None:
    found = parse_robots(robots, [agent])
    assert found.allows(path) is allowed
    assert Robots.from_json(json.loads(json.dumps(found.as_json()))).allows(path) is allowed


def test_several_names_are_all_bound() -> None:
    robots = (
        b"User-agent: *\nDisallow: /x\n\nUser-agent: pairmill\nAllow: /\n\nUser-agent: mybot\nDisallow: /a"
    )
    assert parse_robots(robots, ["pairmill"]).allows("/a")
    assert not parse_robots(robots, ["pairmill", "MyBot"]).allows("/a")
    assert parse_robots(robots, ["pairmill", "mybot"]).allows("/x"), "* speaks to those who are not named"


@pytest.mark.parametrize(
    ("lines", "path", "reserved"),
    [
        ("User-agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /", "/a.jpg", True),
        ("User-agent: *\nContent-signal: search=yes,ai-train=no\nDisallow:", "/a.jpg", True),
        ("User-agent: *\nContent-Signal: search=yes, ai-train=yes", "/a.jpg", False),
        ("User-agent: *\nContent-Signal: search=no, ai-input=no", "/a.jpg", False),
        ("User-agent: other\nContent-Signal: ai-train=no", "/a.jpg", False),
        ("User-agent: *\nContent-Signal: ai-train=no\nUser-agent: pairmill\nAllow: /", "/a.jpg", False),
        ("User-agent: *\nContent-Usage: train-ai=n", "/a.jpg", True),
        ("User-agent: *\nContent-Usage: /art/ train-ai=n\nContent-Usage: train-ai=y", "/art/a.jpg", True),
        ("User-agent: *\nContent-Usage: /art/ train-ai=n\nContent-Usage: train-ai=y", "/a.jpg", False),
        ("User-agent: *\nContent-Usage: train-ai=y\nContent-Usage: train-ai=n", "/a.jpg", True),
        ("User-agent: *\nContent-Usage: train-ai=n;x=1", "/a.jpg", True),
        ("Content-Signal: ai-train=no", "/a.jpg", False),
    ],
)
def test_usage(lines: str, path: str, reserved: bool) -> None:
    found = parse_robots(lines.encode(), ["pairmill"])
    assert found.reserves(path) is reserved
    assert found.allows(path)
    assert Robots.from_json(json.loads(json.dumps(found.as_json()))).reserves(path) is reserved


def test_crawl_delay() -> None:
    assert parse_robots(b"User-agent: *\nCrawl-delay: 2.5", ["pairmill"]).crawl_delay == 2.5
    for nonsense in (b"-1", b"nan", b"inf", b"soon", b""):
        assert parse_robots(b"User-agent: *\nCrawl-delay: " + nonsense, ["pairmill"]).crawl_delay == 0
    assert parse_robots(b"User-agent: b\nCrawl-delay: 9", ["pairmill"]).crawl_delay == 0


def test_only_the_first_500_kib_count_and_no_cut_line() -> None:
    padding = b"# " + b"x" * 98 + b"\n"
    head = b"User-agent: *\nDisallow: /a\n"
    filling = head + padding * ((MAX_BYTES - len(head)) // len(padding) - 1)
    late = parse_robots(filling + padding * 2 + b"Disallow: /b\n", ["pairmill"])
    assert not late.allows("/a")
    assert late.allows("/b")
    cut = filling + b" " * (MAX_BYTES - len(filling) - len("Disallow: /c")) + b"Disallow: /c"
    assert len(cut) == MAX_BYTES
    assert not parse_robots(cut, ["pairmill"]).allows("/c")
    assert parse_robots(cut + b"ats only\n", ["pairmill"]).allows("/c"), (
        "the line was longer than what is read"
    )


def test_hostile_patterns_cost_little() -> None:
    rules = b"User-agent: *\n" + b"Disallow: /" + b"*a" * 2000 + b"$\n" * 1
    found = parse_robots(rules + b"Disallow: /*a*b*c*d*e*f$\n" * 5000, ["pairmill"])
    pieces = 2000 + 7 * 5000
    assert calls(lambda: found.allows("/" + "a" * 3000 + "x")) < 10 * pieces


@given(st.binary(max_size=400), st.text(max_size=40))
def test_no_robots_txt_and_no_path_is_too_strange(body: bytes, path: str) -> None:
    found = parse_robots(b"User-agent: *\nDisallow: /" + body, ["pairmill"])
    assert found.allows(f"/{path}") in (True, False)
    assert parse_robots(body, ["pairmill"]).allows("/") in (True, False)
    assert parse_tdmrep(body).allows("/") in (True, False)


@given(st.text(alphabet="/ab%*$?é", max_size=12), st.text(alphabet="/ab%?é", max_size=12))
def test_patterns_mean_what_a_regular_expression_would(pattern: str, path: str) -> None:
    import re

    whole = canonical_path(f"/{path}")
    spelled = Pattern.of(f"/{pattern}")
    stars = ".*".join(re.escape(piece) for piece in spelled.pieces)
    expected = re.compile(f"{stars}{'$' if spelled.ends else ''}", re.DOTALL).match(whole) is not None
    if spelled.ends:
        expected = re.compile(stars, re.DOTALL).fullmatch(whole) is not None
    assert spelled.matches(whole) is expected


@pytest.mark.parametrize(
    ("body", "path", "allowed"),
    [
        ([{"location": "/", "tdm-reservation": 1}], "/a.jpg", False),
        ([{"location": "/", "tdm-reservation": 0}], "/a.jpg", True),
        ([{"location": "/", "tdm-reservation": 1, "tdm-policy": "https://x.example/p"}], "/a.jpg", False),
        ([{"location": "/b/", "tdm-reservation": 1}], "/a.jpg", True),
        ([{"location": "*.jpg", "tdm-reservation": 1}], "/deep/a.jpg", False),
        ([{"location": "/i", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}], "/i", True),
        ([{"location": "/", "tdm-reservation": 1}, {"location": "/i", "tdm-reservation": 0}], "/i", False),
        ([{"location": "/a$", "tdm-reservation": 1}], "/a.jpg", True),
        ([{"location": "/foo-%24", "tdm-reservation": 1}], "/foo-$", False),
        ([{"location": "/", "tdm-reservation": "1"}], "/a.jpg", False),
        ([{"location": "/", "tdm-reservation": True}], "/a.jpg", False),
        ({"location": "/", "tdm-reservation": 1}, "/a.jpg", False),
        ([{"location": "/"}], "/a.jpg", True),
        ([{"tdm-reservation": 1}], "/a.jpg", True),
        ([{"location": 3, "tdm-reservation": 1}, 7, None, "x"], "/a.jpg", True),
        ({}, "/a.jpg", True),
        ("tdm-reservation: 1", "/a.jpg", True),
    ],
)  # fmt: skip
def test_tdmrep(body: object, path: str, allowed: bool) -> None:
    found = parse_tdmrep(json.dumps(body).encode())
    assert found.allows(path) is allowed
    assert TdmRules.from_json(json.loads(json.dumps(found.as_json()))).allows(path) is allowed


def test_what_is_no_tdmrep_reserves_nothing() -> None:
    for body in (b"", b"<html>", b"[" * 100_000, b'\xef\xbb\xbf[{"location":"/b","tdm-reservation":1}]'):
        assert parse_tdmrep(body).allows("/a")


@pytest.mark.parametrize(
    ("values", "refused"),
    [(["1"], True), (["0"], False), ([" 1 "], True), (["0", "1"], True), (["0, 1"], True), ([], False),
     (["11"], False), (["true"], False), (["1; x"], False), ([""], False)],
)  # fmt: skip
def test_tdm_headers(values: list[str], refused: bool) -> None:
    assert tdm_forbids(values) is refused


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        (["noai"], True),
        (["NoImageAI"], True),
        (["noindex, noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noindex, noai"], False),
        (["otherbot: noindex", "noai"], True),
        (["pairmill: noai"], True),
        (["PairMill : NoAI"], True),
        (["mybot: noimageai"], True),
        (["otherbot: noai, pairmill: noimageai"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], False),
        (["unavailable_after: 2030-06-25, noai"], True),
        (["max-image-preview: large, noai"], True),
        (["noai_not"], False),
        (["noindex"], False),
        ([], False),
    ],
)
def test_robots_tags(values: list[str], refused: bool) -> None:
    names = frozenset({"pairmill", "mybot"})
    assert tag_forbids(values, frozenset({"noai", "noimageai"}), names) is refused
