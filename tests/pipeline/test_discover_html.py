from __future__ import annotations

import pytest

from pipeline.stages.discover.html import (
    Link,
    find_charset,
    largest_candidate,
    may_have_images,
    read_page,
)


def links(html: str) -> list[Link]:
    return read_page(html.encode(), "utf-8").links


@pytest.mark.parametrize(
    ("srcset", "url"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg 1x, b.jpg 2x", "b.jpg"),
        ("a.jpg 320w, b.jpg 1280w,c.jpg 640w", "b.jpg"),
        ("a.jpg, b.jpg 1.5x", "b.jpg"),
        ("  ,a.jpg 480w 320h ,", "a.jpg"),
        ("https://x/w_200,h_100/a.jpg 200w, https://x/w_400,h_200/b.jpg 400w", "https://x/w_400,h_200/b.jpg"),
        ("a.jpg,b.jpg", "a.jpg,b.jpg"),
        ("a.jpg 2x, b.jpg 2x", "a.jpg"),
        ("data:image/gif;base64,R0lGOD 1x, a.jpg 1x", "a.jpg"),
        ("data:image/gif;base64,R0lGOD 1x", None),
        ("", None),
        (" , ,", None),
    ],
)
def test_the_largest_candidate_of_a_srcset(srcset: str, url: str | None) -> None:
    assert largest_candidate(srcset) == url


@pytest.mark.timeout(20)
def test_a_long_srcset_takes_no_long_time() -> None:
    for part in ("a,", " ,", "a ", "a", " ", ",", "a 1x,"):
        largest_candidate(part * 200_000 + "x")


@pytest.mark.timeout(60)
def test_a_page_of_many_pictures_takes_time_in_proportion() -> None:
    many = (
        "<picture>" + "<source srcset=a.avif type=image/avif>" * 5000 + "<img alt=x>" * 20_000 + "</picture>"
    )
    assert links(many) == [(None, "x")] * 20_000


@pytest.mark.parametrize(
    ("tag", "url"),
    [
        ('<img src="a.jpg" alt="x">', "a.jpg"),
        ('<IMG SRC=a.jpg ALT="x">', "a.jpg"),
        ('<img src="a.jpg" srcset="b.jpg 2x, c.jpg 3x" alt="x">', "c.jpg"),
        ('<img data-src="b.jpg" alt="x">', "b.jpg"),
        ('<img src="data:image/gif;base64,R0" data-src="b.jpg" alt="x">', "b.jpg"),
        ('<img src="" data-original="b.jpg" alt="x">', "b.jpg"),
        ('<img src="pixel.gif" data-src="b.jpg" alt="x">', "b.jpg"),
        ('<img src="a.jpg" data-src="data:," alt="x">', "a.jpg"),
        ('<img src="data:image/gif;base64,R0" data-srcset="b.jpg 1x, c.jpg 2x" alt="x">', "c.jpg"),
        ('<img src="data:image/gif;base64,R0" alt="x">', "data:image/gif;base64,R0"),
        ('<img alt="x">', None),
        ('<picture><source srcset="b.webp 1x, c.webp 2x"><img src="a.jpg" alt="x"></picture>', "a.jpg"),
        ('<picture><source srcset="b.webp 1x, c.webp 2x"><img alt="x"></picture>', "c.webp"),
        (
            '<picture><source type="image/avif" srcset="b.avif"><source type="image/webp" srcset="c.webp">'
            '<img src="data:," alt="x"></picture>',
            "c.webp",
        ),
    ],
)
def test_where_a_page_says_the_address_of_a_picture(tag: str, url: str | None) -> None:
    assert links(f"<p>{tag}</p>") == [(url, "x")]


def test_alt_texts_come_with_entities_resolved_and_missing_ones_as_none() -> None:
    page = '<img src=a alt="Tom &amp; Jerry &lt;3"><img src=b><img src=c alt="">'
    page += "<noscript><img src=d alt=n></noscript>"
    assert links(page) == [
        ("a", "Tom & Jerry <3"),
        ("b", None),
        ("c", ""),
        ("d", "n"),
    ]


def test_the_first_base_with_an_address_counts() -> None:
    page = read_page(b"<base target=_blank><base href='/one/'><base href='/two/'><img src=a>", "utf-8")
    assert page.base_href == "/one/"


def test_pictures_in_comments_scripts_and_text_fields_are_none() -> None:
    page = "<!-- <img src=a> --><script>'<img src=b>'</script><textarea><img src=c></textarea>"
    assert may_have_images(page.encode())
    assert links(page) == []


@pytest.mark.parametrize(
    ("body", "declared", "charset"),
    [
        (b"<html>", "ISO-8859-1", "cp1252"),
        (b"<html>", '"utf-8"', "utf-8"),
        (b'<meta charset="windows-1251">', None, "cp1251"),
        (b'<meta charset="windows-1251">', "utf-8", "utf-8"),
        (b'<meta charset="windows-1251">', "no-such-charset", "cp1251"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS">', None, "shift_jis"),
        (b"\xef\xbb\xbf<html>", "iso-8859-1", "utf-8"),
        ("\ufeff<html>".encode("utf-16-le"), "utf-8", "utf-16-le"),
        ("<p>Пример русского текста без объявления кодировки</p>".encode("koi8-r"), None, "koi8-r"),
        ("<p>Grüße aus Köln</p>".encode(), None, "utf-8"),
    ],
)
def test_the_charset_comes_from_mark_header_meta_or_detection(
    body: bytes, declared: str | None, charset: str
) -> None:
    import codecs

    assert codecs.lookup(find_charset(body, declared)).name == codecs.lookup(charset).name


def test_bytes_that_the_charset_lacks_cost_only_themselves() -> None:
    body = "<img src=a alt='größer ".encode() + b"\xff\xc3" + "'><img src=b alt='schön'>".encode()
    found = read_page(body, "utf-8").links
    assert [url for url, _ in found] == ["a", "b"]
    assert (found[0][1] or "").startswith("größer \ufffd")
    assert found[1][1] == "schön"


def test_the_look_at_the_bytes() -> None:
    assert may_have_images(b"<IMG src=a>")
    assert may_have_images(b"<iMg src=a>")
    assert may_have_images("\ufeff<img src=a>".encode("utf-16-le"))
    assert not may_have_images(b"<p>image</p>")
