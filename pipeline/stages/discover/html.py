"""Finds the pictures of an HTML page.

Pages hide the address of a picture in several places. In this order: the largest candidate of `srcset`; `src`
unless it is a `data:` placeholder; then what scripts for lazy loading use (`data-srcset`, `data-src`,
`data-original`); last the `<source srcset>` of the `<picture>` around.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import ElementNode, HTMLTree

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
#: one candidate of a srcset (HTML standard, 4.8.4.3.10): a URL may hold commas but not end with one
_CANDIDATE = re.compile(r"[\s,]*(\S*[^\s,])(?:\s+([^,]*))?(?:,|$)")
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d+)?)([wx])")
#: kinds of <source> that the crawl cannot decode to training pictures
_UNFIT_TYPES = ("image/svg+xml", "image/avif", "image/jxl", "image/heic", "image/gif")


class Link(NamedTuple):
    """A picture as the page writes it: `url` not yet joined, None where there was none; `alt` not cleaned."""

    url: str | None
    alt: str | None


class Page(NamedTuple):
    """What a page has to say: its `<base href>`, and its pictures in order of the document."""

    base_href: str | None
    links: list[Link]


def may_have_images(body: bytes) -> bool:
    """A look at the bytes that is a hundred times cheaper than parsing them."""
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16 with its mark
        return True
    return b"<img" in body or b"<img" in body.lower()


def find_charset(body: bytes, declared: str | None) -> str:
    """The encoding of a page: byte-order mark, HTTP header, `<meta>`, else detected (uchardet)."""
    for mark, name in _BOMS:
        if body.startswith(mark):
            return name
    if declared:
        known = map_encoding_to_html5(declared.strip(" \"'"), fallback_utf8=False)
        if known:
            return known
    return detect_encoding(body, from_html_meta=True) or "utf-8"


def read_page(body: bytes, charset: str) -> Page:
    """Parses a page with lexbor. Bytes that the charset does not have become U+FFFD, as in a browser.

    Raises:
        ValueError, RuntimeError: the page cannot be decoded or parsed.
    """
    document = HTMLTree.parse_from_bytes(body, charset, errors="replace").document
    if document is None:
        return Page(None, [])
    base = document.query_selector("base[href]")
    links = [_read_image(image) for image in document.query_selector_all("img")]
    return Page(base.getattr("href") if base is not None else None, links)


def _read_image(image: ElementNode) -> Link:
    # one call for the names: asking for an attribute that is not there costs as much as for one that is
    names = set(image.attrs)
    get = image.getattr
    alt = get("alt") if "alt" in names else None
    for name in ("srcset", "src", "data-srcset", "data-src", "data-original"):
        if name in names:
            value = get(name)
            url = largest_candidate(value) if name.endswith("srcset") else value
            if url and _is_real(url):
                return Link(url, alt)
    return Link(_from_picture(image) or get("src"), alt)


def _is_real(url: str) -> bool:
    url = url.strip()
    return bool(url) and url[:5].lower() != "data:"


def _from_picture(image: ElementNode) -> str | None:
    parent = image.parent_element
    if parent is None or parent.tag != "picture":
        return None
    for source in parent.query_selector_all("source[srcset]"):
        if (source.getattr("type") or "").partition(";")[0].strip().lower() in _UNFIT_TYPES:
            continue
        url = largest_candidate(source.getattr("srcset") or "")
        if url:
            return url
    return None


def largest_candidate(srcset: str | None) -> str | None:
    """The URL of the largest candidate of a srcset, by width (`640w`), else by density (`2x`); the first of
    equals; None where there is none but `data:`."""
    best, best_size = None, (-1, -1.0)
    for url, descriptor in _CANDIDATE.findall(srcset or ""):
        if not _is_real(url):
            continue
        found = _DESCRIPTOR.search(descriptor)
        size = (found.group(2) == "w", float(found.group(1))) if found else (False, 1.0)
        if size > best_size:
            best, best_size = url, size
    return best
