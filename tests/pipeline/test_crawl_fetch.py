"""The fetcher against a hostile web on loopback, and a hostile resolver: refused, bounded, counted."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pipeline.errors import ConfigError
from pipeline.stages.crawl.client import user_agent
from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.fetch import Fetched, Fetcher
from pipeline.stages.crawl.gate import Gate, RefusedAddressError, is_public, parse_address
from pipeline.stages.crawl.images import read_header
from tests.pipeline.crawl_server import Site, make_certificate, picture, serving

FAST = {"connect_timeout": 1.0, "read_timeout": 0.5, "total_timeout": 1.0, "retries": 0, "backoff": 0.01}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


@pytest.fixture(scope="module")
def private() -> Iterator[Site]:
    """A server that nobody allowed: it must never be asked."""
    with serving(Site()) as running:
        yield running


def fetch_all(
    urls: Sequence[str],
    config: FetchConfig,
    lookup: Callable[[str], Awaitable[list[str]]] | None = None,
    run_loop: Callable[..., Any] = asyncio.run,
) -> list[Fetched]:
    async def run() -> list[Fetched]:
        fetcher = Fetcher(config, lookup=lookup)
        try:
            return await asyncio.gather(*(fetcher.fetch(u) for u in urls))
        finally:
            await fetcher.close()

    return run_loop(run())


def fetch(site: Site, path: str, **options: object) -> Fetched:
    config = FetchConfig(allow_private=[site.name], **{**FAST, **options})  # type: ignore[arg-type]
    return fetch_all([site.url(path)], config)[0]


def test_a_picture_arrives_whole_and_connections_are_kept(site: Site) -> None:
    site.connections.clear()
    config = FetchConfig(allow_private=[site.name], max_per_host=2, contact="https://example.org/c")
    found = fetch_all([site.url(f"/picture/{i}.jpg") for i in range(20)], config)
    assert [f.body for f in found] == [picture(i) for i in range(20)]
    assert {f.http_status for f in found} == {200}
    assert len(site.connections) <= 2
    assert user_agent("https://example.org/c") in site.user_agents


@pytest.mark.parametrize(
    ("path", "reason", "status"),
    [
        ("/missing.jpg", "http_status", 404),
        ("/status/500", "http_status", 500),
        ("/status/204", "http_status", 204),
        ("/bytes/empty", "empty", 200),
        ("/loop", "too_many_redirects", None),
        ("/chain/6", "too_many_redirects", None),
        ("/to?u=file:///etc/passwd", "bad_url", None),
        ("/to?u=data:image/png;base64,AAAA", "bad_url", None),
        ("/to?u=http://[broken", "bad_url", None),
        ("/stream/drip", "timeout", None),
        ("/stream/silence", "timeout", None),
        ("/stream/promises", "connection", None),
        ("/stream/endless", "too_large", 200),
        ("/noai/noai", "opt_out", 200),
        ("/noai/noindex, noimageai", "opt_out", 200),
        ("/noai/pairmill: noai", "opt_out", 200),
        ("/noai/otherbot: noai", None, 200),
        ("/noai/noindex", None, 200),
        ("/chain/4", None, 200),
    ],
)
def test_what_servers_do_has_a_name(site: Site, path: str, reason: str | None, status: int | None) -> None:
    began = time.monotonic()
    found = fetch(site, path, max_bytes=300_000)
    assert (found.reason, found.http_status) == (reason, status)
    assert (found.body is None) == (reason is not None)
    assert time.monotonic() - began < 3


def test_retries(site: Site) -> None:
    again = fetch(site, "/flaky/a", retries=2)
    assert (again.reason, again.attempts) == (None, 3)
    assert fetch(site, "/flaky/b", retries=1).http_status == 503
    assert fetch(site, "/missing.jpg", retries=2).attempts == 1
    site.hits.clear()
    assert fetch(site, "/noai/noai", retries=2).reason == "opt_out"
    assert site.hits["/noai/noai"] == 1, "an opt-out is never asked again"


def test_retry_after_is_honoured_up_to_a_cap(site: Site) -> None:
    began = time.monotonic()
    found = fetch(site, "/busy/1", retries=1, max_wait=5)
    assert (found.attempts, found.http_status) == (2, 429)
    assert time.monotonic() - began >= 1
    assert fetch(site, "/busy/600", retries=1, max_wait=5).attempts == 1, "nobody waits ten minutes"


def test_at_most_so_many_requests_a_host() -> None:
    with serving(Site()) as site:
        site.jitter = 0.02
        config = FetchConfig(allow_private=[site.name], max_per_host=3)
        fetch_all([site.url(f"/picture/{i}.jpg") for i in range(30)], config)
        assert site.most_at_once == 3


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]", "0.0.0.0", "localhost", "LOCALHOST.",
        "１２７.0.0.1", "169.254.169.254", "10.0.0.1", "[fe80::1%25eth0]", "[fec0::1]", "224.0.0.1",
    ],
)  # fmt: skip
def test_no_spelling_of_a_private_address_is_asked(site: Site, private: Site, host: str) -> None:
    private.hits.clear()
    config = FetchConfig(allow_private=[site.name], **FAST)  # type: ignore[arg-type]
    direct = [f"http://{host}/", f"https://{host}/", f"http://{host}:{private.port}/picture/1.jpg"]
    around = [site.url(f"/to?u={u}") for u in direct]
    found = fetch_all(direct + around, config)
    assert {f.reason for f in found} <= {"refused_address", "bad_url", "dns"}
    assert "refused_address" in {f.reason for f in found}
    assert not private.hits


def test_a_hostile_resolver(site: Site, private: Site) -> None:
    """Rebinding: the second answer is another one; it is checked as well, and so is every address."""
    private.hits.clear()
    asked: list[str] = []

    async def lookup(host: str) -> list[str]:
        asked.append(host)
        answers = {
            "pictures.example": ["127.0.0.1"],
            "evil.example": ["127.0.0.1"],
            "both.example": ["93.184.216.34", "127.0.0.1"],
            "mapped.example": ["::ffff:127.0.0.1"],
        }
        if host not in answers:
            raise OSError("no such name")
        return answers[host]

    config = FetchConfig(allow_private=[f"Pictures.Example:{site.port}"], **FAST)  # type: ignore[arg-type]
    good = site.url("/picture/1.jpg", host="pictures.example")
    bad = [f"http://{name}.example/picture/1.jpg" for name in ("evil", "both", "mapped")]
    port = [
        site.url("/picture/1.jpg", host="evil.example"),
        private.url("/picture/1.jpg", host="pictures.example"),
        site.url("/picture/1.jpg"),
    ]
    found = fetch_all([good, good, *bad, *port, "http://nowhere.example/"], config, lookup)
    assert [f.reason for f in found] == [None, None, *["refused_address"] * 6, "dns"]
    assert not private.hits
    assert asked.count("pictures.example") == 1, "answers are kept"


def test_the_last_gate_is_the_connect_itself() -> None:
    gate = Gate(["inner.example:8000"])
    target = (2, 1, 6, "", ("127.0.0.1", 8000))
    with pytest.raises(RefusedAddressError):
        gate.socket(target)
    gate.check_addresses("inner.example", 8000, ["127.0.0.1"])
    gate.socket(target).close()
    with pytest.raises(RefusedAddressError):
        gate.socket((2, 1, 6, "", ("127.0.0.1", 22)))


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("8.8.8.8", True),
        ("134744072", True),  # 8.8.8.8
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("100.64.0.1", False),
        ("192.0.0.8", False),
        ("240.0.0.1", False),
    ],
)
def test_public_addresses(text: str, public: bool) -> None:
    address = parse_address(text)
    assert address is not None
    assert is_public(address) is public
    assert parse_address("8.8.example.com") is None


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/a.jpg", "data:image/png;base64,AAAA", "gopher://x/", "/a.jpg",
     "//example.com/a.jpg", "http:///a.jpg", "http://me:secret@example.com/", "http://exa mple.com/",
     "http://example.com:99999/", "", "javascript:alert(1)"],
)  # fmt: skip
def test_bad_urls(url: str) -> None:
    [found] = fetch_all([url], FetchConfig(**FAST))  # type: ignore[arg-type]
    assert found.reason in ("bad_url", "dns")
    assert "secret" not in (found.message or "")


def test_other_ports_are_refused() -> None:
    [found] = fetch_all(["http://8.8.8.8:22/"], FetchConfig(**FAST))  # type: ignore[arg-type]
    assert found.reason == "refused_address"


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_tls_is_verified(tmp_path: Path, run_loop: Callable[..., Any]) -> None:
    certificate, key = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)

    async def lookup(host: str) -> list[str]:
        return ["127.0.0.1"]

    with serving(Site(), tls=server) as site:
        names = [f"{h}:{site.port}" for h in ("127.0.0.1", "pictures.example", "other.example")]
        urls = [f"https://{name}/picture/1.jpg" for name in names]
        base = {**FAST, "allow_private": names}
        trusting = FetchConfig(ca_file=str(certificate), **base)  # type: ignore[arg-type]
        assert [f.reason for f in fetch_all(urls, trusting, lookup, run_loop)] == [None, None, "tls"]
        doubting = FetchConfig(**base)  # type: ignore[arg-type]
        assert [f.reason for f in fetch_all(urls, doubting, lookup, run_loop)] == ["tls"] * 3


def test_headers_are_read_without_decoding() -> None:
    for kind, name in (("jpg", "jpeg"), ("png", "png"), ("webp", "webp")):
        header = read_header(picture(1, width=300, height=200, kind=kind))
        assert header is not None
        assert (header.format, header.width, header.height) == (name, 300, 200)
    whole = picture(1)
    for cut in range(0, 200):
        read_header(whole[:cut])  # never raises
    assert read_header(b"GIF89a" + bytes(100)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"allow_private": ["localhost"]},
        {"allow_private": ["http://localhost:80/"]},
        {"concurrency": 0},
        {"retries": -1},
        {"contact": "a\r\nCookie: x"},
        {"min_interval": -1.0},
        {"shard_timeout": -1.0},
        {"total_timeout": float("nan")},
        {"max_per_host": 5000},
        {"agents": ["my bot"]},
        {"opt_out": ["noai, noimageai"]},
    ],
)
def test_senseless_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="fetch"):
        FetchConfig(**options).check()
