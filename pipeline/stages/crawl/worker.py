"""One worker of the crawl: an event loop, an HTTP client and a few decoding threads, for its whole life.

While the loop fetches, the threads decode and resize; results are put in the order of their keys, so a
shard's bytes depend on what the servers sent and on nothing else.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline import tombstones
from pipeline.stages.crawl.config import CrawlConfig
from pipeline.stages.crawl.fetch import Fetched, Fetcher, host_of
from pipeline.stages.crawl.images import Picture, Processor
from pipeline.stages.crawl.local import LocalPictures
from pipeline.stages.crawl.ordered import OrderedShard
from pipeline.stages.crawl.resolve import Lookup
from pipeline.stages.crawl.rows import NOT_ASKED, Fate, make_fate, make_sample
from pipeline.stages.crawl.sources import Rows, carried_name
from pipeline.stages.crawl.spread import over_hosts
from pipeline.stages.crawl.taken import TAKEN, refuse_taken
from pipeline.tombstones import Tombstones


class Crawler:
    """Crawls one piece of a list after the other; opened in the thread that uses it.

    Args:
        lookup: how host names are looked up, for tests; None asks the system.
    """

    def __init__(self, config: CrawlConfig, *, lookup: Lookup | None = None) -> None:
        self.config = config
        self._process = Processor(config)
        self._hash_column = carried_name(config.verify_hash[0]) if config.verify_hash else None
        self._threads = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        _allow_descriptors(config.fetch.concurrency * (1 + config.fetch.max_per_host) + 256)
        self._loop = _event_loop()
        self._local: LocalPictures | None = None
        if config.local_pictures:
            self._local = LocalPictures(config.local_pictures, max_bytes=config.fetch.max_bytes)
        self._fetcher = self._loop.run_until_complete(self._open(lookup))

    async def _open(self, lookup: Lookup | None) -> Fetcher:
        return Fetcher(self.config.fetch, lookup=lookup)  # its session must be made inside the running loop

    def close(self) -> None:
        self._loop.run_until_complete(self._fetcher.close())
        self._loop.close()
        self._threads.shutdown()

    def take_figures(self) -> dict[str, float | int]:
        """What the fetching cost since the last call (`FetchFigures.as_dict`); empty for a folder."""
        return {} if self._local else self._fetcher.take_figures()

    def crawl(self, keys: Sequence[str], rows: Rows, folder: Path) -> tuple[list[Fate], Path]:
        """Crawls rows with these keys: (their fates in order, the finished tar in `folder`)."""
        shard = OrderedShard(folder, "shard")
        # read for every shard: what is taken down while a crawl runs for days must not come in
        stones = tombstones.load(self.config.tombstones)
        fates = self._loop.run_until_complete(self._all(keys, refuse_taken(rows, stones), shard, stones))
        shard.close(len(fates))
        return fates, shard.path

    async def _all(
        self, keys: Sequence[str], rows: Rows, shard: OrderedShard, stones: Tombstones
    ) -> list[Fate]:
        fates: dict[int, Fate] = {}
        carried = rows.carried.to_pylist() if rows.carried.num_columns else [{}] * len(rows.urls)

        async def one(position: int) -> None:
            fetched = await self._fetch(rows.urls[position])
            expected = carried[position].get(self._hash_column) if self._hash_column else None
            picture = await self._decode(fetched, expected)
            if picture is not None and stones.matches(sha256=picture.sha256):
                fetched, picture = TAKEN, None
            settle(position, fetched, picture)

        def settle(position: int, fetched: Fetched, picture: Picture | None) -> None:
            url, caption = rows.urls[position], rows.captions[position]
            fate = make_fate(keys[position], url, caption, fetched, picture)
            fates[position] = fate
            sample = None
            if picture is not None and picture.data is not None:
                sample = make_sample(fate, carried[position], picture.data, self.config.encode_format)
            shard.put(position, sample)

        for position, reason in enumerate(rows.refused):
            if reason is not None:
                settle(position, Fetched(reason=reason, message=NOT_ASKED, attempts=0), None)
        hosts = ["" if self._local else host_of(url or "") for url in rows.urls]
        asked = [position for position in range(len(hosts)) if position not in fates]
        files = self.config.decode_threads * 2  # at a time, from a folder
        self._fetcher.begin(taken_down=stones)
        await over_hosts(
            ((hosts[position], position) for position in asked),
            one,
            concurrency=files if self._local else self.config.fetch.concurrency,
            per_host=files if self._local else self.config.fetch.max_per_host,
            delay=None if self._local else self._fetcher.delay,
        )
        return [fates[position] for position in range(len(hosts))]

    async def _fetch(self, url: str | None) -> Fetched:
        if not url:
            return Fetched(reason="no_url", message="the row has no URL", attempts=0)
        if self._local is not None:
            return await self._loop.run_in_executor(self._threads, self._local.read, url)
        return await self._fetcher.fetch(url)

    async def _decode(self, fetched: Fetched, expected_hash: str | None) -> Picture | None:
        if fetched.body is None:
            return None
        process = partial(self._process, fetched.body, expected_hash=expected_hash)
        return await self._loop.run_in_executor(self._threads, process)


def _event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop, which halves the cost of a request; the standard one where there is none."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _allow_descriptors(count: int) -> None:
    """Raises this process's limit of open files where it is lower: every connection, busy or idle, is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
