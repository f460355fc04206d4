"""A WAT archive of made-up pages in the proportions of Common Crawl's; the same bytes for the same seed.

Each page has three records, as there: of its request, of its response (headers, metas and links of the page)
and of the crawler's own notes. The proportions are those that one sees in WAT files of 2022 to 2024: some 20
KB of JSON a page, most of it `A@/href` links; half of the pictures with an alt text; a third of the
addresses relative.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

#: language: share of the pages in percent, words of its texts
LANGUAGES = {
    "English": (46, "the red house by river with old garden summer dress black leather shoes city view new"),
    "German": (9, "das rote Haus am Fluss mit Garten für Küche Möbel günstig kaufen Bild der Straße größe"),
    "Spanish": (
        9,
        "la casa roja del río con jardín niños año nueva cocina señora foto ciudad montaña precio",
    ),
    "French": (7, "la maison rouge près de la rivière été cuisine fenêtre photo élégant forêt prix déjà vu"),
    "Russian": (12, "красный дом у реки с садом купить недорого фото кухня стол новый город лето зима"),
    "Chinese": (9, "红色的房子 河边花园 新款连衣裙 厨房桌子 城市风景 夏天 产品图片 最低价格 家具"),
    "Japanese": (8, "赤い家 川のほとり 庭 新しい服 台所のテーブル 夏の写真 商品画像 送料無料 安い"),
}
#: percent of the pages that have pictures, and that have a <base>
WITH_PICTURES, WITH_BASE = 86, 6
#: how pictures are addressed: percent, template
ADDRESSES = (
    (44, "https://{host}/wp-content/uploads/20{a}/{b}/{word}-{n}-300x200.jpg"),
    (6, "https://cdn.shop.example/s/files/1/{n}/products/{word}_{a}x.jpg?v=16{n}"),
    (4, "http://i{b}.photos.example/{n}/{word}.png"),
    (5, "https://{host}/themes/img/icon-{b}.svg"),
    (3, "https://track.example/pixel.gif?id={n}&s={a}"),
    (17, "/sites/default/files/styles/large/public/{word}_{n}.jpg?itok={n}"),
    (5, "images/{word}/{word}{n}.jpg"),
    (4, "../../media/{word}/{n}.JPG"),
    (2, "./gallery/{n}.jpeg"),
    (4, "//static.{host}/i/{n}/{word}.webp"),
    (1, "/photos/my {word} {n}.jpg"),
    (5, "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"),
)
#: what stands in `alt`: percent, template; None is a tag without one
TEXTS = (
    (22, None),
    (23, ""),
    (44, "{words}"),
    (3, "{words} &amp; {word}"),
    (2, "{word}’s {words}"),
    (1, '{word} "{words}"'),
    (2, " {words}\n  {word} "),
    (3, "{word}"),
)


class Facts:
    """What was put into a file: numbers of things; bytes of JSON of the pages and of the other records."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.pages: list[int] = []
        self.others: list[int] = []

    def describe(self, size: int) -> str:
        """A few lines for people. `size`: bytes of the file."""
        n, pages, images = self.of, len(self.pages), max(self.of["images"], 1)
        json_bytes = sum(self.pages) + sum(self.others)
        shares = ", ".join(f"{name} {share} %" for name, (share, _) in LANGUAGES.items())
        return (
            f"{pages + len(self.others)} records of {pages} pages (request, response, notes), "
            f"{size / 1e6:.1f} MB gzip (a member a record), {json_bytes / 1e6:.1f} MB JSON;\n"
            f"a page: JSON of {median(self.pages) / 1e3:.1f} kB (median), "
            f"{sum(self.pages) / pages / 1e3:.1f} kB (mean), {n['links'] / pages:.0f} A@/href links, "
            f"{images / pages:.1f} pictures; "
            f"{100 * n['with pictures'] / pages:.0f} % of the pages have pictures, "
            f"{100 * n['base'] / pages:.0f} % a <base>;\n"
            f"{n['images']} pictures: {100 * n['texts'] / images:.0f} % with an alt text, "
            f"{100 * n['relative'] / images:.0f} % with a relative address; {shares}"
        )


def make(path: Path, pages: int, *, seed: int = 0) -> Facts:
    """Writes a WAT of so many pages, a gzip member a record."""
    rng, facts = random.Random(seed), Facts()
    with path.open("wb") as stream:
        stream.write(_record("warcinfo", "http://x/", "application/warc-fields", b"format: WARC/1.0\r\n"))
        for number in range(pages):
            url = f"https://www.site{rng.randrange(pages)}.example/{rng.randrange(9)}/articles/{number}.html"
            for about in (_request(number, url), _response(rng, number, url, facts), _notes(number, url)):
                block = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
                is_page = "HTTP-Response-Metadata" in about["Envelope"]["Payload-Metadata"]
                (facts.pages if is_page else facts.others).append(len(block))
                stream.write(_record("metadata", url, "application/json", block))
    return facts


def _record(kind: str, url: str, content_type: str, block: bytes) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\n"
        "WARC-Record-ID: <urn:uuid:292f457d-203c-42f2-a1b5-69a4dabefd4f>\r\n"
        "WARC-Refers-To: <urn:uuid:2aabeff2-67f5-4608-8466-e87c6296e2b6>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + block + b"\r\n\r\n", mtime=0)


def _envelope(number: int, url: str, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "Container": {
            "Filename": "CC-MAIN-20240517233122-20240518023122-00000.warc.gz",
            "Compressed": True,
            "Offset": str(80610308 + 25000 * number),
            "Gzip-Metadata": {
                "Deflate-Length": "423",
                "Header-Length": "10",
                "Footer-Length": "8",
                "Inflated-CRC": "1106529533",
                "Inflated-Length": "626",
            },
        },
        "Envelope": {
            "Format": "WARC",
            "WARC-Header-Length": "620",
            "Block-Digest": "sha1:35FTUGFVNWRVTZQGCWIX2MQA3LMYC7X7",
            "Actual-Content-Length": "74581",
            "WARC-Header-Metadata": {
                "WARC-Type": kind,
                "WARC-Date": "2024-05-18T01:58:10Z",
                "WARC-Record-ID": "<urn:uuid:2aabeff2-67f5-4608-8466-e87c6296e2b6>",
                "Content-Length": "74581",
                "Content-Type": f"application/http; msgtype={kind}",
                "WARC-IP-Address": "208.80.154.224",
                "WARC-Target-URI": url,
            },
            "Payload-Metadata": {"Actual-Content-Type": f"application/http; msgtype={kind}", **payload},
        },
    }


def _request(number: int, url: str) -> dict[str, Any]:
    headers = {
        "User-Agent": "CCBot/2.0 (https://commoncrawl.org/faq/)",
        "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Accept-Language": "en-US,en;q=0.5",
        "Accept-Encoding": "br,gzip",
        "Host": url.split("/")[2],
        "Connection": "Keep-Alive",
    }
    message = {"Method": "GET", "Path": f"/articles/{number}.html", "Version": "HTTP/1.1"}
    metadata = {"Request-Message": message, "Headers-Length": "285", "Headers": headers, "Entity-Length": "0"}
    return _envelope(number, url, "request", {"HTTP-Request-Metadata": metadata})


def _notes(number: int, url: str) -> dict[str, Any]:
    notes = [
        {"Name": "fetchTimeMs", "Value": "289"},
        {"Name": "charset-detected", "Value": "UTF-8"},
        {
            "Name": "languages-cld2",
            "Value": '{"reliable":true,"text-bytes":9146,"languages":[{"code":"en"}]}',
        },
    ]
    return _envelope(number, url, "metadata", {"WARC-Metadata-Metadata": {"Metadata-Records": notes}})


def _response(rng: random.Random, number: int, url: str, facts: Facts) -> dict[str, Any]:
    words = rng.choices([w.split() for _, w in LANGUAGES.values()], [s for s, _ in LANGUAGES.values()])[0]
    host = url.split("/")[2]
    links = list(_anchors(rng, words, facts))
    for image in _images(rng, words, host, facts):
        links.insert(rng.randrange(len(links) + 1), image)
    head: dict[str, Any] = {
        "Title": _text(rng, words, 9),
        "Metas": _metas(rng, words),
        "Link": _styles(rng, host),
    }
    if rng.random() * 100 < WITH_BASE:
        facts.of["base"] += 1
        head["Base"] = f"https://{host}/"
    scripts = [
        {"path": "SCRIPT@/src", "url": f"https://{host}/js/{n}.min.js?ver={rng.randrange(99999)}"}
        for n in range(rng.randrange(4, 16))
    ]
    html = {"Head": {**head, "Scripts": scripts}, "Links": links}
    metadata = {
        "Response-Message": {"Version": "HTTP/1.1", "Status": "200", "Reason": "OK"},
        "Headers-Length": "1226",
        "Headers": _headers(rng, url),
        "HTML-Metadata": html,
        "Entity-Length": str(rng.randrange(9999, 99999)),
        "Entity-Digest": "sha1:RY7PLBUFQNI2FFV5FTUQK72W6SNPXLQU",
        "Entity-Trailing-Slop-Length": "0",
    }
    return _envelope(number, url, "response", {"HTTP-Response-Metadata": metadata})


def _headers(rng: random.Random, url: str) -> dict[str, str]:
    return {
        "Date": "Sat, 18 May 2024 01:58:10 GMT",
        "Content-Type": "text/html; charset=UTF-8",
        "X-Crawler-Transfer-Encoding": "chunked",
        "Connection": "keep-alive",
        "Set-Cookie": f"session={rng.getrandbits(160):040x}; path=/; secure; HttpOnly; SameSite=Lax",
        "Cache-Control": "no-store, no-cache, must-revalidate, post-check=0, pre-check=0",
        "Link": f'<{url}?rest_route=/>; rel="https://api.w.org/"',
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains; preload",
        "Report-To": '{"endpoints":[{"url":"https://a.nel.example/report/v4?s=abc"}],"group":"cf-nel"}',
        "Server": rng.choice(("nginx", "Apache", "cloudflare")),
        "CF-RAY": f"{rng.getrandbits(64):016x}-IAD",
        "X-Crawler-Content-Encoding": "gzip",
        "X-Crawler-Content-Length": str(rng.randrange(9999, 99999)),
    }


def _metas(rng: random.Random, words: Sequence[str]) -> list[dict[str, str]]:
    names = ("viewport", "description", "keywords", "generator", "twitter:card", "robots", "author")
    properties = ("og:title", "og:description", "og:url", "og:image", "og:site_name", "og:type", "og:locale")
    found = [{"name": name, "content": _text(rng, words, rng.randrange(3, 25))} for name in names]
    return found + [
        {"property": name, "content": _text(rng, words, rng.randrange(3, 20))} for name in properties
    ]


def _styles(rng: random.Random, host: str) -> list[dict[str, str]]:
    return [
        {
            "path": "LINK@/href",
            "url": f"https://{host}/css/{n}-{rng.randrange(9999)}.css",
            "rel": "stylesheet",
            "type": "text/css",
        }
        for n in range(rng.randrange(5, 18))
    ]


def _anchors(rng: random.Random, words: Sequence[str], facts: Facts) -> Iterator[dict[str, str]]:
    for _ in range(min(int(rng.lognormvariate(4.1, 0.9)), 1000)):
        facts.of["links"] += 1
        link = {
            "path": "A@/href",
            "url": f"/{rng.choice(words)}/{rng.choice(words)}-{rng.randrange(99999)}.html",
        }
        if rng.random() < 0.8:
            link["text"] = _text(rng, words, rng.randrange(1, 7))
        if rng.random() < 0.2:
            link["title"] = _text(rng, words, 4)
        yield link


def _images(rng: random.Random, words: Sequence[str], host: str, facts: Facts) -> Iterator[dict[str, str]]:
    if rng.random() * 100 >= WITH_PICTURES:
        return
    facts.of["with pictures"] += 1
    latin = [word for word in words if word.isascii()] or ["img", "photo", "item", "banner"]
    for _ in range(min(1 + int(rng.lognormvariate(2.3, 1.0)), 400)):
        address = rng.choices([t for _, t in ADDRESSES], [p for p, _ in ADDRESSES])[0]
        template = rng.choices([t for _, t in TEXTS], [p for p, _ in TEXTS])[0]
        numbers = {"a": rng.randrange(10, 25), "b": rng.randrange(10, 13), "n": rng.randrange(99999)}
        image = {"path": "IMG@/src", "url": address.format(host=host, word=rng.choice(latin), **numbers)}
        if template is not None:
            words_of_it = _text(rng, words, rng.randrange(2, 11))
            image["alt"] = template.format(words=words_of_it, word=rng.choice(words))
        facts.of["images"] += 1
        facts.of["texts"] += bool(template)
        facts.of["relative"] += not address.startswith(("http", "data:"))
        yield image


def _text(rng: random.Random, words: Sequence[str], count: int) -> str:
    return " ".join(rng.choices(words, k=count))
