"""Opt-outs that come with an answer or lie beside it: X-Robots-Tag, tdm-reservation, tdmrep.json.

TDMRep is the W3C community group's TDM Reservation Protocol (final report of 2024): a header, or a file of
rules on the origin; it serves reservations after article 4 of the EU's directive 2019/790. Its third place,
meta tags of HTML pages, cannot be seen by who fetches a picture.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.stages.crawl.patterns import Pattern, canonical_path

#: directives that have a colon themselves: what stands before it is no agent's name
VALUED_DIRECTIVES = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview", "revisit-after"}
)
MAX_TDMREP_BYTES = 500 << 10
#: a site with more rules than this did not mean them for path matching
MAX_TDMREP_RULES = 5000


def tag_forbids(values: Iterable[str], directives: Collection[str], names: Collection[str]) -> bool:
    """Whether X-Robots-Tag headers hold one of the directives, for everybody or for one of our names.

    `noai` and `pairmill: noai` count, `otherbot: noai` does not; a name holds until the end of its header.
    Directives and names are given in lower case.
    """
    for value in values:
        for_us = True
        for item in value.lower().split(","):
            name, colon, rest = item.partition(":")
            if colon and name.strip() not in VALUED_DIRECTIVES:
                for_us = name.strip() in names or name.strip() == "*"
            if for_us and (rest if colon else name).strip() in directives:
                return True
    return False


def tdm_forbids(values: Iterable[str]) -> bool:
    """Whether tdm-reservation headers reserve: their value is 1. Anything but 0 and 1 says nothing."""
    return any(part.strip() == "1" for value in values for part in value.split(","))


@dataclass(frozen=True, kw_only=True)
class TdmRules:
    """A tdmrep.json. rules: (location, reserved) in the order of the file."""

    rules: tuple[tuple[str, bool], ...] = ()

    def allows(self, path: str) -> bool:
        """Whether a path (with its query) is free: the first location that matches decides."""
        if not self.rules:
            return True
        path = canonical_path(path)
        for pattern, reserved in self._patterns:
            if pattern.matches(path):
                return not reserved
        return True

    def __len__(self) -> int:
        return len(self.rules)

    @cached_property
    def _patterns(self) -> list[tuple[Pattern, bool]]:
        return [(Pattern.of(text), reserved) for text, reserved in self.rules]

    def as_json(self) -> dict[str, Any]:
        return {"rules": self.rules}

    @staticmethod
    def from_json(value: dict[str, Any]) -> TdmRules:
        return TdmRules(rules=tuple((str(p), bool(r)) for p, r in value["rules"]))


def parse_tdmrep(body: bytes) -> TdmRules:
    """Reads a tdmrep.json; a file that is none, or rules that are none, reserve nothing."""
    try:
        # the brackets around the rules are mandatory, and forgotten
        found = json.loads(body[:MAX_TDMREP_BYTES].decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return TdmRules()
    rules = []
    for rule in (found if isinstance(found, list) else [found])[:MAX_TDMREP_RULES]:
        if not isinstance(rule, dict) or not isinstance(rule.get("location"), str) or not rule["location"]:
            continue
        reservation = rule.get("tdm-reservation")
        if str(reservation) in ("0", "1", "True", "False"):
            rules.append((rule["location"], str(reservation) in ("1", "True")))
    return TdmRules(rules=tuple(rules))
