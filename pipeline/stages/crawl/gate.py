"""Which addresses the crawler may talk to.

A list of URLs is hostile input: it names loopback, cloud metadata services and the machines behind the
firewall, as plain names, as numbers in odd notations, behind redirects and behind resolvers that answer
differently the second time. Hence: a name is looked up once, every address of the answer is checked, and the
connection goes to a checked address; `Gate.socket` is the last check, at the connect itself.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from typing import Any, TypeAlias

from yarl import URL

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: IETF protocol assignments: older Python tables call parts of it global
ASSIGNMENTS = ipaddress.IPv4Network("192.0.0.0/24")
# What inet_aton reads as IPv4 besides the dotted quad: 2130706433, 0x7f.1, 0177.0.0.1
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|\d+)(?:\.(?:0x[0-9a-f]*|\d+)){0,3}")


class RefusedAddressError(OSError):
    """The address is not public and was not allowed by name."""


def parse_address(host: str) -> Address | None:
    """The address that a host in a URL spells out, in any notation that a socket would understand; None for
    a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if _NUMERIC.fullmatch(host.lower()):
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    return None


def is_public(address: Address) -> bool:
    """Whether an address lies on the public internet; IPv4 addresses inside IPv6 ones are unwrapped."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    elif address in ASSIGNMENTS:
        return False
    # Some ranges count as global in the tables that must never be asked: multicast, reserved (`::7f00:1`).
    return address.is_global and not address.is_multicast and not address.is_reserved


class Gate:
    """The rule: public addresses on the usual ports, and what is allowed by name.

    Args:
        allowed: `host:port` items that may be private or on another port.
        ports: the ports for all others.

    Raises:
        ValueError: an item is not `host:port`.
    """

    def __init__(self, allowed: Collection[str] = (), *, ports: Collection[int] = (80, 443)) -> None:
        self.allowed = frozenset(map(_host_and_port, allowed))
        self.ports = frozenset(ports)
        # (address, port) pairs that allowed names have led to; nothing else private may be connected to
        self._opened: set[tuple[str, int]] = set()

    def is_allowed(self, host: str, port: int) -> bool:
        return (host.lower().rstrip("."), port) in self.allowed

    def check_port(self, host: str, port: int) -> None:
        if port not in self.ports and not self.is_allowed(host, port):
            raise RefusedAddressError(f"port {port} is not among {sorted(self.ports)}")

    def check_addresses(self, host: str, port: int, addresses: Collection[str]) -> None:
        """Raises RefusedAddressError if any address is not public, unless `host:port` is allowed."""
        if self.is_allowed(host, port):
            self._opened.update((a, port) for a in addresses)
            return
        for text in addresses:
            address = parse_address(text)
            if address is None or not is_public(address):
                raise RefusedAddressError("the host has an address that is not public")

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Makes the socket of a connection: nothing is connected to that did not pass here."""
        family, kind, protocol, _, target = info
        address = parse_address(str(target[0]))
        if address is None or not (is_public(address) or (target[0], target[1]) in self._opened):
            raise RefusedAddressError("the address is not public")
        return socket.socket(family, kind, protocol)


def _host_and_port(item: str) -> tuple[str, int]:
    try:
        url = URL(f"http://{item}")
        host, port = url.host, url.explicit_port
        if not host or port is None or item.count("/") or "@" in item:
            raise ValueError("no host and port")
    except ValueError as error:
        raise ValueError(f"allow_private {item!r} must be host:port, such as 127.0.0.1:8000") from error
    return host.lower().rstrip("."), port
