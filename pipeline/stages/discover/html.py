"""Finds the pictures of an HTML page.

Pages hide the address of a picture in several places. In this order: the largest candidate of `srcset`; what
scripts for lazy loading use (`data-srcset`, `data-src`, `data-original`), since `src` then is a placeholder;
`src` unless it is a `data:` placeholder; last the `<source srcset>` of the `<picture>` around.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import ElementNode, HTMLTree

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_GAP = re.compile(r"[\s,]*")
_WORD = re.compile(r"\S*")
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d+)?)([wx])")
#: kinds of <source> that the crawl cannot decode to training pictures
_UNFIT_TYPES = ("image/svg+xml", "image/avif", "image/jxl", "image/heic", "image/gif")
#: how many elements before an image are looked at, so that a hostile page costs no more than an honest one
MAX_SOURCES = 16
#: no honest page has more pictures; a made-up one could hold a million in one record
MAX_LINKS = 20_000


#: a picture as the page writes it: (URL not yet joined, alt text not cleaned), each None where there is none
Link: TypeAlias = "tuple[str | None, str | None]"


class Page(NamedTuple):
    """What a page has to say: its `<base href>`, its first `MAX_LINKS` pictures in order of the document, and
    how many there are in all."""

    base_href: str | None
    links: list[Link]
    total: int


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
        if known and _is_codec(known):
            return known
    found = detect_encoding(body, from_html_meta=True)
    return found if found and _is_codec(found) else "utf-8"


def _is_codec(name: str) -> bool:
    try:
        codecs.lookup(name)
    except LookupError:  # the HTML standard knows a few that Python does not
        return False
    return True


def read_page(body: bytes, charset: str) -> Page:
    """Parses a page with lexbor. Bytes that the charset does not have become U+FFFD, as in a browser.

    Raises:
        ValueError: the page cannot be parsed.
    """
    # decoded here: resiliparse takes the whole page for cp1252 when one byte of its UTF-8 is wrong
    document = HTMLTree.parse(body.decode(charset, "replace").removeprefix("\ufeff")).document
    if document is None:
        return Page(None, [], 0)
    base = document.query_selector("base[href]")
    # values(), for the collection itself asks the whole document anew at each step of a loop over it
    images = document.query_selector_all("img").values()
    links = [_read_image(image) for image in images[:MAX_LINKS]]
    return Page(base.getattr("href") if base is not None else None, links, len(images))


def _read_image(image: ElementNode) -> Link:
    # one call for the names: asking for an attribute that is not there costs as much as for one that is
    names = set(image.attrs)
    get = image.getattr
    alt = get("alt") if "alt" in names else None
    for name in ("srcset", "data-srcset", "data-src", "data-original", "src"):
        if name in names:
            value = get(name)
            url = largest_candidate(value) if name.endswith("srcset") else value
            if url and _is_real(url):
                return url, alt
    return _from_picture(image) or get("src"), alt


def _is_real(url: str) -> bool:
    url = url.strip()
    return bool(url) and url[:5].lower() != "data:"


def _from_picture(image: ElementNode) -> str | None:
    """The largest candidate of the first fitting <source> before the image."""
    parent = image.parent_element
    if parent is None or parent.tag != "picture":
        return None
    found, sibling = None, image.prev_element
    for _ in range(MAX_SOURCES):
        if sibling is None:
            break
        kind = (sibling.getattr("type") or "").partition(";")[0].strip().lower()
        if sibling.tag == "source" and kind not in _UNFIT_TYPES:
            found = largest_candidate(sibling.getattr("srcset")) or found
        sibling = sibling.prev_element
    return found


def largest_candidate(srcset: str | None) -> str | None:
    """The URL of the largest candidate of a srcset, by width (`640w`), else by density (`2x`); the first of
    equals; None where there is none but `data:`."""
    best, best_size = None, (False, -1.0)
    for url, descriptor in _candidates(srcset or ""):
        if not _is_real(url):
            continue
        found = _DESCRIPTOR.search(descriptor)
        size = (found.group(2) == "w", float(found.group(1))) if found else (False, 1.0)
        if size > best_size:
            best, best_size = url, size
    return best


def _candidates(srcset: str) -> Iterator[tuple[str, str]]:
    """(URL, descriptor) of each candidate (HTML standard, 4.8.4.3.10): a URL may hold commas, not end in one.

    One pattern for all of it would take quadratic time on hostile pages.
    """
    at = 0
    while (at := _GAP.match(srcset, at).end()) < len(srcset):  # type: ignore[union-attr]
        word = _WORD.match(srcset, at).group()  # type: ignore[union-attr]
        at += len(word)
        if word.endswith(","):
            yield word.rstrip(","), ""
            continue
        end = srcset.find(",", at)
        end = len(srcset) if end < 0 else end
        yield word, srcset[at:end].strip()
        at = end
