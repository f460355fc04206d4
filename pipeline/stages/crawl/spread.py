"""Runs work over many hosts at once: so many in all, so many a host, the hosts in turn.

A list often has thousands of URLs of one host in a row. Taken in order they would fill every place with
requests that wait for that host; taken by host in turn, everybody moves on.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def over_hosts(
    items: Iterable[tuple[str, T]],
    work: Callable[[T], Awaitable[None]],
    *,
    concurrency: int,
    per_host: int,
) -> None:
    """Awaits `work(item)` for each (host, item).

    Raises:
        the first exception of any work, after the rest was cancelled.
    """
    queues: dict[str, deque[T]] = {}
    for host, item in items:
        queues.setdefault(host, deque()).append(item)
    ready = deque(queues)  # hosts with something waiting and a place free, each once
    waiting = set(ready)
    busy: Counter[str] = Counter()
    running: set[asyncio.Task[None]] = set()
    end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fill() -> None:
        while ready and len(running) < concurrency:
            host = ready.popleft()
            waiting.discard(host)
            task = asyncio.ensure_future(work(queues[host].popleft()))
            busy[host] += 1
            offer(host)
            running.add(task)
            task.add_done_callback(functools.partial(finished, host))
        if not running and not end.done():
            end.set_result(None)

    def offer(host: str) -> None:
        if queues[host] and busy[host] < per_host and host not in waiting:
            ready.append(host)
            waiting.add(host)

    def finished(host: str, task: asyncio.Task[None]) -> None:
        running.discard(task)
        busy[host] -= 1
        error = None if task.cancelled() else task.exception()
        if end.done():
            return
        if error is not None:
            end.set_exception(error)
            return
        offer(host)
        fill()

    fill()
    try:
        await end
    finally:
        left = list(running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
