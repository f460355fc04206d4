"""The pages of the small web: which pictures share a page, and how its HTML writes them.

The variety is the web's: addresses relative to the page, to the host, to `<base href>`, or without a
scheme; lazy loading with `data-src` and a placeholder; `srcset` without `src`; entities and stray blanks
in alt texts; pages in latin-1. The tests check that each resolves to the address in the truth table.
"""

from __future__ import annotations

import html
import posixpath
import random
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from jobs.demo.website import LOOPBACK, PICTURE_HOSTS, Planted

PICTURES_PER_PAGE = (6, 18)
STYLES = ("gallery", "article", "shop", "base", "nested")
_PLACEHOLDER = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_FILLER = (
    "All pictures were taken on an ordinary Tuesday.",
    "Scroll down for more, or go back to the overview.",
    "Fotos, Bilder &amp; mehr aus unserem Archiv.",
    "Merci de votre visite&nbsp;!",
    "Comments are closed.",
)


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One `<img>`: the picture, the attribute that carries its address, and what is written there."""

    picture: Planted
    form: str  # src, data-src or srcset
    written: str


@dataclass(frozen=True, kw_only=True)
class Page:
    url: str
    style: str
    title: str
    base: str = ""
    encoding: str = "utf-8"
    tags: list[Tag] = field(default_factory=list)

    def render(self) -> bytes:
        """The HTML of the page."""
        base = f'<base href="{self.base}">' if self.base else ""
        figures = "\n".join(_figure(tag, self.style, number) for number, tag in enumerate(self.tags))
        text = (
            f'<!doctype html>\n<html><head><meta charset="{self.encoding}">{base}\n'
            f"<title>{html.escape(self.title)}</title>\n"
            "<script>var pictures = \"<img src='/not/a/picture.jpg' alt='inside a script'>\";</script>\n"
            "</head><body>\n<!-- <img src='/old.jpg' alt='inside a comment'> -->\n"
            f"<h1>{html.escape(self.title)}</h1>\n{figures}\n"
            '<a href="/index.html">home</a></body></html>\n'
        )
        return text.encode(self.encoding, errors="xmlcharrefreplace")


def lay_out(planted: list[Planted], *, ports: dict[str, int], seed: int) -> list[Page]:
    """Deals all pictures to pages; those planted as `duplicate_pair` are shown on three."""
    rng = random.Random(f"{seed}:pages")
    shown = [picture for picture in planted for _ in range(3 if picture.fault == "duplicate_pair" else 1)]
    rng.shuffle(shown)
    pages: list[Page] = []
    while shown:
        count = rng.randint(*PICTURES_PER_PAGE)
        pages.append(_page(len(pages), shown[:count], ports, rng))
        del shown[:count]
    return pages


def _page(number: int, pictures: list[Planted], ports: dict[str, int], rng: random.Random) -> Page:
    style = STYLES[number % len(STYLES)]
    origin = f"http://{LOOPBACK}:{ports[rng.choice(PICTURE_HOSTS)]}"
    path = {
        "gallery": f"gallery/{number}/",
        "article": f"blog/{2010 + number % 15}/{1 + number % 12:02d}/post-{number}.html",
        "shop": f"shop/items.php?page={number}",
        "base": f"archive/{number}.html",
        "nested": f"a/b/c/d/{number}/index.html",
    }[style]
    base = f"http://{LOOPBACK}:{ports[rng.choice(PICTURE_HOSTS)]}/media/" if style == "base" else ""
    page = Page(
        url=f"{origin}/{path}",
        style=style,
        title=f"Pictures & more, part {number}",
        base=base,
        encoding="iso-8859-1" if number % 9 == 4 else "utf-8",
    )
    page.tags.extend(_tag(picture, page, rng) for picture in pictures)
    return page


def _tag(picture: Planted, page: Page, rng: random.Random) -> Tag:
    written = _written(picture.url, page, rng)
    jpeg = urlsplit(picture.url).path.endswith(".jpg") and picture.url.startswith("http")
    form = "src"
    if page.style == "shop" and jpeg:
        form = "data-src"
    elif page.style == "article" and jpeg and rng.random() < 0.3 and "?" not in picture.url:
        form = "srcset"  # the smaller candidate is the same picture; servers know `-320w` as a thumbnail
        written = f"{written.replace('.jpg', '-320w.jpg')} 320w, {written} 1280w"
    return Tag(picture=picture, form=form, written=written)


def _written(url: str, page: Page, rng: random.Random) -> str:
    """The address as an author would write it on this page."""
    here, there = urlsplit(page.base or page.url), urlsplit(url)
    if there.scheme not in ("http", "https"):
        return url
    if here.netloc != there.netloc:
        return rng.choice((url, url, url.removeprefix("http:")))
    query = f"?{there.query}" if there.query else ""
    relative = posixpath.relpath(there.path, posixpath.dirname(here.path) or "/")
    return rng.choice((url, there.path + query, relative + query))


def _figure(tag: Tag, style: str, number: int) -> str:
    alt = html.escape(tag.picture.alt)
    if number % 5 == 2:
        alt = f"  {alt}\n "
    address = html.escape(tag.written)
    if tag.form == "data-src":
        picture = f'<img class="lazy" src="{_PLACEHOLDER}" data-src="{address}" alt="{alt}">'
    elif tag.form == "srcset":
        picture = f'<img srcset="{address}" sizes="100vw" alt="{alt}">'
    else:
        picture = f'<img src="{address}" alt="{alt}" width=640>'
    if style == "gallery":
        return f"<figure>{picture}<figcaption>No. {number}</figcaption></figure>"
    if style == "nested":
        return (
            f'<div><div><table><tr><td><a href="/zoom/{number}">{picture}</a></td></tr></table></div></div>'
        )
    return f"<p>{_FILLER[number % len(_FILLER)]} {picture}</p>"
