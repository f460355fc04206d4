"""Manners: limits that hold for all workers of a node, pauses, hosts that are down, ends that come."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.fetch import Fetched, Fetcher, host_of
from pipeline.stages.crawl.figures import STEP, Latencies
from pipeline.stages.crawl.node import NodeFolder, number_of
from pipeline.stages.crawl.spread import over_hosts
from tests.pipeline.crawl_web import Web, apart, loopback, reply, running

PICTURE = reply(body=b"a picture")


def config(port: int, hosts: Sequence[str], folder: Path, **options: Any) -> FetchConfig:
    quick = {"retries": 0, "backoff": 0.01, "robots": False, "tdm": False}
    return FetchConfig(
        **{**quick, **options}, allow_private=[f"{h}:{port}" for h in hosts], node_folder=str(folder)
    )


async def crawl(fetcher: Fetcher, urls: Sequence[str]) -> list[Fetched]:
    """As a worker does it: hosts in turn."""
    found: dict[int, Fetched] = {}

    async def one(position: int) -> None:
        found[position] = await fetcher.fetch(urls[position])

    fetcher.begin()
    await over_hosts(
        [(host_of(url), position) for position, url in enumerate(urls)],
        one,
        concurrency=fetcher.config.concurrency,
        per_host=fetcher.config.max_per_host,
        delay=fetcher.delay,
    )
    return [found[position] for position in range(len(urls))]


def crawl_once(wanted: FetchConfig, urls: Sequence[str]) -> tuple[list[Fetched], dict[str, float | int]]:
    async def run() -> tuple[list[Fetched], dict[str, float | int]]:
        fetcher = Fetcher(wanted, lookup=loopback)
        try:
            return await crawl(fetcher, urls), fetcher.take_figures()
        finally:
            await fetcher.close()

    return asyncio.run(run())


def _worker(wanted: FetchConfig, urls: list[str], ready: Any, results: Any) -> None:
    ready.wait(60)
    found, _ = crawl_once(wanted, urls)
    results.put([f.reason for f in found])


def crawl_in_workers(count: int, wanted: FetchConfig, urls: list[str]) -> list[list[str | None]]:
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    workers = [context.Process(target=_worker, args=(wanted, urls, ready, results)) for _ in range(count)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(30)
    return found


def test_workers_share_the_places_at_a_host(tmp_path: Path) -> None:
    with running(Web()) as web:
        web.otherwise, web.pause = PICTURE, 0.01
        hosts = ["a.example", "b.example"]
        urls = [web.url(f"{hosts[i % 2]}/{i}.jpg") for i in range(60)]
        found = crawl_in_workers(3, config(web.port, hosts, tmp_path, max_per_host=3), urls)
        assert found == [[None] * 60] * 3
        assert web.most_at_once == {"a.example": 3, "b.example": 3}


def test_workers_share_the_rate_of_a_host(tmp_path: Path) -> None:
    with running(Web()) as web:
        web.otherwise = PICTURE
        urls = [web.url(f"a.example/{i}.jpg") for i in range(8)]
        wanted = config(web.port, ["a.example"], tmp_path, min_interval=0.06)
        found = crawl_in_workers(3, wanted, urls)
        assert found == [[None] * 8] * 3
        starts = sorted(web.starts["a.example"])
        assert starts[-1] - starts[0] >= 23 * 0.06 - 0.1
        for first, sixth in zip(starts, starts[5:], strict=False):
            assert sixth - first > 0.2, "six requests within the time of three"


def test_a_crawl_delay_is_kept_up_to_a_cap(tmp_path: Path) -> None:
    with running(Web()) as web:
        web.otherwise = PICTURE
        for host, delay in (("slow.example", "0.1"), ("slower.example", "3600")):
            web.answers[f"{host}/robots.txt"] = reply(body=f"User-agent: *\nCrawl-delay: {delay}".encode())
        hosts = ["slow.example", "slower.example"]
        urls = [web.url(f"{host}/{i}.jpg") for i in range(5) for host in hosts]
        wanted = config(web.port, hosts, tmp_path, robots=True, max_crawl_delay=0.2)
        found, _ = crawl_once(wanted, urls)
        assert {f.reason for f in found} == {None}
        slow, slower = (web.starts[host][-1] - web.starts[host][1] for host in hosts)
        assert slow >= 0.4 - 0.05
        assert slower >= 0.8 - 0.05


def test_one_server_says_wait_and_all_do(tmp_path: Path) -> None:
    with running(Web()) as web:
        web.answers = {"a.example/busy.jpg": reply(429, retry_after="1"), "a.example/1.jpg": PICTURE}
        wanted = config(web.port, ["a.example"], tmp_path)
        began = time.monotonic()
        [busy], _ = crawl_once(wanted, [web.url("a.example/busy.jpg")])
        [found], _ = crawl_once(wanted, [web.url("a.example/1.jpg")])  # another client of the node
        assert (busy.http_status, found.reason) == (429, None)
        assert 1.0 <= time.monotonic() - began < 3


def test_a_busy_robots_txt_is_given_its_time(tmp_path: Path) -> None:
    with running(Web()) as web:
        web.answers = {"a.example/robots.txt": reply(429, retry_after="1"), "a.example/1.jpg": PICTURE}
        found, _ = crawl_once(
            config(web.port, ["a.example"], tmp_path, robots=True, retries=1), [web.url("a.example/1.jpg")]
        )
        assert found[0].reason == "rules_unavailable"
        first, second = web.starts["a.example"]
        assert second - first >= 1.0


def test_a_full_disk_costs_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The shared folder is a help: where it takes nothing, each worker asks for itself."""
    node = NodeFolder(str(tmp_path))
    (tmp_path / "writing").rmdir()
    node.write("a", {"x": 1})
    node.write("b", {"x": 1})
    assert node.read("a") is None
    assert len(caplog.records) == 1
    node.close()


def test_a_killed_worker_gives_its_places_back(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pipeline.stages.crawl.node import NodeFolder, number_of\n"
        "node = NodeFolder(sys.argv[1])\n"
        "print([node.try_lock(number_of('host x'), i) for i in range(4)], flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"[True, True, True, True]\n"
    node = NodeFolder(str(tmp_path))
    number = number_of("host x")
    assert not any(node.try_lock(number, i) for i in range(4))
    assert node.try_lock(number, 4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert all(node.try_lock(number, i) for i in range(4))
    other = NodeFolder(str(tmp_path))
    assert not other.try_lock(number, 0)
    node.close()
    assert other.try_lock(number, 0), "a client that is closed holds nothing"
    other.close()


def test_what_killed_workers_were_writing_is_swept(tmp_path: Path) -> None:
    node = NodeFolder(str(tmp_path))
    node.write("a", {"x": 1})
    node.write("b", {"x": "y" * 100_000})
    assert node.read("a") == {"x": 1}
    assert node.read("b") is None, "too large to be kept"
    node.set_moment(5, 12.5)
    assert (node.moment(5), node.moment(6)) == (12.5, 0.0)
    left = tmp_path / "writing" / "1-2-3"
    left.write_bytes(b"{")
    os.utime(left, (0, 0))
    (tmp_path / "moments-of-another-boot").write_bytes(b"")
    node.close()
    NodeFolder(str(tmp_path)).close()
    assert not left.exists()
    assert len(list(tmp_path.glob("moments-*"))) == 1


def test_a_dead_host_has_no_tail(tmp_path: Path) -> None:
    """Nobody listens: a few attempts find out, the other URLs are told at once; later one looks again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = taken.getsockname()[1]
        urls = [f"http://dead.example:{port}/{i}.jpg" for i in range(500)]
        wanted = config(port, ["dead.example"], tmp_path, host_failures=6, host_cooldown=0.3, retries=2)

        async def run() -> tuple[Counter[str | None], float, list[Fetched]]:
            fetcher = Fetcher(wanted, lookup=loopback)
            began = time.monotonic()
            first = Counter(f.reason for f in await crawl(fetcher, urls))
            took = time.monotonic() - began
            await asyncio.sleep(0.35)
            later = await crawl(fetcher, urls[:3])
            await fetcher.close()
            return first, took, later

        first, took, later = asyncio.run(run())
        assert first["host_down"] + first["connection"] == 500
        assert 1 <= first["connection"] <= 10
        assert took < 3
        assert [f.reason for f in later].count("connection") == 1, "one looks again"


def test_a_dead_host_is_asked_for_its_rules_only(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        urls = [f"http://dead.example:{port}/{i}.jpg" for i in range(300)]
        found, figures = crawl_once(config(port, ["dead.example"], tmp_path, robots=True, retries=1), urls)
        assert {(f.reason, f.message) for f in found} == {
            ("connection", "robots.txt: the connection failed or was cut")
        }
        assert figures["requests"] == 2, "one attempt, one more"


def test_a_host_that_answers_again_is_no_longer_down(tmp_path: Path) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        return

    with running(Web()) as web:
        web.answers = {"a.example/bad.jpg": hang_up, "a.example/good.jpg": PICTURE}
        wanted = config(web.port, ["a.example"], tmp_path, host_failures=3, max_per_host=1)
        urls = [web.url(f"a.example/{name}.jpg") for name in ["bad", "good"] * 5 + ["bad"] * 5]
        found, _ = crawl_once(wanted, urls)
        said = [f.reason for f in found]
        assert said == ["connection", None] * 5 + ["connection"] * 3 + ["host_down"] * 2


def test_a_shard_ends_in_time(tmp_path: Path) -> None:
    """A server that drips, on every URL of a host; and a host that asks for patience."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    with running(Web()) as web:
        web.answers = {f"drip.example/{i}.jpg": drip for i in range(200)}
        web.answers |= {f"good.example/{i}.jpg": PICTURE for i in range(50)}
        web.answers["wait.example/robots.txt"] = reply(body=b"User-agent: *\nCrawl-delay: 1")
        hosts = ["drip.example", "good.example", "wait.example"]
        urls = [web.url(key) for key in web.answers if "robots" not in key]
        urls += [web.url(f"wait.example/{i}.jpg") for i in range(50)]
        times = {"read_timeout": 0.5, "total_timeout": 0.5, "shard_timeout": 1.2}
        wanted = config(web.port, hosts, tmp_path, robots=True, host_failures=0, **times)
        began = time.monotonic()
        found, _ = crawl_once(wanted, urls)
        assert time.monotonic() - began < 1.2 + 0.5 + 1.0
        said = Counter(f.reason for f in found)
        assert {f.reason for f in found[200:250]} == {None}, "the others are not held up"
        assert said["timeout"] > 0
        assert said["out_of_time"] > 150


def test_hosts_take_turns_and_some_are_put_aside() -> None:
    order: list[str] = []
    free_at = {"slow": 0.0}

    async def work(item: str) -> None:
        order.append(item)
        if item.startswith("slow"):
            free_at["slow"] = time.monotonic() + 0.05
        await asyncio.sleep(0)

    def delay(host: str) -> float:
        return max(0.0, free_at.get(host, 0.0) - time.monotonic())

    items = [
        ("few", "few1"),
        *(("slow", f"slow{i}") for i in range(4)),
        *(("many", f"many{i}") for i in range(9)),
    ]
    asyncio.run(over_hosts(items, work, concurrency=2, per_host=1, delay=delay))
    assert sorted(order) == sorted(item for _, item in items)
    assert order[0] == "many0", "those with most to do come first"
    assert order.index("many8") < order.index("slow2"), "nobody waits for a host that is put aside"
    for name in ("many", "slow"):
        assert [i for i in order if i.startswith(name)] == sorted(i for i in order if i.startswith(name))


def test_work_that_fails_ends_all(tmp_path: Path) -> None:
    async def work(item: int) -> None:
        await asyncio.sleep(0)
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        asyncio.run(
            over_hosts(
                [(str(i % 4), i) for i in range(50)],
                work,
                concurrency=5,
                per_host=2,
                delay=lambda host: 0.01 if host == "1" else 0.0,
            )
        )


def test_many_hosts_each_within_its_limit(tmp_path: Path) -> None:
    """The small sister of `tests/prove/test_many_hosts.py`."""
    with apart(PICTURE, pause=0.002) as (port, seen):
        hosts = [f"h{i}.example" for i in range(100)]
        urls = [f"http://{hosts[i % 100]}:{port}/{i}.jpg" for i in range(3000)]
        wanted = config(port, hosts, tmp_path, robots=True, tdm=True, max_per_host=2, concurrency=64)
        found, figures = crawl_once(wanted, urls)
        saw = seen()
    assert {f.reason for f in found} == {None}
    assert max(saw.most_at_once.values()) <= 2
    assert set(saw.hits.values()) == {1}, "every URL and every rule file once"
    assert sum(saw.hits.values()) == 3000 + 2 * 100 == figures["requests"]
    assert figures["dns_lookups"] == 100
    assert figures["connections_opened"] == saw.connections < 300
    assert 0 < figures["latency_p50_s"] <= figures["latency_p99_s"] < 5


def test_figures_begin_anew_when_taken(tmp_path: Path) -> None:
    with running(Web()) as web:
        web.otherwise = PICTURE
        wanted = config(web.port, ["a.example"], tmp_path)

        async def run() -> list[dict[str, float | int]]:
            fetcher = Fetcher(wanted, lookup=loopback)
            taken = []
            for count in (5, 2, 0):
                await crawl(fetcher, [web.url(f"a.example/{i}.jpg") for i in range(count)])
                taken.append(fetcher.take_figures())
            nowhere = await fetcher.fetch("http://192.0.2.1.nowhere.invalid:1/")
            await fetcher.close()
            assert nowhere.reason == "refused_address"
            return taken

        first, second, third = asyncio.run(run())
        assert (first["requests"], second["requests"], third["requests"]) == (5, 2, 0)
        assert (first["bytes"], second["bytes"]) == (5 * len(b"a picture"), 2 * len(b"a picture"))
        assert second["connections_opened"] == 0
        assert second["connections_reused"] == 2
        assert third["latency_p50_s"] == 0
        json.dumps([first, second, third])


def test_percentiles_are_right_to_a_step() -> None:
    latencies = Latencies()
    for i in range(1, 1001):
        latencies.add(i / 1000)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert latencies.percentile(share) == pytest.approx(share, rel=STEP - 1)
