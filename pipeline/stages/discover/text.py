"""Cleans alt texts, and makes absolute URLs of what pages write into their attributes."""

from __future__ import annotations

import contextlib
import html
import re
import unicodedata
from urllib.parse import urljoin

#: an entity that ends as it should. Without the semicolon `A&section=2` would become `A§ion=2`
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

#: control characters (white space is collapsed afterwards), soft hyphens, bidi marks, overrides and isolates,
#: zero-width spaces, byte-order marks, interlinear marks, lone surrogates, non-characters. Kept: the joiners
#: U+200C and U+200D, which Persian, the Indic scripts and emoji need
_UNWANTED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_HTTP = re.compile(r"https?://", re.IGNORECASE)
#: a path that is joined by putting it behind the origin or the folder: no dots to resolve, no `//host`
_PLAIN_PATH = re.compile(r"/?[^./?#:\\](?:[^/?#:\\]|/(?!\.))*(?:\?.*)?", re.DOTALL)
_HAS_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*:")
#: an authority without credentials, then the rest. Names are checked for characters that none can have
_VALID = re.compile(
    r"https?://(?:\[[0-9a-f:.]+\]|[^\s/?#:@\[\]<>\"\\^`{|}%\x00-\x1f\x7f\ud800-\udfff]+)(?::[0-9]{1,5})?(?:[/?].*)?",
    re.IGNORECASE | re.DOTALL,
)
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def clean_text(text: str) -> str:
    """An alt text fit for training: entities resolved, control and bidi characters out, NFC, white space
    collapsed to single spaces and cut off at both ends.

    HTML parsers resolve entities once already; many sites escape twice (`Tom &amp;amp; Jerry`), so one more
    level is resolved here, for WARC and WAT alike.
    """
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), text)
    if not text.isascii() or not text.isprintable():
        text = unicodedata.normalize("NFC", _UNWANTED.sub("", text))
    return " ".join(text.split())


class Base:
    """What relative URLs of one page are joined to: its URL, or its `<base href>` relative to that."""

    def __init__(self, page_url: str, base_href: str | None = None) -> None:
        self.url = page_url
        if base_href:
            with contextlib.suppress(ValueError):  # as a browser ignores a base that is no URL
                joined = urljoin(page_url, base_href.strip())
                self.url = joined if _HTTP.match(joined) else page_url
        scheme, _, rest = self.url.partition("://")
        self._origin = f"{scheme}://{re.split('[/?#]', rest, maxsplit=1)[0]}"
        path = re.split("[?#]", rest, maxsplit=1)[0]
        self._folder = f"{scheme}://{path.rpartition('/')[0]}/" if "/" in path else f"{self._origin}/"

    def join(self, written: str) -> str:
        """The absolute URL, as a browser would ask for it: white space cut off, no fragment.

        Raises:
            ValueError: it cannot be joined.
        """
        url = written.strip()
        if "\n" in url or "\r" in url or "\t" in url:  # browsers drop them, also in the middle
            url = url.replace("\n", "").replace("\r", "").replace("\t", "")
        if "#" in url:
            url = url.partition("#")[0]
        if not _HTTP.match(url):
            if _PLAIN_PATH.fullmatch(url):  # the common cases, many times faster than urljoin
                url = (self._origin if url[0] == "/" else self._folder) + url
            elif not _HAS_SCHEME.match(url) or url[:5].lower() == "http:" or url[:6].lower() == "https:":
                url = urljoin(self.url, url.replace("\\", "/"))
        return url.replace(" ", "%20") if " " in url else url


def url_fault(url: str) -> str | None:
    """Why an absolute URL cannot be a candidate: `not_http`, `bad_url`, or None where nothing is wrong.

    Whether the address is a public one is checked by the crawl, when it is known.
    """
    if not _HTTP.match(url):
        return "bad_url" if url[:4].lower() == "http" else "not_http"
    return None if _VALID.fullmatch(url) and not _UNFIT.search(url) else "bad_url"
