"""Makes absolute URLs of what pages write into their attributes, and says which of them are no candidates.

`Base.join` and `url_fault` say what is right, for whatever a page may hold. `Base.address` gives the same, in
a fourth of the time for addresses as nearly all pages write them; a test holds both against each other.
"""

from __future__ import annotations

import contextlib
import re
from urllib.parse import urljoin

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

# What nearly all pages write. No character that `join` would cut off, drop, resolve or escape is in them.
_VISIBLE = r'[!"$-~]'  # ASCII without space and #
_COMMON = re.compile(rf"https?://[A-Za-z0-9.\-]+(?::[0-9]{{1,5}})?(?:[/?]{_VISIBLE}*)?").fullmatch
#: segments that need no resolving: they neither begin with a dot nor are empty
_SEGMENTS = r"[\w\-%,+=~!$&'()*@][\w\-%,+=~!$&'()*@.]*(?:/[\w\-%,+=~!$&'()*@][\w\-%,+=~!$&'()*@.]*)*"
_COMMON_PATH = re.compile(rf"/?{_SEGMENTS}(?:\?{_VISIBLE}+)?", re.ASCII).fullmatch
_COMMON_DOTS = re.compile(rf"((?:\.\.?/)+)({_SEGMENTS}(?:\?{_VISIBLE}+)?)", re.ASCII).fullmatch
_COMMON_HOST = re.compile(
    rf"//[A-Za-z0-9.\-]+(?::[0-9]{{1,5}})?/(?:{_SEGMENTS}(?:\?{_VISIBLE}+)?)?"
).fullmatch
_COMMON_PAGE = re.compile(
    rf"((https?)://[A-Za-z0-9.\-]+(?::[0-9]{{1,5}})?)(/(?:{_SEGMENTS}/?)?)?(?:\?{_VISIBLE}*)?", re.ASCII
).fullmatch


class Base:
    """What relative URLs of one page are joined to: its URL, or its `<base href>` relative to that."""

    def __init__(self, page_url: str, base_href: str | None = None) -> None:
        self.url = page_url
        if base_href:
            with contextlib.suppress(ValueError):  # as a browser ignores a base that is no URL
                joined = urljoin(page_url, base_href.strip())
                self.url = joined if _HTTP.match(joined) else page_url
        common = _COMMON_PAGE(self.url)
        self._is_common = common is not None
        if common:
            self._origin, self._scheme, path = common.groups()
            self._folder = self._origin + (path or "/")[: (path or "/").rindex("/") + 1]
        else:
            self._scheme, _, rest = self.url.partition("://")
            self._origin = f"{self._scheme}://{re.split('[/?#]', rest, maxsplit=1)[0]}"
            place = re.split("[?#]", rest, maxsplit=1)[0]
            self._folder = (
                f"{self._scheme}://{place.rpartition('/')[0]}/" if "/" in place else f"{self._origin}/"
            )

    def address(self, written: str) -> tuple[str, str | None]:
        """The absolute URL, and why it cannot be a candidate: `not_http`, `bad_url`, or None."""
        if _COMMON(written):
            return written, None
        if self._is_common:
            if _COMMON_PATH(written):
                return (self._origin if written[0] == "/" else self._folder) + written, None
            if dots := _COMMON_DOTS(written):
                return self._climb(dots.group(1)) + dots.group(2), None
            if _COMMON_HOST(written):
                return f"{self._scheme}:{written}", None
        try:
            url = self.join(written)
        except ValueError:
            return written, "bad_url"
        return url, url_fault(url)

    def _climb(self, dots: str) -> str:
        """The folder that `../../` leads to; the top one where it leads further."""
        folder = self._folder
        for _ in range(dots.count("..")):
            folder = folder[: folder.rindex("/", 0, -1) + 1]
            if len(folder) <= len(self._origin):
                return f"{self._origin}/"
        return folder

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
            if _PLAIN_PATH.fullmatch(url):  # as a browser, and unlike urljoin, keeping `//` and a bare `?`
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
