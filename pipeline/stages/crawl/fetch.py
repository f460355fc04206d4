"""Fetching one URL: retries, redirects, manners and opt-outs around single requests (see `client`).

Before every hop of a redirect chain its host's robots.txt and tdmrep.json are heard, its address is checked
and its turn is waited for. Every wait has an end: see docs/politeness.md for the bounds.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from multidict import CIMultiDictProxy
from yarl import URL

from pipeline.stages.crawl.client import AGENT, Answer, Client, FetchError, parse_url
from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.figures import FetchFigures
from pipeline.stages.crawl.manners import Host, Manners, OutOfTimeError, host_name
from pipeline.stages.crawl.node import NodeFolder
from pipeline.stages.crawl.origins import MAX_REDIRECTS, Origins
from pipeline.stages.crawl.resolve import Lookup
from pipeline.stages.crawl.robots import training_reserved
from pipeline.stages.crawl.signals import tag_forbids, tdm_forbids
from pipeline.tombstones import NONE, TAKEN_DOWN, Tombstones

RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
RETRIED_REASONS = frozenset({"timeout", "connection", "dns"})
#: failures that say something about the host, not about one file of it
HOST_FAILURES = frozenset({"timeout", "connection", "dns"})


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of one URL.

    body: the bytes, where all went well.
    reason: a short word otherwise; `message` says it to people, in the same words on every run.
    http_status: of the last answer, where there was one.
    attempts: requests made, redirects not counted.
    first_byte_s, total_s: of the last request that was answered: seconds from its begin to the headers, and
        to the end of the body.
    """

    body: bytes | None = None
    reason: str | None = None
    message: str | None = None
    http_status: int | None = None
    attempts: int = 1
    first_byte_s: float | None = None
    total_s: float | None = None


class Fetcher:
    """Fetches URLs; made and used inside one running event loop, closed at its end.

    Args:
        lookup: how host names are looked up, for tests; None asks the system.

    Raises:
        ConfigError: the folder that the workers of this node share is not ours.
    """

    def __init__(self, config: FetchConfig, *, lookup: Lookup | None = None) -> None:
        self.config = config
        self.figures = FetchFigures()
        self._directives = frozenset(d.lower() for d in config.opt_out)
        self._names = frozenset(n.lower() for n in (AGENT, *config.agents))
        self._taken_down = NONE
        self._node = NodeFolder(config.node_folder)
        self.manners = Manners(config, self._node)
        self._client = Client(config, self.figures, lookup=lookup)
        self._origins = Origins(config, self._client, self.manners, self._node)

    async def close(self) -> None:
        await self._origins.close()
        await self._client.close()
        self._node.close()

    def begin(self, *, taken_down: Tombstones = NONE) -> None:
        """A new shard begins: its time (`shard_timeout`) runs from now, and no redirect leads it to what was
        taken down."""
        self.manners.begin()
        self._taken_down = taken_down

    def delay(self, host: str) -> float:
        """Seconds that a host (see `host_of`) had better be left alone: for who spreads URLs over hosts."""
        return self.manners.delay(host)

    def take_figures(self) -> dict[str, float | int]:
        """The figures since the last call (see `FetchFigures.as_dict`); they begin anew."""
        return self.figures.take()

    async def fetch(self, url: str) -> Fetched:
        """Fetches a URL with retries; never raises for what a URL or a server does.

        Raises:
            OSError: this machine has no file descriptors or memory left.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = await self._attempt(url)
                return Fetched(
                    body=answer.body,
                    http_status=answer.status,
                    attempts=attempt,
                    first_byte_s=answer.first_byte_s,
                    total_s=answer.total_s,
                )
            except FetchError as error:
                wait = self._wait(error, attempt)
                if wait is None:
                    return Fetched(
                        reason=error.reason,
                        message=error.message,
                        http_status=error.status,
                        attempts=attempt,
                    )
            await asyncio.sleep(wait)

    def _wait(self, error: FetchError, attempt: int) -> float | None:
        """Seconds until the next attempt; None where there is none."""
        may = error.reason in RETRIED_REASONS or (
            error.reason == "http_status" and error.status in RETRIED_STATUS
        )
        if error.final or not may or attempt > self.config.retries:
            return None
        if error.retry_after is not None:
            wait = error.retry_after
        else:
            wait = min(self.config.max_wait, self.config.backoff * 2 ** (attempt - 1) * (1 + random.random()))
        return wait if wait <= self.config.max_wait and not self.manners.is_over(wait) else None

    async def _attempt(self, url: str) -> Answer:
        """One attempt over all its hops. Waiting for a host's turn, or for its rules, is not counted."""
        current = parse_url(url)
        left = self.config.total_timeout
        for _ in range(MAX_REDIRECTS + 1):
            current = self._client.checked(current)
            host = self.manners.host(host_name(current))
            if self.manners.is_over():
                raise FetchError("out_of_time", "the time for the shard is over")
            if self.manners.is_down(host):
                raise FetchError("host_down", "the host did not answer again and again")
            try:
                await self._origins.check(current)
                place = await self.manners.enter(host)
            except OutOfTimeError as error:
                raise FetchError("out_of_time", "the time for the shard is over") from error
            try:
                answer = await self._hop(current, left, host)
            finally:
                self.manners.leave(host, place)
            location = answer.location
            if not location:
                return self._picture(answer, host)
            current = parse_url(location, base=current)
            if self._taken_down and self._taken_down.matches(url=str(current)):
                raise FetchError(TAKEN_DOWN, "taken down", final=True)
            left -= answer.total_s
            if left <= 0:
                raise FetchError("timeout", "the total time is over")
        raise FetchError("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")

    async def _hop(self, url: URL, left: float, host: Host) -> Answer:
        """One request, and what it says about its host."""
        try:
            answer = await self._client.get(url, left, limit=self.config.max_bytes, inspect=self._inspect)
        except FetchError as error:
            if error.reason in HOST_FAILURES:
                self.manners.failed(host)
                error.final = error.final or self.manners.gave_up(host)
            raise
        self.manners.answered(host)
        return answer

    def _inspect(self, status: int, headers: CIMultiDictProxy[str]) -> None:
        tags = headers.getall("X-Robots-Tag", ())
        if tags and tag_forbids(tags, self._directives, self._names):
            raise FetchError("opt_out", "X-Robots-Tag", status=status, final=True)
        if self.config.tdm and tdm_forbids(headers.getall("tdm-reservation", ())):
            raise FetchError("opt_out", "tdm-reservation", status=status, final=True)
        if self.config.tdm and any(map(training_reserved, headers.getall("Content-Usage", ()))):
            raise FetchError("opt_out", "Content-Usage", status=status, final=True)

    def _picture(self, answer: Answer, host: Host) -> Answer:
        """The answer, if it holds something."""
        status = answer.status
        if status != 200:
            if answer.is_busy:
                self.manners.pause(host, answer.retry_after)
            after = answer.retry_after
            raise FetchError("http_status", f"HTTP {status}", status=status, retry_after=after)
        if not answer.body:
            raise FetchError("empty", "the body is empty", status=status)
        self.figures.latencies.add(answer.total_s)
        self.figures.first_bytes.add(answer.first_byte_s)
        return answer


def host_of(url: str) -> str:
    """The host of a URL (see `host_name`), empty where it has none: to spread a list over its hosts."""
    try:
        return host_name(URL(url.strip()))
    except ValueError:
        return ""
