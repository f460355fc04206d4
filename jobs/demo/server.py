"""The demo's small web, served on loopback: `python -m jobs.demo.server FOLDER` (see `serve`).

One process listens on every port of the world and misbehaves as the routes say. It ends by itself when the
process that started it is gone: it holds the read end of a pipe whose write end only the starter has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from pipeline.errors import ConfigError

LOOPBACK = "127.0.0.1"
READY_PATH = "/_ready"
START_TIMEOUT_S = 30.0
SLOW_SECONDS = 1.5  # how long a slow picture takes
ENDLESS_SECONDS = 60.0  # how long a dripping one goes on if nobody hangs up
PORTS_FILE = "ports.json"
ROUTES_FILE = "routes.json"
SITE_FOLDER = "site"
#: hosts that answer; the world's `dead` host has a port where nothing listens
SILENT_HOSTS = ("dead",)

#: how long the server outlives a demo that was killed
LINGER_S = 4.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[int]:
    """Serves the world in `folder` from a process of its own while the block runs; yields its process id.

    Raises:
        ConfigError: a port of the world is taken by another program, or the server did not start.
    """
    ports = json.loads((folder / PORTS_FILE).read_text())
    _refuse_taken_ports(ports, folder)
    log_path = folder / "server.log"
    with log_path.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.demo.server", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # a Ctrl-C is for the demo, which then stops the server itself
        )
    try:
        _wait_until_ready(process, ports, log_path)
        yield process.pid
    finally:
        if process.stdin:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _refuse_taken_ports(ports: dict[str, int], folder: Path) -> None:
    deadline = time.monotonic() + 2 * LINGER_S  # the server of a demo that was killed is about to end
    for host, port in ports.items():
        while not port_is_free(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not port_is_free(port):
            raise ConfigError(
                f"port {port} (host '{host}' of the demo's web) is taken by another program; the addresses "
                f"in the archives name it. Stop that program (perhaps another demo), or build a new world: "
                f"remove {folder} or choose another folder"
            )


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _wait_until_ready(process: subprocess.Popen[bytes], ports: dict[str, int], log_path: Path) -> None:
    waiting = [port for host, port in ports.items() if host not in SILENT_HOSTS]
    deadline = time.monotonic() + START_TIMEOUT_S
    while waiting:
        if process.poll() is not None:
            raise ConfigError(f"the demo's web server ended with {process.returncode}: see {log_path}")
        if time.monotonic() > deadline:
            raise ConfigError(f"the demo's web server does not answer on port {waiting[0]}: see {log_path}")
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, waiting[0]), timeout=1):
            waiting.pop(0)
            continue
        time.sleep(0.05)


class SmallWeb:
    """Answers requests by the world's routes; knows the host by the port that was asked."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / SITE_FOLDER
        self.ports: dict[str, int] = json.loads((folder / PORTS_FILE).read_text())
        self.routes: dict[str, dict[str, dict[str, Any]]] = json.loads((folder / ROUTES_FILE).read_text())
        self._host_of = {port: host for host, port in self.ports.items()}
        self._asked: set[tuple[str, str]] = set()  # for `busy_once`

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == READY_PATH:
            return web.Response(text="ready")
        assert request.transport is not None
        host = self._host_of[request.transport.get_extra_info("sockname")[1]]
        path = request.path.lstrip("/").replace("-320w.jpg", ".jpg")
        route = self.routes[host].get(path)
        if route is None:
            return web.Response(status=404, text="not found\n")
        first_time = (host, path) not in self._asked
        self._asked.add((host, path))
        if route["behaviour"] == "busy_once" and first_time:
            return web.Response(status=503, headers={"Retry-After": "0"}, text="busy, try again\n")
        body = (self.site / route["file"]).read_bytes() if route["file"] else b""
        headers = {"Content-Type": route["content_type"], **route["headers"]}
        if route["behaviour"] in ("slow", "endless"):
            return await self._drip(request, body, headers, endless=route["behaviour"] == "endless")
        return web.Response(status=route["status"], body=body, headers=headers)

    async def _drip(
        self, request: web.Request, body: bytes, headers: dict[str, str], *, endless: bool
    ) -> web.StreamResponse:
        """Sends the body in small pieces, over `SLOW_SECONDS`; an endless one a byte each half second."""
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
        await response.prepare(request)
        size, pause = (1, 0.5) if endless else (len(body) // 10 + 1, SLOW_SECONDS / 10)
        started = time.monotonic()
        for start in range(0, len(body), size):
            if time.monotonic() - started > ENDLESS_SECONDS:
                break
            await response.write(body[start : start + size])
            await asyncio.sleep(pause)
        return response


async def run_server(folder: Path) -> None:
    """Listens on every port until standard input is closed: the demo has ended, however it did."""
    small_web = SmallWeb(folder)
    app = web.Application()
    app.router.add_get("/{path:.*}", small_web.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    for host, port in small_web.ports.items():
        if host not in SILENT_HOSTS:
            await web.TCPSite(runner, LOOPBACK, port, backlog=512).start()
    try:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
        # Where the demo was killed its crawl workers die a moment later: were the server gone before them,
        # they would commit pictures as unreachable.
        await asyncio.sleep(LINGER_S)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(run_server(Path(sys.argv[1])))
