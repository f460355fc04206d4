"""What sites say in robots.txt and tdmrep.json: asked once a node and day, before the first picture.

    robots.txt    RFC 9309: 4xx means everything is allowed; 5xx, 429 and a site that cannot be reached, that
                  nothing is until it answers. Up to five redirects, to other hosts as well.
    tdmrep.json   TDMRep: what is not there reserves nothing, whatever the reason.

Every request passes the same gate as those for pictures, and waits for its turn at the host like them.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from yarl import URL

from pipeline.stages.crawl.client import AGENT, Answer, Client, FetchError, parse_url
from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.manners import Manners, host_name
from pipeline.stages.crawl.node import NodeFolder, number_of
from pipeline.stages.crawl.robots import MAX_BYTES, Robots, parse_robots
from pipeline.stages.crawl.signals import TdmRules, parse_tdmrep

MAX_REDIRECTS = 5
#: seconds that an answer counts (RFC 9309, 2.4), that an error does, and that no answer does
ANSWER_TTL = 24 * 3600.0
FAILURE_TTL = 120.0
SILENCE_TTL = 30.0
#: what one worker remembers: rules, and so many more for each origin
REMEMBERED = 400_000
ORIGIN_WEIGHT = 10
#: further attempts at most: all pictures of a site hang on them, and so does whoever waits for a dead one
MOST_RETRIES = 2
#: seconds between looks for what another worker is about to learn
LOOK_S = 0.05

T = TypeVar("T", Robots, TdmRules)


@dataclass(frozen=True)
class _Known(Generic[T]):
    """until: seconds since 1970; failure: (reason, message) where there are no rules."""

    until: float
    rules: T | None
    failure: tuple[str, str] | None = None


class Origins:
    """The rules of sites, by their origin (scheme, host, port)."""

    def __init__(self, config: FetchConfig, client: Client, manners: Manners, node: NodeFolder) -> None:
        names = [AGENT, *config.agents]
        self._config, self._client, self._manners = config, client, manners
        tag = " ".join(sorted(n.lower() for n in names))
        self._robots: _Rules[Robots] = _Rules(
            node, f"robots {tag}", lambda origin: self._ask_robots(origin, names), Robots.from_json
        )
        self._tdm: _Rules[TdmRules] = _Rules(node, "tdm", self._ask_tdm, TdmRules.from_json)
        # for how long one worker waits for another that learns: what all its attempts may take at most
        self._retries = min(config.retries, MOST_RETRIES)
        patience = 2 * (self._retries + 1) * (config.total_timeout + config.max_wait)
        self._robots.patience = self._tdm.patience = patience

    async def close(self) -> None:
        await self._robots.close()
        await self._tdm.close()

    async def check(self, url: URL) -> None:
        """Asks whether a URL may be fetched, before it is.

        Raises:
            FetchError: `opt_out`; or why the rules could not be had, which forbids it for now.
        """
        if not (self._config.robots or self._config.tdm):
            return
        origin = f"{url.scheme}://{url.raw_authority}"
        path = url.raw_path_qs
        if self._config.robots:
            robots = self._robots.now(origin)
            if robots is None:
                robots = await self._robots.get(origin)
            if not robots.allows(path):
                raise FetchError("opt_out", "robots.txt", final=True)
            if self._config.tdm and robots.reserves(path):
                raise FetchError("opt_out", "Content-Signal", final=True)
            if robots.crawl_delay:
                self._manners.slow_down(self._manners.host(host_name(url)), robots.crawl_delay)
        if self._config.tdm:
            tdm = self._tdm.now(origin)
            if tdm is None:
                tdm = await self._tdm.get(origin)
            if not tdm.allows(path):
                raise FetchError("opt_out", "tdmrep.json", final=True)

    async def _ask_robots(self, origin: str, names: list[str]) -> _Known[Robots]:
        try:
            answer = await self._ask(f"{origin}/robots.txt")
        except FetchError as error:
            if error.reason == "too_many_redirects":  # RFC 9309, 2.3.1.2: as if there were none
                return _Known(_soon(ANSWER_TTL), Robots())
            return _Known(_soon(SILENCE_TTL), None, (error.reason, f"robots.txt: {error.message}"))
        if 200 <= answer.status < 300:
            return _Known(_soon(ANSWER_TTL), parse_robots(_plain(answer), names))
        if 400 <= answer.status < 500 and answer.status != 429:
            return _Known(_soon(ANSWER_TTL), Robots())
        failure = ("rules_unavailable", f"robots.txt: HTTP {answer.status}")
        return _Known(_soon(FAILURE_TTL), None, failure)

    async def _ask_tdm(self, origin: str) -> _Known[TdmRules]:
        try:
            answer = await self._ask(f"{origin}/.well-known/tdmrep.json")
        except FetchError:
            return _Known(_soon(SILENCE_TTL), TdmRules())
        if 200 <= answer.status < 300:
            return _Known(_soon(ANSWER_TTL), parse_tdmrep(_plain(answer)))
        return _Known(_soon(ANSWER_TTL if answer.status < 500 else FAILURE_TTL), TdmRules())

    async def _ask(self, address: str) -> Answer:
        """The answer at the end of the redirects, tried again where that may help."""
        attempt = 0
        while True:
            attempt += 1
            failure: FetchError | None = None
            try:
                answer = await self._follow(parse_url(address))
                if (answer.status < 500 and answer.status != 429) or attempt > self._retries:
                    return answer
            except FetchError as error:
                failure = error
            if failure is not None and (
                failure.final
                or attempt > self._retries
                or failure.reason not in ("timeout", "connection", "dns", "bad_answer")
            ):
                raise failure
            backoff = self._config.backoff * 2 ** (attempt - 1) * (1 + random.random())
            await asyncio.sleep(min(self._config.max_wait, backoff))

    async def _follow(self, url: URL) -> Answer:
        left = self._config.total_timeout
        for _ in range(MAX_REDIRECTS + 1):
            url = self._client.checked(url)
            host = self._manners.host(host_name(url))
            place = await self._manners.enter(host)
            try:
                self._client.figures.rule_requests += 1
                answer = await self._client.get(url, left, limit=MAX_BYTES + 1, cut=True)
                if answer.is_busy:
                    self._manners.pause(host, answer.retry_after)
            finally:
                self._manners.leave(host, place)
            if answer.location is None:
                return answer
            url = parse_url(answer.location, base=url)
            left -= answer.total_s
            if left <= 0:
                raise FetchError("timeout", "the total time is over")
        raise FetchError("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")


class _Rules(Generic[T]):
    """One kind of rules: in memory, then among the node's documents, then from the site."""

    def __init__(
        self,
        node: NodeFolder,
        kind: str,
        ask: Callable[[str], Any],
        from_json: Callable[[dict[str, Any]], T],
    ) -> None:
        self.patience = 60.0
        self._node, self._kind, self._ask = node, kind, ask
        self._from_json: Callable[[dict[str, Any]], T] = from_json
        self._known: OrderedDict[str, _Known[T]] = OrderedDict()
        self._weight = 0
        self._learning: dict[str, asyncio.Task[_Known[T]]] = {}

    async def close(self) -> None:
        tasks = list(self._learning.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def now(self, origin: str) -> T | None:
        """The rules, if they are in memory."""
        known = self._known.get(origin)
        return known.rules if known is not None and known.until > time.time() else None

    async def get(self, origin: str) -> T:
        """The rules. Raises FetchError where they cannot be had."""
        known = self._known.get(origin)
        if known is None or known.until <= time.time():
            task = self._learning.get(origin)
            if task is None:
                task = self._learning[origin] = asyncio.ensure_future(self._learn(origin))
                task.add_done_callback(lambda t: self._learned(origin, t))
            # the task outlives whoever asked first: their end must not fail the others
            known = await asyncio.shield(task)
        if known.rules is None:
            reason, message = known.failure or ("rules_unavailable", "")
            raise FetchError(reason, message, final=True)
        return known.rules

    def _learned(self, origin: str, task: asyncio.Task[_Known[T]]) -> None:
        self._learning.pop(origin, None)
        if not task.cancelled():
            task.exception()  # whoever still waits is told; nobody else has to be

    async def _learn(self, origin: str) -> _Known[T]:
        name = f"{self._kind} {origin}"
        number = number_of(name)
        patience = time.monotonic() + self.patience
        locked = False
        try:
            while True:
                known = self._read(name)
                if known is not None or locked or time.monotonic() > patience:
                    break
                locked = self._node.try_lock(number)
                if not locked:
                    await asyncio.sleep(LOOK_S * (0.5 + random.random()))
            if known is None:
                known = await self._ask(origin)
                self._node.write(name, _as_json(known))
        finally:
            if locked:
                self._node.unlock(number)
        self._remember(origin, known)
        return known

    def _remember(self, origin: str, known: _Known[T]) -> None:
        before = self._known.pop(origin, None)
        self._weight += _weight(known) - (_weight(before) if before else 0)
        self._known[origin] = known
        while self._weight > REMEMBERED and len(self._known) > 1:
            self._weight -= _weight(self._known.popitem(last=False)[1])

    def _read(self, name: str) -> _Known[T] | None:
        found = self._node.read(name)
        if found is None or not time.time() < found["until"] <= time.time() + ANSWER_TTL:
            return None
        rules = self._from_json(found["rules"]) if found["rules"] is not None else None
        return _Known(found["until"], rules, tuple(found["failure"]) if found["failure"] else None)


def _weight(known: _Known[Any]) -> int:
    return ORIGIN_WEIGHT + (len(known.rules) if known.rules is not None else 0)


def _as_json(known: _Known[Any]) -> dict[str, Any]:
    rules = known.rules.as_json() if known.rules is not None else None
    return {"until": known.until, "rules": rules, "failure": known.failure}


def _soon(seconds: float) -> float:
    return time.time() + seconds


def _plain(answer: Answer) -> bytes:
    """The body, unpacked up to the cap where a server packs what was asked for plain."""
    body = answer.body or b""
    if answer.headers.get("Content-Encoding", "").strip().lower() in ("gzip", "x-gzip", "deflate"):
        try:
            return zlib.decompressobj(wbits=47).decompress(body, MAX_BYTES)
        except zlib.error:
            return body
    return body
