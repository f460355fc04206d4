"""Lists of domains whose pictures nobody wants: `--block_domains adult.txt`, one domain a line.

    # comments and empty lines are passed by; gzip is recognised
    example.org
    *.example.net      the same as example.net: subdomains are always meant

A link costs one look-up for each label of its host, however long the list is.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.stage import Input

_HOST = re.compile(r"https?://(\[[^\]]*\]|[^/?#:]*)", re.IGNORECASE)
_NO_DOMAIN = re.compile(r"[\s/:@?#]")
#: characters of the longest name that the DNS knows; nothing before them is looked at
MAX_HOST = 253


class BlockedDomains:
    """Says whether the host of a URL is one of some domains, or below one."""

    def __init__(self, domains: Iterable[str]) -> None:
        self._domains = frozenset(domains)
        self._holds = lru_cache(maxsize=1 << 16)(
            self._lookup
        )  # pages name the same few hosts again and again

    def __bool__(self) -> bool:
        return bool(self._domains)

    def blocks(self, url: str) -> bool:
        """Whether an absolute http(s) URL is of one of the domains; False for what is no such URL."""
        found = _HOST.match(url)
        return found is not None and self._holds(found.group(1))

    def _lookup(self, host: str) -> bool:
        name = normal_name(host[-MAX_HOST:].strip("[]"))
        while name not in self._domains:
            _, dot, name = name.partition(".")
            if not dot:
                return False
        return True


def normal_name(name: str) -> str:
    """A domain name in the one form that is compared: lower case, punycode, no dot at the end."""
    name = name.rstrip(".").lower()
    if not name.isascii():
        try:
            return name.encode("idna").decode("ascii")
        except UnicodeError:  # no name that DNS could know, but one that a list may hold letter by letter
            return name
    return name


def read_domains(url: str) -> frozenset[str]:
    """The domains of one list.

    Raises:
        ConfigError: the list is missing or unreadable, or a line is no domain.
    """
    try:
        data = storage.read_bytes(url)
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    except FileNotFoundError as error:
        raise ConfigError(f"block list {url!r} is not there; mend --block_domains") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(
            f"block list {url!r} is not readable: {error}; it must be UTF-8, or gzip of it"
        ) from error
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        written = line.partition("#")[0].strip().removeprefix("*.").lstrip(".")
        if not written:
            continue
        if _NO_DOMAIN.search(written) and not _is_ipv6(written):
            raise ConfigError(
                f"block list {url!r}: line {number} {line[:80]!r} is no domain; write example.org, "
                "without scheme, port or path"
            )
        found.add(normal_name(written))
    return frozenset(found)


def _is_ipv6(written: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*", written) is not None and written.count(":") > 1


def as_inputs(urls: Sequence[str]) -> tuple[Input, ...]:
    """The lists as inputs of a unit, marked by what they block and not by how that is written down.

    Raises:
        ConfigError: as `read_domains`.
    """
    return tuple(Input(url=storage.absolute(url), fingerprint=fingerprint(read_domains(url))) for url in urls)


def fingerprint(domains: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(domains)).encode(errors="surrogatepass")).hexdigest()[:12]
