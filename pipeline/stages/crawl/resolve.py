"""A caching resolver that hands out none but checked addresses; no root, no daemon, no further package."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.stages.crawl.figures import FetchFigures
from pipeline.stages.crawl.gate import Gate

#: looks a name up: host -> textual addresses; raises OSError where there are none
Lookup: TypeAlias = "Callable[[str], Awaitable[list[str]]]"

CACHED_NAMES = 20_000
FAILURE_TTL = 60.0


class CheckedResolver(AbstractResolver):
    """Resolves names for aiohttp: cached (failures too), looked up once however many ask, always checked.

    Args:
        gate: what may be connected to.
        lookup: how a name is looked up; None asks the system's resolver in threads of its own, since a slow
            lookup must not keep the pictures from being decoded.
        ttl: seconds an answer is kept.
        threads: lookups at a time.
        figures: where lookups are counted.
    """

    def __init__(
        self,
        gate: Gate,
        lookup: Lookup | None = None,
        *,
        ttl: float = 600,
        threads: int = 16,
        figures: FetchFigures | None = None,
    ) -> None:
        self.gate, self.ttl = gate, ttl
        self.figures = figures or FetchFigures()
        self._lookup = lookup or self._system
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dns")
        self._known: OrderedDict[str, tuple[float, asyncio.Task[list[str]]]] = OrderedDict()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._addresses(host.lower())
        if not addresses:
            raise OSError("the name has no address")
        self.gate.check_addresses(host, port, addresses)
        return [
            ResolveResult(
                hostname=host,
                host=a,
                port=port,
                family=socket.AF_INET6 if ":" in a else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for a in addresses
        ]

    async def _addresses(self, host: str) -> list[str]:
        now = time.monotonic()
        known = self._known.get(host)
        if known is None or known[0] < now:
            # The task outlives whoever asked first: their deadline must not fail the others.
            known = (now + self.ttl, asyncio.ensure_future(self._lookup(host)))
            self._known[host] = known
            self.figures.dns_lookups += 1
            known[1].add_done_callback(lambda task: self._looked_up(host, task, now))
            if len(self._known) > CACHED_NAMES:
                self._known.popitem(last=False)
        else:
            self.figures.dns_cached += 1
        return await asyncio.shield(known[1])

    def _looked_up(self, host: str, task: asyncio.Task[list[str]], began: float) -> None:
        if task.cancelled():
            return
        error = task.exception()
        self.figures.dns_seconds += time.monotonic() - began
        self.figures.dns_failures += error is not None
        if host not in self._known or self._known[host][1] is not task:
            return
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            del self._known[host]  # the resolver itself had a bad moment: the retry may ask again
        elif error is not None:
            self._known[host] = (time.monotonic() + min(self.ttl, FAILURE_TTL), task)

    async def _system(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _getaddrinfo, host)

    async def close(self) -> None:
        for _, task in self._known.values():
            task.cancel()
        # a lookup under way cannot be interrupted; nobody waits for it
        self._threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str) -> list[str]:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError as error:  # a label over 63 letters
        raise OSError("the name cannot be looked up") from error
    return list(dict.fromkeys(str(a[4][0]) for a in answers))
