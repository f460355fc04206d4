"""Path patterns of robots.txt and tdmrep.json: a prefix, with `*` for anything and `$` for the end.

RFC 9309, 2.2.2 and 2.2.3. Both the pattern and the URL are brought to one spelling first, so that matching
is a search for plain pieces: linear, whatever a site writes into its patterns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
#: characters that mean nothing in a query: escaped or not, they are the same there (RFC 9309, 2.2.2)
_PLAIN_IN_QUERY = {ord(c): f"%{ord(c):02X}" for c in ":/?@[]"}
#: in a URL these stand for themselves, in a pattern they do not
_WILD = {ord("*"): "%2A", ord("$"): "%24"}


def canonical_path(path: str) -> str:
    """The path and query of a URL in the spelling that patterns are matched against."""
    return _spelled(path or "/").translate(_WILD)


@dataclass(frozen=True)
class Pattern:
    """One pattern. pieces: what stands between its stars; ends: whether it holds to the end of the URL;
    length: octets, by which the most specific one is chosen."""

    pieces: tuple[str, ...]
    ends: bool
    length: int

    @staticmethod
    def of(text: str) -> Pattern:
        """Reads a pattern; one that starts with neither `/` nor `*` is meant from the root."""
        text = _spelled(text)
        if not text.startswith(("/", "*")):
            text = f"/{text}"
        ends = text.endswith("$")
        body = text[:-1] if ends else text
        return Pattern(tuple(body.replace("$", "%24").split("*")), ends, len(text))

    def matches(self, path: str) -> bool:
        """Whether a path (see `canonical_path`) fits."""
        first, *rest = self.pieces
        if not path.startswith(first):
            return False
        at = len(first)
        if not rest:
            return not self.ends or at == len(path)
        for piece in rest[:-1]:
            found = path.find(piece, at)
            if found < 0:
                return False
            at = found + len(piece)
        if self.ends:
            return path.endswith(rest[-1]) and len(path) - len(rest[-1]) >= at
        return path.find(rest[-1], at) >= 0


def _spelled(text: str) -> str:
    """Escapes for everything but ASCII that needs none; characters in a query that mean nothing escaped."""
    if not text.isascii() or " " in text:
        text = "".join(
            c if "!" <= c <= "~" else "".join(f"%{b:02X}" for b in c.encode("utf-8", "replace")) for c in text
        )
    text = _ESCAPE.sub(_unescaped, text)
    path, mark, query = text.partition("?")
    return f"{path}?{query.translate(_PLAIN_IN_QUERY)}" if mark else path


def _unescaped(match: re.Match[str]) -> str:
    octet = unquote_to_bytes(match.group())[0]
    return chr(octet) if octet in _UNRESERVED else match.group().upper()
