"""One request over HTTP: checked, capped, with deadlines; for pictures and for the rule files of sites.

Every request's scheme, port and address are checked (`pipeline.stages.crawl.gate`), redirects are left to the
caller, who checks each hop anew; bodies are capped while they stream and never decompressed. One client
serves a worker for its whole life: connections, one TLS context, the answers of the resolver.
"""

from __future__ import annotations

import asyncio
import email.utils
import errno
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeAlias

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from pipeline.stages.crawl.config import FetchConfig
from pipeline.stages.crawl.figures import FetchFigures
from pipeline.stages.crawl.gate import Gate, RefusedAddressError, parse_address
from pipeline.stages.crawl.resolve import CheckedResolver, Lookup

AGENT = "pairmill"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: the body of an error page up to this size is read, so that its connection can be used again
DRAINED_BYTES = 16 << 10
#: a body is read ahead of its reader by twice this, and by what one read of the socket brings (256 KiB)
BUFFER_BYTES = 128 << 10
#: idle connections are kept so long (seconds), to as many hosts as there are requests at a time
KEEP_ALIVE_S = 15.0

#: names that are looked up at a time
MOST_LOOKUPS = 64
#: errors of this machine: too many open files, no memory
OUR_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

#: looks at status and headers before the body is read; raises FetchError where it must not be
Inspect: TypeAlias = "Callable[[int, CIMultiDictProxy[str]], None]"


class FetchError(Exception):
    """One attempt failed.

    retry_after: what the server asked for, in seconds.
    final: whether a further attempt makes no sense, whatever the reason.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason, self.message, self.status = reason, message, status
        self.retry_after, self.final = retry_after, final


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a server answered. body: None unless the status is 200 (any 2xx where it may be cut);
    first_byte_s, total_s: since the request was begun, connecting included."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes | None
    first_byte_s: float
    total_s: float

    @property
    def location(self) -> str | None:
        """Where a redirect leads."""
        return self.headers.get("Location") if self.status in REDIRECTS else None

    @property
    def is_busy(self) -> bool:
        """Whether the server asks for a pause."""
        return self.status in (429, 503)

    @property
    def retry_after(self) -> float | None:
        """Seconds from the Retry-After header, which holds a number or a date."""
        value = self.headers.get("Retry-After", "").strip()
        if value.isascii() and value.isdigit():
            return float(value)
        try:
            moment = email.utils.parsedate_to_datetime(value)
            return max(0.0, moment.timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return None


class Client:
    """Asks one URL at a time; made and used inside one running event loop, closed at its end.

    Args:
        lookup: how host names are looked up, for tests; None asks the system.
    """

    def __init__(self, config: FetchConfig, figures: FetchFigures, *, lookup: Lookup | None = None) -> None:
        self.config, self.figures = config, figures
        self.gate = Gate(config.allow_private)
        self._usual = self._limits(config.total_timeout)
        tls = ssl.create_default_context()
        if config.ca_file:
            tls.load_verify_locations(config.ca_file)
        # a name that is not answered for holds a thread for many seconds, and others must not wait for it
        threads = max(16, min(MOST_LOOKUPS, config.concurrency))
        self.resolver = CheckedResolver(
            self.gate, lookup, ttl=config.dns_ttl, threads=threads, figures=figures
        )
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                figures,
                idle_hosts=config.concurrency,
                resolver=self.resolver,
                socket_factory=self.gate.socket,
                use_dns_cache=False,  # the resolver caches, and checks on the way out
                ssl=tls,
                limit=0,  # counted by who asks, where waiting is no part of a deadline
                keepalive_timeout=KEEP_ALIVE_S,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": user_agent(config.contact),
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,  # identity is asked for; a server that compresses anyway sends no picture
            read_bufsize=BUFFER_BYTES,
            trust_env=False,
            raise_for_status=False,
        )

    async def close(self) -> None:
        await self._session.close()

    def checked(self, url: URL) -> URL:
        """Refuses what must not be asked, before anything is looked up; spells numeric hosts plainly.

        aiohttp connects to addresses in a URL without asking the resolver, so they are checked here.

        Raises:
            FetchError: `bad_url` or `refused_address`.
        """
        host, port = url.host, url.port
        if url.scheme not in ("http", "https"):
            raise FetchError("bad_url", "only http and https are fetched")
        if not host or port is None or url.raw_user is not None or url.raw_password is not None:
            raise FetchError("bad_url", "the URL has no host, or a user name")
        address = parse_address(host)
        try:
            self.gate.check_port(host, port)
            if address is not None:
                self.gate.check_addresses(host, port, [str(address)])
        except RefusedAddressError as error:
            raise FetchError("refused_address", str(error)) from error
        return url if address is None else url.with_host(str(address))

    async def get(
        self, url: URL, seconds: float, *, limit: int, cut: bool = False, inspect: Inspect | None = None
    ) -> Answer:
        """Asks a URL that `checked` has passed.

        Args:
            seconds: for everything, from the lookup to the last byte.
            limit: bytes of a body; a longer one fails as `too_large`, or is cut there with `cut`.
            inspect: looks at status and headers before the body is read.

        Raises:
            FetchError: there is no whole answer.
        """
        limits = self._usual if seconds == self.config.total_timeout else self._limits(seconds)
        self.figures.requests += 1
        began = time.monotonic()
        try:
            response = await self._session.get(url, allow_redirects=False, timeout=limits)
            try:
                first_byte = time.monotonic() - began
                status = response.status
                if inspect is not None:
                    inspect(status, response.headers)
                body = None
                if status == 200 or (cut and 200 <= status < 300):
                    body = await self._body(response, limit, cut)
                else:
                    await _drain(response)
            finally:
                response.release()
        except (asyncio.TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            if getattr(error, "errno", None) in OUR_FAULT:
                raise  # no site is to blame: the unit fails, and is tried again
            raise _named(error) from error
        total = time.monotonic() - began
        return Answer(
            status=status, headers=response.headers, body=body, first_byte_s=first_byte, total_s=total
        )

    async def _body(self, response: aiohttp.ClientResponse, limit: int, cut: bool) -> bytes:
        if (response.content_length or 0) > limit and not cut:
            response.close()
            raise FetchError("too_large", f"more than {limit} bytes", status=response.status)
        content = response.content
        body = await content.readany()
        self.figures.bytes += len(body)
        if not content.at_eof() or len(body) > limit:
            chunks, size = [body], len(body)
            while size <= limit and (chunk := await content.readany()):
                chunks.append(chunk)
                size += len(chunk)
                self.figures.bytes += len(chunk)
            if size > limit:
                response.close()
                if not cut:
                    raise FetchError("too_large", f"more than {limit} bytes", status=response.status)
            body = b"".join(chunks)[:limit] if size > limit else b"".join(chunks)
        return body

    def _limits(self, seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=seconds,
            connect=min(seconds, self.config.connect_timeout),
            sock_read=min(seconds, self.config.read_timeout),
        )


class _Connector(aiohttp.TCPConnector):
    """Counts the connections that are opened, and their time; keeps idle ones to so many hosts and no more:
    descriptors are few, and a list has thousands of hosts."""

    def __init__(self, figures: FetchFigures, *, idle_hosts: int, **options: Any) -> None:
        super().__init__(**options)
        self._figures, self._idle_hosts = figures, idle_hosts

    async def _create_connection(self, *args: Any, **options: Any) -> Any:
        began = time.monotonic()
        connection = await super()._create_connection(*args, **options)
        self._figures.connections += 1
        self._figures.connect_seconds += time.monotonic() - began
        return connection

    def _release(self, *args: Any, **options: Any) -> None:
        super()._release(*args, **options)
        while len(self._conns) > self._idle_hosts:
            longest = next(iter(self._conns))  # a host moves to the end when its last connection is taken
            for connection, _ in self._conns.pop(longest):
                connection.close()


def user_agent(contact: str) -> str:
    """Name, version, contact: site owners can tell who asks, and address it in their rules."""
    version = metadata.version(AGENT)
    return f"{AGENT}/{version} (+{contact})" if contact else f"{AGENT}/{version}"


def parse_url(url: str, *, base: URL | None = None) -> URL:
    """A URL without its fragment; a relative one by its base.

    Raises:
        FetchError: it is none.
    """
    try:
        parsed = URL(url.strip())
        if base is not None:
            parsed = base.join(parsed)
        return parsed.with_fragment(None) if parsed.raw_fragment else parsed
    except ValueError as error:
        raise FetchError("bad_url", "not a valid URL") from error


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Reads a short body that nobody wants: an unread body costs the connection."""
    length = response.content_length
    if length is not None and length <= DRAINED_BYTES and "Transfer-Encoding" not in response.headers:
        await response.read()


def _named(error: Exception) -> FetchError:
    """The reason for what aiohttp raised. Messages hold no addresses and no errno: they must not vary."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, RefusedAddressError) or isinstance(error, RefusedAddressError):
        return FetchError("refused_address", str(cause or error))
    if isinstance(error, asyncio.TimeoutError):
        return FetchError("timeout", "no answer in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        # only a resolver that had a bad moment may say something else the next time
        again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        return FetchError("dns", "the host name was not found", final=not again)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError, ssl.CertificateError)):
        return FetchError("tls", "no trusted TLS connection")
    if isinstance(error, aiohttp.InvalidURL):
        return FetchError("bad_url", "not a valid URL")
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("bad_answer", "the answer is not valid HTTP")
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return FetchError("bad_url", "not a valid URL")
    return FetchError("connection", "the connection failed or was cut")
