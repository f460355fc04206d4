"""A scripted web of many hosts on one port of loopback, byte for byte: for the rules of sites, and for
servers that do not speak HTTP as they should."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: writes what it likes; the connection is closed behind it
Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; `x_robots_tag="noai"` becomes a header, `location` too."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Web:
    """answers: what `host/path` gets, bytes or a script; all else gets `otherwise`.

    hits: requests by `host/path`; most_at_once: by host; agents: User-Agent headers; starts: moments of the
    requests by host; connections: how many were made.
    """

    def __init__(self, answers: dict[str, bytes | Script] | None = None) -> None:
        self.answers: dict[str, bytes | Script] = dict(answers or {})
        self.otherwise = reply(404, b"no")
        self.rules: bytes | None = None  # for robots.txt and tdmrep.json, where it is not `otherwise`
        self.pause = 0.0
        self.port = 0
        self.hits: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.starts: dict[str, list[float]] = {}
        self.connections = 0
        self._at_once: Counter[str] = Counter()

    def url(self, key: str) -> str:
        host, _, path = key.partition("/")
        return f"http://{host}:{self.port}/{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1]
        named = next(line for line in head if line.lower().startswith("host:"))
        host = named.partition(":")[2].strip().rpartition(":")[0]
        key = f"{host}{path.partition('?')[0]}"
        self.hits[key] += 1
        self.starts.setdefault(host, []).append(asyncio.get_running_loop().time())
        self._at_once[host] += 1
        self.most_at_once[host] = max(self.most_at_once[host], self._at_once[host])
        try:
            if self.pause:
                await asyncio.sleep(self.pause)
            is_rule = self.rules is not None and path.endswith(("/robots.txt", "/tdmrep.json"))
            answer = self.answers.get(key, self.rules if is_rule and self.rules else self.otherwise)
            if not isinstance(answer, bytes):
                await answer(writer)
                return False
        finally:
            self._at_once[host] -= 1
        writer.write(answer)
        await writer.drain()
        return not any(line.lower() == "connection: close" for line in head)


@contextlib.contextmanager
def running(web: Web) -> Iterator[Web]:
    """Serves the web on a free port of 127.0.0.1 in a thread of its own."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> asyncio.Server:
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0, limit=1 << 20, backlog=2048)
        web.port = server.sockets[0].getsockname()[1]
        return server

    def run() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield web
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a web in another process saw; the same fields as `Web`."""

    hits: Counter[str]
    most_at_once: Counter[str]
    connections: int


@contextlib.contextmanager
def apart(otherwise: bytes, *, pause: float = 0.0) -> Iterator[tuple[int, Callable[[], Seen]]]:
    """A web in a process of its own that answers everything alike, rules of sites with 404: (its port, what
    it saw so far)."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_apart, args=(there, otherwise, pause), daemon=True
    )
    process.start()
    port = here.recv()

    def seen() -> Seen:
        here.send("seen")
        return here.recv()

    try:
        yield port, seen
    finally:
        here.send("end")
        process.join(10)
        process.kill()


def _serve_apart(pipe: Any, otherwise: bytes, pause: float) -> None:
    web = Web()
    web.otherwise, web.pause, web.rules = otherwise, pause, reply(404)
    with running(web):
        pipe.send(web.port)
        while pipe.recv() == "seen":
            pipe.send(Seen(hits=web.hits, most_at_once=web.most_at_once, connections=web.connections))


async def loopback(host: str) -> list[str]:
    """A resolver that knows every name."""
    return ["127.0.0.1"]
