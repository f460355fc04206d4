"""Finds the pictures in a WAT record: what Common Crawl's extractor (ia-web-commons) has kept of a page.

A WAT archive holds one `metadata` record of JSON for every record of its WARC. Those of HTML responses list

    Envelope > Payload-Metadata > HTTP-Response-Metadata > HTML-Metadata >
        Head > Base: "..."
        Links: [{"path": "IMG@/src", "url": "...", "alt": "...", "title": "..."}, {"path": "A@/href", ...}]

URLs stand as the page writes them, entities resolved; of `data:` URLs only the start is kept. The extractor
looks at `src` alone: what a page says in `srcset` or `data-src` is only in the WARC.

Most of a record is other links, meta tags and headers, and parsing it takes as long as inflating it. So the
image entries are cut out of the bytes and only they are parsed, in one go for a page; a record that is not written
in the usual way, or where a cut went wrong, is parsed as a whole.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import orjson

from pipeline.stages.discover.html import Link, Page

#: in front of every path of an image. It cannot match inside a string value, where each quote has a backslash
_MARK = b'"IMG@'
#: what stands before and behind it where the path is the first field of its object
_BEFORE, _BEHIND = b'{"path":', b'/src",'
_SKIPPED = len(_BEHIND)


def is_page(payload: bytes) -> bool:
    """Whether the record is about an HTML response, as against its request or the crawl's own notes."""
    return b'"HTML-Metadata"' in payload


def read_page(payload: bytes) -> Page | None:
    """The pictures of a WAT record; None where it holds none.

    Raises:
        ValueError: the JSON is broken, or is not shaped as a WAT record is.
    """
    pieces = payload.split(_MARK)
    if len(pieces) == 1:
        return None
    # the head of the page stands before its links or behind them, never between two of them
    if b'"Base"' not in pieces[0] and b'"Base"' not in pieces[-1]:
        links = _cut_out(pieces)
        if links is not None:
            return Page(None, links)
    return _read_whole(_parse(payload))


def _cut_out(pieces: list[bytes]) -> list[Link] | None:
    """The links, from a record split at its marks; None where it is not written in the usual way.

    An entry is taken to end at the next brace. Where that brace stands in a text, what is put together here
    is no JSON: the text would go on up to the quote that begins the next entry.
    """
    entries = []
    for before, piece in pairwise(pieces):
        end = piece.find(b"}")
        if end < 0 or not (before.endswith(_BEFORE) and piece.startswith(_BEHIND)):
            return None
        entries.append(piece[_SKIPPED:end])
    try:
        found = orjson.loads(b"[{" + b"},{".join(entries) + b"}]")
    except orjson.JSONDecodeError:
        return None
    return [_link(entry) for entry in found]


def _parse(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except (
        orjson.JSONDecodeError
    ):  # it is strict; json lets lone surrogates pass, which the cleaning takes out
        try:
            return json.loads(payload)
        except RecursionError as error:
            raise ValueError("JSON nested too deeply") from error


def _read_whole(record: Any) -> Page:
    try:
        html = record["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        base = html.get("Head", {}).get("Base")
        links = [_link(x) for x in html.get("Links", []) if x.get("path") == "IMG@/src"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no WAT record of a page: {error!r}") from error
    return Page(base if isinstance(base, str) else None, links)


def _link(entry: dict[str, Any]) -> Link:
    url, alt = entry.get("url"), entry.get("alt")
    return Link(url if isinstance(url, str) else None, alt if isinstance(alt, str) else None)
