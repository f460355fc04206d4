"""Runs work over many hosts at once: so many in all, so many a host, the hosts in turn.

A list often has thousands of URLs of one host in a row. Taken in order they would fill every place with
requests that wait for that host; taken by host in turn, everybody moves on. The hosts with most to do come
first, since they take longest, and only as many take turns as there are places: a host is met again while
its connections are still open. A host that has to be left alone for a while is put aside.
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
    delay: Callable[[str], float] | None = None,
) -> None:
    """Awaits `work(item)` for each (host, item).

    Args:
        delay: seconds that a host has to be left alone before its next work is started; 0 for not at all.

    Raises:
        the first exception of any work, after the rest was cancelled.
    """
    queues: dict[str, deque[T]] = {}
    for host, item in items:
        queues.setdefault(host, deque()).append(item)
    later = deque(sorted(queues, key=lambda host: -len(queues[host])))  # hosts whose turn has not begun
    ready: deque[str] = deque()  # hosts with something waiting and a place free, each once
    aside: dict[str, asyncio.TimerHandle] = {}
    busy: Counter[str] = Counter()
    running: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()

    def fill() -> None:
        while len(running) < concurrency:
            while later and len(ready) < concurrency:
                ready.append(later.popleft())
            if not ready:
                break
            host = ready.popleft()
            seconds = delay(host) if delay is not None else 0.0
            if seconds > 0:
                aside[host] = loop.call_later(seconds, back, host)
                continue
            task = asyncio.ensure_future(work(queues[host].popleft()))
            busy[host] += 1
            if queues[host] and busy[host] < per_host:
                ready.append(host)
            running.add(task)
            task.add_done_callback(functools.partial(finished, host))
        if not running and not aside and not end.done():
            end.set_result(None)

    def back(host: str) -> None:
        del aside[host]
        ready.append(host)
        fill()

    def finished(host: str, task: asyncio.Task[None]) -> None:
        running.discard(task)
        full = busy[host] == per_host
        busy[host] -= 1
        error = None if task.cancelled() else task.exception()
        if end.done():
            return
        if error is not None:
            end.set_exception(error)
            return
        if queues[host] and full:  # otherwise it is ready or aside already
            ready.append(host)
        fill()

    fill()
    try:
        await end
    finally:
        for timer in aside.values():
            timer.cancel()
        left = list(running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
