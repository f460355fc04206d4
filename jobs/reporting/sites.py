"""Where pairs come from, and who did not want it: hosts, and what the crawl was asked to leave alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reporting.hitters import Hitters
from jobs.reporting.view import View

_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)"
OPT_OUT = "opt_out"
#: what the crawl calls links that it was asked not to fetch, or not told whether it may
REFUSALS = (OPT_OUT, "rules_unavailable", "taken_down")
#: words in which a refusal may be told; a foreign writer's beyond are counted together
MAX_WORDS = 200


@dataclass(kw_only=True)
class Sites:
    """Hosts and refusals.

    Attributes:
        hosts: host -> links, pictures, kept.
        refused: reason of the crawl -> links.
        words: (reason, what the crawl noted) -> links.
        asked: host -> links that it opted out.
    """

    hosts: Hitters = field(default_factory=lambda: Hitters(width=3))
    refused: Counter[str] = field(default_factory=Counter)
    words: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: Hitters = field(default_factory=Hitters)

    def collect(self, view: View) -> Sites:
        found = Sites()
        names = hosts_of(view.table["url"])
        judged = view.kept & view.has_picture
        table = pa.table(
            {
                "host": names,
                "links": pa.array(np.ones(len(names), np.int64)),
                "pictures": pa.array(view.has_picture.astype(np.int64)),
                "kept": pa.array(judged.astype(np.int64)),
            }
        )
        sums = table.group_by("host").aggregate([("links", "sum"), ("pictures", "sum"), ("kept", "sum")])
        columns = (sums[name].to_pylist() for name in ("host", "links_sum", "pictures_sum", "kept_sum"))
        found.hosts.counts = {host: list(rest) for host, *rest in zip(*columns, strict=True)}
        reasons = view.table["reason"]
        refused = pc.fill_null(pc.is_in(reasons, value_set=pa.array(REFUSALS)), False)
        if pc.any(refused).as_py():
            self._refused(view, found, names, refused)
        return found

    def _refused(self, view: View, found: Sites, names: pa.Array, refused: pa.ChunkedArray) -> None:
        rows = view.table.filter(refused)
        reasons = rows["reason"].to_pylist()
        found.refused = Counter(reasons)
        told = rows["error_message"].to_pylist() if view.has("error_message") else [None] * len(rows)
        found.words = Counter(
            (reason, str(words or "")[:100]) for reason, words in zip(reasons, told, strict=True)
        )
        out = pc.filter(names, pc.fill_null(pc.equal(view.table["reason"], OPT_OUT), False).combine_chunks())
        found.asked.counts = {host: [n] for host, n in Counter(out.to_pylist()).items()}

    def add(self, other: Sites) -> None:
        self.hosts.add((name, tuple(n)) for name, n in other.hosts.counts.items())
        self.asked.add((name, tuple(n)) for name, n in other.asked.counts.items())
        self.refused.update(other.refused)
        for (reason, words), number in other.words.items():
            known = (reason, words) in self.words or len(self.words) < MAX_WORDS
            self.words[reason, words if known else "other words"] += number


def hosts_of(urls: pa.ChunkedArray) -> pa.Array:
    """The host of each address in lower case, without `www.`; empty where there is none."""
    found = pc.struct_field(pc.extract_regex(pc.fill_null(urls, ""), _HOST), "host")
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    names = pc.utf8_lower(pc.fill_null(found, ""))
    return pc.replace_substring_regex(names, r"^www\.", "")
