"""Servers and resolvers that mean harm, or merely do not speak HTTP: no private connection, and every fetch
ends in bounded time, bytes and memory."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.fetch import Fetched, Fetcher
from pipeline.stages.crawl.gate import Gate, RefusedAddressError
from pipeline.stages.crawl.resolve import CheckedResolver
from tests.pipeline.crawl_web import Script, Web, loopback, reply, running

LIMIT = 300_000
OK = b"HTTP/1.1 200 OK\r\n"


def sends(*pieces: bytes, pause: float = 0.0, forever: bool = False) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        while True:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            if not forever:
                return

    return script


def begins(head: bytes, then: Script) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await then(writer)

    return script


MANY_HEADERS = b"".join(b"X-%d: y\r\n" % i for i in range(10_000))
BOMB = gzip.compress(bytes(200 << 20), compresslevel=1)[:LIMIT]

# path, what the server does, the reasons that may come of it (None: taken, whatever it is)
ANSWERS: dict[str, tuple[Script | bytes, tuple[str | None, ...]]] = {
    "endless-body": (begins(OK + b"\r\n", sends(bytes(1 << 16), forever=True)), ("too_large",)),
    "endless-chunks": (
        begins(
            OK + b"Transfer-Encoding: chunked\r\n\r\n",
            sends(b"1000\r\n" + bytes(4096) + b"\r\n", forever=True),
        ),
        ("too_large",),
    ),
    "dripping-body": (
        begins(OK + b"Content-Length: 9999\r\n\r\n", sends(b"x", pause=0.05, forever=True)),
        ("timeout",),
    ),
    "dripping-headers": (begins(OK, sends(b"X: y\r\n", pause=0.05, forever=True)), ("timeout", "bad_answer")),
    "dripping-status": (sends(*(bytes([b]) for b in OK * 20), pause=0.05), ("timeout", "bad_answer")),
    "endless-headers": (
        begins(OK, sends(b"X: " + b"y" * 1000 + b"\r\n", forever=True)),
        ("bad_answer", "timeout"),
    ),
    "endless-line": (sends(b"x" * 65536, forever=True), ("bad_answer",)),
    "silence": (sends(b"", pause=0.1, forever=True), ("timeout",)),
    "hang-up": (sends(), ("connection",)),
    "half-headers": (sends(OK + b"Content-Le"), ("connection", "bad_answer")),
    "length-too-long": (sends(OK + b"Content-Length: 9999\r\n\r\nxxx"), ("connection",)),
    "length-too-short": (sends(OK + b"Content-Length: 3\r\n\r\nxxxyyy"), (None, "bad_answer")),
    "length-huge": (
        sends(OK + b"Content-Length: 99999999999999999999\r\n\r\nx"),
        ("too_large", "bad_answer", "connection"),
    ),
    "length-negative": (sends(OK + b"Content-Length: -1\r\n\r\nxxx"), ("bad_answer",)),
    "length-no-number": (sends(OK + b"Content-Length: 3x\r\n\r\nxxx"), ("bad_answer",)),
    "two-lengths": (sends(OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nxxxx"), ("bad_answer",)),
    "bad-chunks": (
        sends(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nxxx\r\n"),
        ("bad_answer", "connection"),
    ),
    "cut-chunks": (sends(OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nxxx"), ("connection",)),
    "huge-chunk": (
        sends(OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nx"),
        ("bad_answer", "connection"),
    ),
    "gzip-bomb": (reply(body=BOMB, content_encoding="gzip"), (None,)),
    "many-headers": (sends(OK + MANY_HEADERS + b"\r\nxxx"), ("bad_answer",)),
    "large-header": (sends(OK + b"X: " + b"y" * (1 << 20) + b"\r\n\r\nxxx"), ("bad_answer",)),
    "http-0.9": (sends(b"a picture, and no headers\n"), ("bad_answer",)),
    "http-2": (sends(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), ("bad_answer",)),
    "not-http": (sends(b"220 ftp ready\r\n"), ("bad_answer",)),
    "no-status": (sends(b"HTTP/1.1\r\n\r\nx"), ("bad_answer",)),
    "status-of-letters": (sends(b"HTTP/1.1 abc OK\r\n\r\nx"), ("bad_answer",)),
    "informational-forever": (
        sends(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01, forever=True),
        ("timeout", "bad_answer"),
    ),
    "nul-in-header": (sends(OK + b"X: a\x00b\r\n\r\nxxx"), ("bad_answer",)),
    "folded-header": (sends(OK + b"X: a\r\n b\r\nContent-Length: 3\r\n\r\nxxx"), (None, "bad_answer")),
    "switching-protocols": (
        sends(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        ("http_status", "timeout", "bad_answer", "connection"),
    ),
    "loop": (reply(302, location="/loop"), ("too_many_redirects",)),
    "to-itself-longer": (reply(302, location="x/to-itself-longer"), ("too_many_redirects", "http_status")),
    "redirect-without-location": (reply(302), ("http_status",)),
    "redirect-with-a-body": (reply(302, bytes(5 << 20), location="/good"), (None,)),
    "redirect-dripping": (
        begins(
            b"HTTP/1.1 302 F\r\nLocation: /good\r\nContent-Length: 999\r\n\r\n",
            sends(b"x", pause=0.05, forever=True),
        ),
        (None, "timeout"),
    ),
    "redirect-to-credentials": (reply(302, location="http://me:secret@hostile.example/good"), ("bad_url",)),
    "redirect-to-data": (reply(302, location="data:image/png;base64,AAAA"), ("bad_url",)),
    "redirect-to-file": (reply(302, location="file:///etc/passwd"), ("bad_url",)),
    "redirect-to-ftp": (reply(302, location="ftp://127.0.0.1/x"), ("bad_url",)),
    "redirect-to-gopher": (reply(302, location="gopher://127.0.0.1:70/x"), ("bad_url",)),
    "redirect-to-javascript": (reply(302, location="javascript:alert(1)"), ("bad_url",)),
    "redirect-to-a-broken-url": (reply(302, location="http://[::1"), ("bad_url",)),
    "redirect-to-a-port": (reply(302, location="http://93.184.216.34:22/"), ("refused_address",)),
    "redirect-with-line-breaks": (
        sends(b"HTTP/1.1 302 F\r\nLocation: /good\rX: y\r\nContent-Length: 0\r\n\r\n"),
        ("bad_answer", "bad_url", None, "http_status"),
    ),
    "redirect-far-too-long": (reply(302, location="/" + "a" * 8100), ("http_status", "bad_answer")),
    "good": (reply(body=b"a picture"), (None,)),
}


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    scripts = {f"hostile.example/{name}": answer for name, (answer, _) in ANSWERS.items()}
    with running(Web(scripts)) as found:
        yield found


def fetch_all(
    urls: list[str],
    allowed: list[str],
    folder: Path,
    lookup: Callable[[str], Awaitable[list[str]]] = loopback,
    **options: object,
) -> tuple[list[Fetched], dict[str, float | int]]:
    quick = {
        "connect_timeout": 1.5,
        "read_timeout": 1.0,
        "total_timeout": 1.5,
        "retries": 0,
        "max_bytes": LIMIT,
    }
    config = FetchConfig(allow_private=allowed, node_folder=str(folder), **{**quick, **options})  # type: ignore[arg-type]

    async def run() -> tuple[list[Fetched], dict[str, float | int]]:
        fetcher = Fetcher(config, lookup=lookup)
        try:
            return list(await asyncio.gather(*(fetcher.fetch(u) for u in urls))), fetcher.take_figures()
        finally:
            await fetcher.close()

    return uvloop.run(run())  # the loop that crawl workers run on


@pytest.mark.parametrize("name", ANSWERS)
def test_each_ends_and_has_a_name(web: Web, tmp_path: Path, name: str) -> None:
    began = time.monotonic()
    [found], figures = fetch_all(
        [web.url(f"hostile.example/{name}")],
        [f"hostile.example:{web.port}"],
        tmp_path,
        robots=False,
        tdm=False,
    )
    assert found.reason in ANSWERS[name][1], found
    assert (found.body is None) == (found.reason is not None)
    assert time.monotonic() - began < 6
    assert figures["bytes"] <= LIMIT + 3 * (256 << 10), "and what was read ahead"
    assert "secret" not in str(found)


def test_all_of_it_at_once_in_flat_memory(web: Web, tmp_path: Path) -> None:
    """Every hostile answer many times over: the memory does not follow what the servers would send."""
    urls = [web.url(f"hostile.example/{name}") for name in ANSWERS] * 4
    options = {"robots": False, "tdm": False, "max_per_host": 32, "host_failures": 0}
    allowed = [f"hostile.example:{web.port}"]
    fetch_all(urls, allowed, tmp_path, **options)
    process = psutil.Process()
    before, began = process.memory_info().rss, time.monotonic()
    for _ in range(2):
        fetch_all(urls, allowed, tmp_path, **options)
    assert process.memory_info().rss - before < 60 << 20
    assert time.monotonic() - began < 100


class Private:
    """Listens where nobody may come; `connections` counts who came nevertheless."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def private() -> Iterator[Private]:
    found = Private()
    yield found
    found.close()


SPELLINGS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1",
    "0X7F.1", "127.0.0.1.", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
    "[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[ff02::1]", "0.0.0.0", "0", "169.254.169.254", "2852039166",
    "0xa9fea9fe", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200", "192.0.0.192", "10.0.0.1",
    "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "localhost",
    "１２７.0.0.1", "①②⑦.0.0.1", "127。0。0。1",
]  # fmt: skip


def test_no_spelling_and_no_way_leads_to_a_private_address(
    web: Web, private: Private, tmp_path: Path
) -> None:
    """Straight, behind a redirect, and as the place of robots.txt or tdmrep.json."""
    direct = [f"http://{host}:{private.port}/x" for host in SPELLINGS]
    direct += [f"http://{host}/x" for host in SPELLINGS] + [f"https://{host}/x" for host in SPELLINGS]
    around, hosts = [], []
    for number, url in enumerate(direct):
        web.answers |= {
            f"r{number}.example/picture": reply(302, location=url),
            f"robots{number}.example/robots.txt": reply(302, location=url),
            f"robots{number}.example/picture": reply(body=b"x"),
            f"tdm{number}.example/.well-known/tdmrep.json": reply(302, location=url),
            f"tdm{number}.example/picture": reply(body=b"x"),
        }
        hosts += [f"r{number}.example", f"robots{number}.example", f"tdm{number}.example"]
    around = [web.url(f"{host}/picture") for host in hosts]

    async def lookup(host: str) -> list[str]:
        if not host.endswith(".example"):
            return [a[4][0] for a in socket.getaddrinfo(host, None)]  # type: ignore[misc]
        return ["127.0.0.1"]

    # nothing here is slow on purpose: only a busy machine takes long, and that is no answer to the question
    patient = {"connect_timeout": 30.0, "read_timeout": 30.0, "total_timeout": 60.0}
    found, _ = fetch_all(direct + around, [f"{h}:{web.port}" for h in hosts], tmp_path, lookup, **patient)
    assert private.connections == 0
    said = {f.reason for f in found[: len(direct)]}
    assert said <= {"refused_address", "bad_url", "dns"}
    for number in range(0, len(hosts), 3):
        redirect, robots, tdm = found[len(direct) + number : len(direct) + number + 3]
        assert redirect.reason in ("refused_address", "bad_url", "dns")
        assert robots.reason in ("refused_address", "bad_url", "dns"), "rules that cannot be had forbid"
        assert tdm.reason is None, "a tdmrep.json that cannot be had reserves nothing"


@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.1"]],
        [["93.184.216.34", "127.0.0.1"]],
        [["127.0.0.1", "93.184.216.34"]],
        [["::ffff:127.0.0.1"]],
        [["64:ff9b::7f00:1"]],
        [["::1"]],
        [["not an address"]],
        [[]],
    ],
)
def test_answers_of_a_resolver(private: Private, tmp_path: Path, answers: list[list[str]]) -> None:
    async def lookup(host: str) -> list[str]:
        return answers[0]

    urls = [f"http://evil.example:{port}/" for port in (80, private.port)]
    found, _ = fetch_all(urls, [], tmp_path, lookup)
    assert {f.reason for f in found} <= {"refused_address", "dns"}
    assert private.connections == 0


def test_rebinding(web: Web, private: Private, tmp_path: Path) -> None:
    """Each lookup's answer is checked, late ones too; a name allowed on one port leads nowhere else."""
    asked: list[str] = []

    async def lookup(host: str) -> list[str]:
        asked.append(host)
        if host == "good.example":
            return ["127.0.0.1"]
        if asked.count(host) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "a bad moment")
        return ["127.0.0.1"]

    web.answers["good.example/x"] = reply(body=b"x")
    urls = [web.url("good.example/x"), f"http://good.example:{private.port}/x", "http://evil.example/x"]
    options = {"dns_ttl": 0.0, "retries": 2, "backoff": 0.01, "robots": False, "tdm": False}
    found, _ = fetch_all(urls, [f"good.example:{web.port}"], tmp_path, lookup, **options)
    assert [f.reason for f in found] == [None, "refused_address", "refused_address"]
    assert asked.count("evil.example") == 2
    assert private.connections == 0

    async def public_then_private(host: str) -> list[str]:
        asked.append("rebound")
        return ["93.184.216.34"] if asked.count("rebound") == 1 else ["127.0.0.1"]

    async def resolve_twice() -> None:
        resolver = CheckedResolver(Gate(), public_then_private, ttl=0.0)
        assert [a["host"] for a in await resolver.resolve("evil.example", 80)] == ["93.184.216.34"]
        await asyncio.sleep(0.01)
        with pytest.raises(RefusedAddressError):
            await resolver.resolve("evil.example", 80)
        await resolver.close()

    asyncio.run(resolve_twice())
