"""100,000 URLs over 2,000 host names on loopback: all fetched, memory flat, no host over its limit.

    python -m pytest -m prove tests/prove/test_many_hosts.py -s

The client is one crawl worker's (fetcher, hosts in turn, shards of 10,000 rows), the server another process.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import psutil
import pytest

from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.fetch import Fetcher, host_of
from pipeline.stages.crawl.spread import over_hosts
from tests.pipeline.crawl_web import apart, loopback, reply

URLS, HOSTS, SHARD = 100_000, 2_000, 10_000
PER_HOST = 2


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_many_urls_over_many_hosts(tmp_path: Path) -> None:
    process = psutil.Process()
    memory: list[int] = []
    taken: list[dict[str, float | int]] = []
    reasons: set[str | None] = set()
    with apart(reply(body=b"a tiny body"), pause=0.005) as (port, seen):
        hosts = [f"h{i}.example" for i in range(HOSTS)]
        config = FetchConfig(
            allow_private=[f"{host}:{port}" for host in hosts],
            max_per_host=PER_HOST,
            node_folder=str(tmp_path / "node"),
        )

        async def crawl() -> None:
            fetcher = Fetcher(config, lookup=loopback)

            async def one(url: str) -> None:
                reasons.add((await fetcher.fetch(url)).reason)

            for start in range(0, URLS, SHARD):
                # rows of one host in a row, as lists have them
                urls = [
                    f"http://{hosts[i * HOSTS // URLS]}:{port}/{i}.jpg" for i in range(start, start + SHARD)
                ]
                urls += [f"http://{hosts[i % HOSTS]}:{port}/b{i}.jpg" for i in range(start, start + 200)]
                fetcher.begin()
                await over_hosts(
                    [(host_of(url), url) for url in urls],
                    one,
                    concurrency=config.concurrency,
                    per_host=config.max_per_host,
                    delay=fetcher.delay,
                )
                taken.append(fetcher.take_figures())
                memory.append(process.memory_info().rss)
            await fetcher.close()

        import uvloop

        began, cpu = time.monotonic(), time.process_time()
        uvloop.run(crawl())
        cpu, wall = time.process_time() - cpu, time.monotonic() - began
        saw = seen()
    print(
        f"\n{URLS} URLs, {HOSTS} hosts: {wall:.0f} s, {1000 * cpu / URLS:.3f} ms of CPU a URL, "
        f"memory {memory[len(memory) // 2 - 1] >> 20} MiB at the half, {memory[-1] >> 20} MiB at the end, "
        f"at most {max(saw.most_at_once.values())} requests at a time at a host, "
        f"{sum(f['connections_opened'] for f in taken)} connections, last shard {taken[-1]}"
    )
    assert reasons == {None}
    assert sum(saw.hits.values()) == URLS + 200 * (URLS // SHARD) + 2 * HOSTS
    assert max(saw.most_at_once.values()) <= PER_HOST
    assert memory[-1] < memory[len(memory) // 2 - 1] + (20 << 20)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert process.num_fds() < min(soft, 600)
