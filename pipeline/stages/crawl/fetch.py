"""Fetching one URL: a pooled asynchronous HTTP client that treats URLs and servers as hostile.

Every hop of a redirect chain is checked anew (scheme, port, address: `pipeline.stages.crawl.resolve`), bodies
are capped while they stream, every wait has a deadline, and a server that says `noai` is heard. One client
serves a worker for its whole life: connections, one TLS context, the answers of the resolver.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import ssl
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

import aiohttp
from yarl import URL

from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.gate import Gate, RefusedAddressError, parse_address
from pipeline.stages.crawl.resolve import CheckedResolver, Lookup

AGENT = "pairmill"
MAX_REDIRECTS = 5
RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
RETRIED_REASONS = frozenset({"timeout", "connection", "dns"})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: X-Robots-Tag directives that have a colon themselves: what stands before it is no agent's name
VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
#: the body of an error page up to this size is read, so that its connection can be used again
DRAINED_BYTES = 16 << 10
#: hosts whose connection counts are remembered while idle
REMEMBERED_HOSTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of one URL.

    body: the bytes, where all went well.
    reason: a short word otherwise; `message` says it to people, in the same words on every run.
    http_status: of the last answer, where there was one.
    attempts: requests made, redirects not counted.
    """

    body: bytes | None = None
    reason: str | None = None
    message: str | None = None
    http_status: int | None = None
    attempts: int = 1


class FetchError(Exception):
    """One attempt failed; `retry_after` is what the server asked for, in seconds."""

    def __init__(
        self, reason: str, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason, self.message, self.status, self.retry_after = reason, message, status, retry_after

    @property
    def may_retry(self) -> bool:
        return self.reason in RETRIED_REASONS or (self.status in RETRIED_STATUS and self.reason != "opt_out")


class _Host:
    """Manners towards one host: how many requests at a time, and not before when."""

    def __init__(self, limit: int) -> None:
        self.slots = asyncio.Semaphore(limit)
        self.users = 0
        self.not_before = 0.0


class Fetcher:
    """Fetches URLs; made and used inside one running event loop, closed at its end.

    Args:
        lookup: how host names are looked up, for tests; None asks the system.
    """

    def __init__(self, config: FetchConfig, *, lookup: Lookup | None = None) -> None:
        self.config = config
        self.gate = Gate(config.allow_private)
        self._opt_out = frozenset(d.lower() for d in config.opt_out)
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        tls = ssl.create_default_context()
        if config.ca_file:
            tls.load_verify_locations(config.ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(self.gate, lookup, ttl=config.dns_ttl),
                socket_factory=self.gate.socket,
                use_dns_cache=False,  # the resolver caches, and checks on the way out
                ssl=tls,
                limit=0,  # counted here, where waiting is no part of a deadline
                keepalive_timeout=30,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": user_agent(config.contact), "Accept": "image/*,*/*;q=0.5"},
            skip_auto_headers=("Accept-Encoding",),
            auto_decompress=False,  # identity is asked for; a server that compresses anyway sends no picture
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Fetched:
        """Fetches a URL with retries; never raises for what a URL or a server does."""
        attempt = 0
        while True:
            attempt += 1
            try:
                status, body = await self._attempt(url)
                return Fetched(body=body, http_status=status, attempts=attempt)
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
        if not error.may_retry or attempt > self.config.retries:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.config.max_wait else None
        return min(self.config.max_wait, self.config.backoff * 2 ** (attempt - 1) * (1 + random.random()))

    async def _attempt(self, url: str) -> tuple[int, bytes]:
        """One attempt over all its hops: (status, body). Waiting for a host's turn is not counted."""
        current = _parse(url)
        left = self.config.total_timeout
        for _ in range(MAX_REDIRECTS + 1):
            current = self._checked(current)
            host = self._host(current.raw_host or "")
            host.users += 1
            try:
                async with host.slots:
                    await _until(host.not_before)
                    began = time.monotonic()
                    # robots.txt belongs here: asked for every hop's host, before the hop is made
                    outcome = await self._hop(current, left, host)
                    left -= time.monotonic() - began
            finally:
                host.users -= 1
            if isinstance(outcome, tuple):
                return outcome
            current = outcome
            if left <= 0:
                raise FetchError("timeout", "the total time is over")
        raise FetchError("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")

    def _checked(self, url: URL) -> URL:
        """Refuses what must not be asked, before anything is looked up; spells numeric hosts plainly.

        aiohttp connects to addresses in a URL without asking the resolver, so they are checked here.
        """
        host, port = url.host, url.port
        if url.scheme not in ("http", "https"):
            raise FetchError("bad_url", "only http and https are fetched")
        if not host or port is None or url.user is not None or url.password is not None:
            raise FetchError("bad_url", "the URL has no host, or a user name")
        address = parse_address(host)
        try:
            self.gate.check_port(host, port)
            if address is not None:
                self.gate.check_addresses(host, port, [str(address)])
        except RefusedAddressError as error:
            raise FetchError("refused_address", str(error)) from error
        return url if address is None else url.with_host(str(address))

    def _host(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self.config.max_per_host)
            while len(self._hosts) > REMEMBERED_HOSTS and not next(iter(self._hosts.values())).users:
                self._hosts.popitem(last=False)
        self._hosts.move_to_end(name)
        return host

    async def _hop(self, url: URL, left: float, host: _Host) -> tuple[int, bytes] | URL:
        """One request: the body, or where it sends us."""
        limits = aiohttp.ClientTimeout(
            total=left,
            connect=min(left, self.config.connect_timeout),
            sock_read=min(left, self.config.read_timeout),
        )
        try:
            async with self._session.get(
                url, headers={"Accept-Encoding": "identity"}, allow_redirects=False, timeout=limits
            ) as response:
                return await self._answer(response, host)
        except (asyncio.TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise _named(error) from error

    async def _answer(self, response: aiohttp.ClientResponse, host: _Host) -> tuple[int, bytes] | URL:
        status = response.status
        if opts_out(response.headers.getall("X-Robots-Tag", ()), self._opt_out):
            raise FetchError("opt_out", "X-Robots-Tag forbids this use", status=status)
        location = response.headers.get("Location")
        if status in REDIRECTS and location:
            await _drain(response)
            return _parse(location, base=response.url)
        if status != 200:
            await _drain(response)
            after = _retry_after(response.headers.get("Retry-After"))
            if status in (429, 503):
                pause = self.config.backoff if after is None else min(after, self.config.max_wait)
                host.not_before = time.monotonic() + pause
            raise FetchError("http_status", f"HTTP {status}", status=status, retry_after=after)
        return status, await self._body(response)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self.config.max_bytes
        if (response.content_length or 0) > limit:
            raise FetchError("too_large", f"more than {limit} bytes", status=200)
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                response.close()
                raise FetchError("too_large", f"more than {limit} bytes", status=200)
            chunks.append(chunk)
        if not size:
            raise FetchError("empty", "the body is empty", status=200)
        return b"".join(chunks)


def user_agent(contact: str) -> str:
    """Name, version, contact: site owners can tell who asks, and address it in their rules."""
    version = metadata.version(AGENT)
    return f"{AGENT}/{version} (+{contact})" if contact else f"{AGENT}/{version}"


def opts_out(values: Iterable[str], directives: frozenset[str]) -> bool:
    """Whether X-Robots-Tag headers hold one of the directives, for everybody or for our agent by name.

    `noai` and `pairmill: noai` count, `otherbot: noai` does not; a name holds until the end of its header.
    """
    for value in values:
        for_us = True
        for item in value.lower().split(","):
            name, colon, rest = item.partition(":")
            if colon and name.strip() not in VALUED_DIRECTIVES:
                for_us = name.strip() in (AGENT, "*")
            if for_us and (rest if colon else name).strip() in directives:
                return True
    return False


def host_of(url: str) -> str:
    """The host name of a URL, empty where it has none: to spread a list over its hosts."""
    try:
        return (URL(url).raw_host or "").lower()
    except ValueError:
        return ""


def _parse(url: str, *, base: URL | None = None) -> URL:
    try:
        parsed = URL(url.strip())
        return (base.join(parsed) if base is not None else parsed).with_fragment(None)
    except ValueError as error:
        raise FetchError("bad_url", "not a valid URL") from error


async def _until(moment: float) -> None:
    while (wait := moment - time.monotonic()) > 0:
        await asyncio.sleep(wait)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Reads a short body that nobody wants: an unread body costs the connection."""
    length = response.content_length
    if length is not None and length <= DRAINED_BYTES:
        await response.read()


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _named(error: Exception) -> FetchError:
    """The reason for what aiohttp raised. Messages hold no addresses and no errno: they must not vary."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, RefusedAddressError) or isinstance(error, RefusedAddressError):
        return FetchError("refused_address", str(cause or error))
    if isinstance(error, asyncio.TimeoutError):
        return FetchError("timeout", "no answer in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("dns", "the host name was not found")
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError, ssl.CertificateError)):
        return FetchError("tls", "no trusted TLS connection")
    if isinstance(error, aiohttp.InvalidURL):
        return FetchError("bad_url", "not a valid URL")
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("bad_answer", "the answer is not valid HTTP")
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return FetchError("bad_url", "not a valid URL")
    return FetchError("connection", "the connection failed or was cut")
