"""URLs compared: hosts, domains and the normal form of RFC 3986, section 6.2.

No request is made from what is found here, so nothing is refused: what cannot be read as a URL is compared
letter by letter. The host is found by one regular expression, which Arrow (RE2) and Python read alike.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import quote, unquote

#: a URL up to its host, the group `host` (`[::1]` with its brackets); slashes either way, as in browsers
HOST_PATTERN = (
    r"^[\x00-\x20]*[A-Za-z][A-Za-z0-9+.\-]*:[/\\]{2,}(?:[^/\\?#]*@)?(?P<host>\[[^\]/\\?#]*\]|[^/\\?#:]*)"
)
_HOST = re.compile(HOST_PATTERN)
#: what an escape in a host must not stand for: it would be another URL
_NO_HOST = frozenset("/\\?#@:%[]")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
#: what `quote` leaves alone: all that may stand in a URL, escapes included
_SAFE = "%/:?#[]@!$&'()*+,;=-._~\\"


def host_of(url: str) -> str:
    """The host of a URL as `clean_host` spells it; empty where there is none."""
    found = _HOST.match(url)
    return clean_host(found["host"]) if found else ""


def clean_host(host: str) -> str:
    """Lower case, no dot at the end, escapes undone, other scripts in punycode."""
    plain = unquote(host)
    if _NO_HOST.isdisjoint(plain):
        host = plain
    host = host.strip().lower().rstrip(".")
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode().lower()
    except UnicodeError:
        return host


def is_below(host: str, domains: Collection[str]) -> bool:
    """Whether a clean host is one of the domains, or a subdomain of one."""
    if not host or not domains:
        return False
    if host in domains:
        return True
    if host[-1].isdigit() and _is_address(host):
        return False  # 10.0.0.1 is not below 0.0.1
    dot = host.find(".")
    while dot >= 0:
        if host[dot + 1 :] in domains:
            return True
        dot = host.find(".", dot + 1)
    return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def normal_url(url: str) -> str:
    """The normal form: scheme and host in lower case, no default port, no fragment, `/` for no path,
    escapes only where they are needed. What has no host is returned as it is."""
    found = _HOST.match(url)
    host = clean_host(found["host"]) if found else ""
    if not found or not host:
        return url
    before = url[: found.start("host")]
    scheme, _, rest = before.strip().partition(":")
    scheme, user = scheme.lower(), rest.lstrip("/\\")
    tail = url[found.end("host") :].rstrip("\x00\t\n\r ").partition("#")[0]
    port = ""
    if tail.startswith(":"):
        cut = min((at for at in (tail.find(c) for c in "/\\?") if at >= 0), default=len(tail))
        port, tail = tail[1:cut], tail[cut:]
    if port == _DEFAULT_PORTS.get(scheme):
        port = ""
    path, mark, query = tail.partition("?")
    path = path.replace("\\", "/") or "/"
    place = f"{host}:{port}" if port else host
    return f"{scheme}://{user}{place}{_escapes(path + mark + query)}"


def _escapes(text: str) -> str:
    """Escapes of plain characters undone, the others in upper case; other characters escaped as UTF-8."""

    def plain(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        return character if character in _UNRESERVED else found[0].upper()

    return quote(_ESCAPE.sub(plain, text), safe=_SAFE, errors="surrogatepass")


def without_secrets(url: str) -> str:
    """A URL as it may be printed: no user name, no query (signatures, tokens), no control characters."""
    shown = re.sub(r"(?<=[/\\])[^/\\?#]*@", "…@", url.partition("?")[0], count=1)
    shown = "".join(c for c in shown if c.isprintable())
    return shown + ("?…" if "?" in url else "")
