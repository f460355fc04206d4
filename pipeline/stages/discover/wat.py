"""Finds the pictures in a WAT record: what Common Crawl's extractor (ia-web-commons) has kept of a page.

A WAT archive holds one `metadata` record of JSON for every record of its WARC. Those of HTML responses list

    Envelope > Payload-Metadata > HTTP-Response-Metadata > HTML-Metadata >
        Head > Base: "..."
        Links: [{"path": "IMG@/src", "url": "...", "alt": "...", "title": "..."}, {"path": "A@/href", ...}]

URLs stand as the page writes them, entities resolved; of `data:` URLs only the start is kept. The extractor
looks at `src` alone: what a page says in `srcset` or `data-src` is only in the WARC.

Most of a record is other links, meta tags and headers. So the pictures are cut out by a pattern and only they
are parsed, twice as fast as the whole; a record that the pattern does not quite fit is parsed as a whole.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.stages.discover.html import Link, Page

_MARK = b'"IMG@'
#: a flat object of strings whose first field is the path. It cannot match inside a string value, where each
#: quote has a backslash before it. Some writers escape the slash
_IMAGE = re.compile(
    rb'\{"path":"IMG@\\?/[a-z-]+"(?:,"[a-z-]+":"[^"\\]*(?:\\.[^"\\]*)*")*\}',
    re.DOTALL,
)


def is_page(payload: bytes) -> bool:
    """Whether the record is about an HTML response, as against its request or the crawl's own notes."""
    return b'"HTML-Metadata"' in payload


def may_have_images(payload: bytes) -> bool:
    return _MARK in payload


def read_page(payload: bytes) -> Page:
    """The pictures of a WAT record.

    Raises:
        ValueError: the JSON is broken, or is not shaped as a WAT record is.
    """
    found = _IMAGE.findall(payload)
    if len(found) == payload.count(_MARK) and b'"Base"' not in payload:
        return Page(None, _images(json.loads(b"[" + b",".join(found) + b"]")))
    return _read_whole(json.loads(payload))


def _read_whole(record: Any) -> Page:
    try:
        html = record["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        base = html.get("Head", {}).get("Base")
        return Page(base if isinstance(base, str) else None, _images(html.get("Links", [])))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no WAT record of a page: {error!r}") from error


def _images(links: list[dict[str, Any]]) -> list[Link]:
    return [Link(_text(x.get("url")), _text(x.get("alt"))) for x in links if x.get("path") == "IMG@/src"]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
