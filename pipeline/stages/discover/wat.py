"""Finds the pictures in a WAT record: what Common Crawl's extractor (ia-web-commons) has kept of a page.

A WAT archive holds one `metadata` record of JSON for every record of its WARC. Those of HTML responses list

    Envelope > Payload-Metadata > HTTP-Response-Metadata > HTML-Metadata >
        Head > Base: "..."
        Links: [{"path": "IMG@/src", "url": "...", "alt": "...", "title": "..."}, {"path": "A@/href", ...}]

URLs stand as the page writes them, entities resolved; of `data:` URLs only the start is kept. The extractor
looks at `src` alone: what a page says in `srcset` or `data-src` is only in the WARC.

Most of a record is other links, meta tags and headers, and parsing it takes as long as inflating it. So the
image entries are cut out of the bytes and only they are parsed, in one go for a page; a record that is not
written in the usual way, or where a cut went wrong, is parsed as a whole.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import orjson

from pipeline.stages.discover.html import MAX_LINKS, Link, Page

#: how an image entry begins: no white space, the path first. None of these patterns can match inside a string
#: value, where each quote has a backslash before it. (A long pattern is found faster than a short one.)
_ENTRY = b'{"path":"IMG@/src"'
#: in front of any path of an image, however the rest is written
_MARK = b'"IMG@'
_BASE = b'"Base":'
_TEXT_OR_NONE = {str, type(None)}


def is_page(payload: bytes) -> bool:
    """Whether the record is about an HTML response, as against its request or the crawl's own notes."""
    return b'"HTML-Metadata"' in payload


def read_page(payload: bytes) -> Page | None:
    """The pictures of a WAT record; None where it holds none.

    Raises:
        ValueError: the JSON is broken, or is not shaped as a WAT record is.
    """
    before, *pieces = payload.split(_ENTRY)
    if not pieces:
        return _read_whole(payload) if _MARK in payload else None
    # the head of the page stands before its links or behind them, never between two of them
    if _BASE in before or _BASE in pieces[-1]:
        return _read_whole(payload)
    links = _read_entries(pieces[:MAX_LINKS])
    return Page(None, links, len(pieces)) if links is not None else _read_whole(payload)


def _read_entries(pieces: list[bytes]) -> list[Link] | None:
    """The links, from what stands behind the beginnings of entries; None where they cannot be cut out.

    An entry is taken to end at the next brace. Where that brace stands in a text, what is put together here
    is no JSON: the text would go on up to the quote that begins the next entry.
    """
    try:
        entries = [piece[: piece.index(b"}")] for piece in pieces]
        return _links(orjson.loads(b'[{"":0' + b'},{"":0'.join(entries) + b"}]"))
    except ValueError:
        return None


def _read_whole(payload: bytes) -> Page:
    record = _parse(payload)
    try:
        html = record["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        base = html.get("Head", {}).get("Base")
        images = [x for x in html.get("Links", []) if x.get("path") == "IMG@/src"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no WAT record of a page: {error!r}") from error
    return Page(base if isinstance(base, str) else None, _links(images[:MAX_LINKS]), len(images))


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


def _links(entries: list[dict[str, Any]]) -> list[Link]:
    found = [(entry.get("url"), entry.get("alt")) for entry in entries]
    if set(map(type, chain.from_iterable(found))) <= _TEXT_OR_NONE:
        return found
    return [(_text(url), _text(alt)) for url, alt in found]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
