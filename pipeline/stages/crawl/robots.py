"""robots.txt after RFC 9309: which rules speak to us, and what they say of a path.

Two kinds of lines in a group say what its files may be used for: `Content-Signal: ai-train=no`, which a large
network writes for its customers, and `Content-Usage: train-ai=n`, which the IETF's aipref group drafts.

Only what concerns us is kept of a file: the groups that name one of our names, or else the groups for
everybody. Whoever fetches a file, and for how long it counts: `pipeline.stages.crawl.origins`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.stages.crawl.patterns import Pattern, canonical_path

#: how lines about usage call the training of models
TRAINING = frozenset({"ai-train", "train-ai"})
#: RFC 9309 asks for at least 500 KiB; what stands behind is not read
MAX_BYTES = 500 << 10
# The RFC's tokens have no digits; names that site owners write, such as img2dataset, have.
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Robots:
    """What a robots.txt says to us.

    rules: one list for each of our names that the file names (or one for everybody): (allow, pattern). Each
        list must allow a path: whoever addresses us by several names means all of them.
    usage: (reserved, pattern) of lines that say whether files may be used to train models.
    crawl_delay: seconds between requests, where the file asks for it (no part of the RFC, but common).
    """

    rules: tuple[tuple[tuple[bool, str], ...], ...] = ()
    usage: tuple[tuple[bool, str], ...] = ()
    crawl_delay: float = 0.0

    def allows(self, path: str) -> bool:
        """Whether a path (with its query) may be fetched: the longest pattern counts, allow wins a tie."""
        if not self._patterns:
            return True
        path = canonical_path(path)
        if path.partition("?")[0] == "/robots.txt" or not path.startswith(self._forbidden_starts):
            return True
        return all(_allowed(rules, path) for rules in self._patterns)

    def reserves(self, path: str) -> bool:
        """Whether a path may not be used to train models: the longest pattern counts, a reservation wins."""
        if not self.usage:
            return False
        path = canonical_path(path)
        return next((reserved for reserved, pattern in self._usage_patterns if pattern.matches(path)), False)

    @cached_property
    def _usage_patterns(self) -> list[tuple[bool, Pattern]]:
        read = [(reserved, Pattern.of(text)) for reserved, text in self.usage]
        return sorted(read, key=lambda r: (-r[1].length, not r[0]))

    @cached_property
    def _patterns(self) -> list[list[tuple[bool, Pattern]]]:
        """The rules of each name, those that count more first."""
        read = [[(allow, Pattern.of(text)) for allow, text in rules] for rules in self.rules if rules]
        return [sorted(rules, key=lambda r: (-r[1].length, not r[0])) for rules in read]

    @cached_property
    def _forbidden_starts(self) -> tuple[str, ...]:
        """What a path must begin with for any rule to forbid it: most paths need no closer look."""
        return tuple({p.pieces[0] for rules in self._patterns for allow, p in rules if not allow})

    def __len__(self) -> int:
        return sum(len(rules) for rules in self.rules) + len(self.usage)

    def as_json(self) -> dict[str, Any]:
        return {"rules": self.rules, "usage": self.usage, "crawl_delay": self.crawl_delay}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Robots:
        rules = tuple(tuple((bool(a), str(p)) for a, p in group) for group in value["rules"])
        usage = tuple((bool(r), str(p)) for r, p in value["usage"])
        return Robots(rules=rules, usage=usage, crawl_delay=float(value["crawl_delay"]))


def _allowed(rules: list[tuple[bool, Pattern]], path: str) -> bool:
    return next((allow for allow, pattern in rules if pattern.matches(path)), True)


@dataclass
class _Group:
    rules: list[tuple[bool, str]] = field(default_factory=list)
    usage: list[tuple[bool, str]] = field(default_factory=list)
    delay: float = 0.0


def parse_robots(body: bytes, names: Iterable[str]) -> Robots:
    """Reads a robots.txt for a crawler that goes by these product tokens.

    Groups of one token are merged, tokens compared whole and without case, up to a version (`PairMill/1.0`
    is `pairmill`); a group for `*` counts only where none of the names is mentioned.
    """
    wanted = {n.lower() for n in names}
    groups: dict[str, _Group] = {}
    current: list[_Group] = []
    opened = False  # whether the last line that counts named an agent: then the next one joins it
    for line in _lines(body):
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            token = _token(value)
            if not opened:
                current = []
            opened = True
            if token in wanted or token == "*":
                current.append(groups.setdefault(token, _Group()))
        elif name in ("allow", "disallow"):
            opened = False
            for group in current if value else ():  # an empty pattern says nothing
                group.rules.append((name == "allow", value))
        elif name in ("content-signal", "content-usage"):
            opened = False
            for group in current:
                group.usage += _usage(value)
        elif name == "crawl-delay":
            opened = False
            for group in current:
                group.delay = max(group.delay, _seconds(value))
    ours = [g for token, g in groups.items() if token != "*"] or list(groups.values())
    return Robots(
        rules=tuple(tuple(g.rules) for g in ours),
        usage=tuple(u for g in ours for u in g.usage),
        crawl_delay=max((g.delay for g in ours), default=0.0),
    )


def _lines(body: bytes) -> list[str]:
    text = body[:MAX_BYTES]
    if len(body) > MAX_BYTES:  # a line that was cut may mean something else
        text = text[: max(text.rfind(b"\n"), text.rfind(b"\r")) + 1]
    return re.split(r"[\r\n]+", text.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace"))


def _token(value: str) -> str:
    """The product token of a user-agent line; empty for none."""
    if value.startswith("*"):
        return "*"
    found = _TOKEN.match(value)
    return found.group().lower() if found else ""


def _usage(value: str) -> list[tuple[bool, str]]:
    """What a line says of training: `ai-train=no`, or `/path train-ai=n` for a part of the site."""
    path, _, rest = value.partition(" ") if value.startswith("/") else ("/", "", value)
    reserved = training_reserved(rest)
    return [] if reserved is None else [(reserved, path)]


def training_reserved(value: str) -> bool | None:
    """Whether a list such as `search=yes, ai-train=no` reserves training; None where it does not say."""
    said = None
    for item in value.lower().split(","):
        name, _, answer = item.partition("=")
        if name.strip() in TRAINING:
            answer = answer.partition(";")[0].strip()
            if answer in ("no", "n"):
                return True
            said = False if answer in ("yes", "y") else said
    return said


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
