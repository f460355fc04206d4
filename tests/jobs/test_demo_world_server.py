"""The small web's server: misbehaves as planted, holds its ports, and goes when its starter goes."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from jobs.demo.server import READY_PATH, port_is_free, serve
from jobs.demo.world import World, build_world
from pipeline.errors import ConfigError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("served") / "world", seed=5, scale=0.02, heldout=10)


@pytest.fixture(scope="module")
def addresses(world: World) -> dict[str, str]:
    """One address of each fault."""
    return {row["fault"]: row["url"] for row in pq.read_table(world.truth).to_pylist()}


@pytest.fixture
def served(world: World) -> Iterator[World]:
    with serve(world.folder):
        yield world


def _get(url: str, timeout: float = 10) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_answers_as_planted(served: World, addresses: dict[str, str]) -> None:
    status, headers, body = _get(addresses["right"])
    assert (status, headers["content-type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert len(body) > 5000
    assert _get(addresses["dead_link"])[0] == 404
    assert "noai" in _get(addresses["opt_out"])[1]["x-robots-tag"].replace("noimageai", "noai")
    assert _get(addresses["html_as_jpg"])[1:][0]["content-type"] == "image/jpeg"
    assert _get(addresses["html_as_jpg"])[2].startswith(b"<!doctype html>")
    assert not _get(addresses["truncated"])[2].endswith(b"\xff\xd9")
    assert len(_get(addresses["small_file"])[2]) < 5000
    assert _get(addresses["gif"])[2].startswith(b"GIF8")


def test_busy_once_then_the_picture(served: World, addresses: dict[str, str]) -> None:
    status, headers, _ = _get(addresses["busy_once"])
    assert (status, headers["retry-after"]) == (503, "0")
    assert _get(addresses["busy_once"])[0] == 200


def test_redirects_name_allowed_and_forbidden_hosts(served: World, addresses: dict[str, str]) -> None:
    status, headers, _ = _get(addresses["moved"])
    assert status == 302
    assert urlsplit(headers["location"]).netloc in served.allow_private
    assert _get(headers["location"])[2][:2] == b"\xff\xd8"
    forbidden = _get(addresses["redirect_private"])[1]["location"]
    assert urlsplit(forbidden).netloc not in served.allow_private
    assert _get(forbidden)[0] == 200, "it answers: only the crawler's own check keeps it away"


def test_slow_arrives_and_endless_does_not(served: World, addresses: dict[str, str]) -> None:
    began = time.monotonic()
    assert _get(addresses["slow"])[0] == 200
    assert 1 < time.monotonic() - began < 8
    parts = urlsplit(addresses["endless"])
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(1.5)
        connection.setblocking(False)
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert len(body) < 20


def test_the_dead_host_is_dead_and_a_taken_port_is_named(world: World, addresses: dict[str, str]) -> None:
    with serve(world.folder), pytest.raises(ConnectionRefusedError):
        _get(addresses["unreachable"])
    assert all(port_is_free(port) for port in world.ports.values()), "stopped"
    with socket.socket() as other:
        other.bind(("127.0.0.1", world.ports["cdn"]))
        other.listen()
        with pytest.raises(ConfigError, match=f"port {world.ports['cdn']} .*'cdn'"), serve(world.folder):
            pass


def test_goes_when_its_starter_is_killed(world: World) -> None:
    code = (
        "import sys, time; from pathlib import Path; from jobs.demo.server import serve\n"
        "with serve(Path(sys.argv[1])): print('up', flush=True); time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(world.folder)], stdout=subprocess.PIPE, cwd=root
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == b"up\n"
    main = f"http://127.0.0.1:{world.ports['main']}{READY_PATH}"
    assert _get(main)[2] == b"ready"
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + 10
    while not all(port_is_free(port) for port in world.ports.values()):
        assert time.monotonic() < deadline, "the server outlives its starter"
        time.sleep(0.1)
