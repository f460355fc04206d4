"""Manners towards hosts: so many requests at a time, so far apart, a pause when one is asked for, and none at
all for a while to a host that does not answer.

The limits hold for all workers of a node together (`pipeline.stages.crawl.node`): a place at a host is a lock
that the kernel frees when its holder dies, the next start and the end of a pause are moments in a shared
table. What is known of a dead host stays within one worker.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import OrderedDict

from yarl import URL

from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.node import NodeFolder, number_of

#: hosts that are remembered while nobody asks them
REMEMBERED_HOSTS = 10_000
#: the place of a host's lock that guards its next start; the places for requests lie below
PACE_PLACE = 4095
#: seconds between looks for a place that another worker of the node has
FIRST_LOOK_S, LAST_LOOK_S = 0.005, 0.2
#: how soon to come back to a host where somebody of this worker is waiting already
CROWDED_S = 0.05


class OutOfTimeError(Exception):
    """The time for the shard ends before the host's turn comes."""


class Host:
    """One host: who is there, who waits, and how it did.

    interval: seconds between two starts.
    failures: attempts in a row that got no answer.
    """

    def __init__(self, name: str, limit: int, interval: float) -> None:
        self.name = name
        self.interval = interval
        self.number = number_of(f"host {name}")
        self.pause_number = number_of(f"pause {name}")
        self.turns = asyncio.Semaphore(limit)
        self.free = list(range(limit - 1, -1, -1))
        self.users = 0
        self.waiting = 0
        self.failures = 0
        self.down_until = 0.0


class Manners:
    """All hosts of one client.

    Args:
        node: what is shared with the other workers of the node.
    """

    def __init__(self, config: FetchConfig, node: NodeFolder) -> None:
        self.config, self.node = config, node
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self._end = math.inf

    def begin(self) -> None:
        """A new shard: its time runs from now."""
        self._end = time.monotonic() + (self.config.shard_timeout or math.inf)

    def is_over(self, seconds: float = 0.0) -> bool:
        """Whether the shard's time is over, or will be in so many seconds."""
        return time.monotonic() + seconds > self._end

    def host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            host = Host(name, self.config.max_per_host, self.config.min_interval)
            self._hosts[name] = host
            while len(self._hosts) > REMEMBERED_HOSTS and not next(iter(self._hosts.values())).users:
                self._hosts.popitem(last=False)
        else:
            self._hosts.move_to_end(name)
        return host

    def delay(self, name: str) -> float:
        """Seconds that it makes no sense to start work on a host: it is paused, or somebody waits there."""
        host = self._hosts.get(name)
        if host is None or self._is_resting(host):
            return 0.0
        moment = self.node.moment(host.pause_number)
        if host.interval:
            moment = max(moment, self.node.moment(host.number))
        delay = max(CROWDED_S if host.waiting else 0.0, moment - time.monotonic())
        return 0.0 if self.is_over(delay) else delay

    async def enter(self, host: Host) -> int:
        """Waits for a place at a host, and for its time: a number for `leave`.

        Raises:
            OutOfTimeError: the shard's time ends before.
        """
        if self.is_over():
            raise OutOfTimeError
        host.users += 1
        host.waiting += 1
        try:
            await host.turns.acquire()
            place = -1
            try:
                place = await self._place(host)
                await self._pace(host)
            except BaseException:
                self._give_back(host, place)
                raise
        except BaseException:
            host.users -= 1
            raise
        finally:
            host.waiting -= 1
        return place

    def leave(self, host: Host, place: int) -> None:
        self._give_back(host, place)
        host.users -= 1

    def pause(self, host: Host, asked: float | None) -> None:
        """Nobody of the node asks this host again for so many seconds as it asked for, up to `max_wait`; for
        `backoff` where it did not say."""
        seconds = self.config.backoff if asked is None else min(asked, self.config.max_wait)
        moment = time.monotonic() + seconds
        if self.node.moment(host.pause_number) < moment:
            self.node.set_moment(host.pause_number, moment)

    def slow_down(self, host: Host, interval: float) -> None:
        """The host asks for so many seconds between requests; longer than `max_crawl_delay` is not waited."""
        host.interval = max(self.config.min_interval, min(interval, self.config.max_crawl_delay))

    def failed(self, host: Host) -> None:
        """An attempt got no answer."""
        host.failures += 1
        if self.gave_up(host):
            host.down_until = time.monotonic() + self.config.host_cooldown

    def answered(self, host: Host) -> None:
        host.failures = 0

    def is_down(self, host: Host) -> bool:
        """Whether a host is left alone for now. After the cool-down one request may try it."""
        if not self.gave_up(host):
            return False
        if self._is_resting(host):
            return True
        host.down_until = time.monotonic() + self.config.host_cooldown
        return False

    def gave_up(self, host: Host) -> bool:
        """Whether it failed too often in a row."""
        return 0 < self.config.host_failures <= host.failures

    def _is_resting(self, host: Host) -> bool:
        return self.gave_up(host) and time.monotonic() < host.down_until

    async def _place(self, host: Host) -> int:
        look = FIRST_LOOK_S
        while True:
            for index in range(len(host.free) - 1, -1, -1):
                if self.node.try_lock(host.number, host.free[index]):
                    return host.free.pop(index)
            await self._sleep(look * (0.5 + random.random()))
            look = min(2 * look, LAST_LOOK_S)

    def _give_back(self, host: Host, place: int) -> None:
        if place >= 0:
            self.node.unlock(host.number, place)
            host.free.append(place)
        host.turns.release()

    async def _pace(self, host: Host) -> None:
        """Waits for the end of a pause, then for the next start, which is reserved."""
        while (wait := self.node.moment(host.pause_number) - time.monotonic()) > 0:
            await self._sleep(wait)
        if not host.interval:
            return
        while not self.node.try_lock(host.number, PACE_PLACE):
            await asyncio.sleep(FIRST_LOOK_S * random.random())
        try:
            start = max(time.monotonic(), self.node.moment(host.number))
            self.node.set_moment(host.number, start + host.interval)
        finally:
            self.node.unlock(host.number, PACE_PLACE)
        if (wait := start - time.monotonic()) > 0:
            await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        if self.is_over(seconds):
            raise OutOfTimeError
        await asyncio.sleep(seconds)


def host_name(url: URL) -> str:
    """What manners are counted by: the name of the host; a server on a port of its own is one of its own."""
    name = (url.raw_host or "").lower().rstrip(".")
    port = url.explicit_port
    return name if port is None or port in (80, 443) else f"{name}:{port}"
