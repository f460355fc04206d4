"""A contact sheet as one picture: JPEG or PNG, a grid of thumbnails with key, caption and values below."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

from jobs.reporting.pictures import opened
from jobs.reporting.sheet import Picture, Sheet

COLUMNS, SIDE, GAP = 6, 210, 18
LINE, CAPTION_LINES = 17, 2
PAPER, WASH, INK, SOFT = "#fbfaf7", "#f1efe9", "#1d1e1c", "#5f5e58"
#: covers Latin, Greek, Cyrillic and Arabic; Pillow's own only Latin. Signs that a font lacks become boxes
FONT = "DejaVuSans.ttf"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(sheet: Sheet, title: str, kind: str) -> bytes:
    """The sheet as a file. kind: `JPEG` or `PNG`."""
    columns = max(1, min(COLUMNS, len(sheet.pictures)))
    values = max((len(one.values) for one in sheet.pictures), default=0)
    cell = SIDE + LINE * (1 + CAPTION_LINES + values) + 14
    lines = -(-len(sheet.pictures) // columns)
    width = max(columns * (SIDE + GAP) + GAP, 2 * (SIDE + GAP) + GAP)
    page = Image.new("RGB", (width, 52 + lines * (cell + GAP)), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, 16), fitting(pen, title, font(17), width - 2 * GAP), fill=INK, font=font(17))
    for i, one in enumerate(sheet.pictures):
        place = GAP + (i % columns) * (SIDE + GAP), 52 + (i // columns) * (cell + GAP)
        _cell(page, pen, one, place)
    sink = io.BytesIO()
    if kind == "PNG":
        page.save(sink, "PNG", optimize=True)
    else:
        page.save(sink, "JPEG", quality=86)
    return sink.getvalue()


def _cell(page: Image.Image, pen: ImageDraw.ImageDraw, one: Picture, place: tuple[int, int]) -> None:
    x, y = place
    pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=WASH)
    small = opened(one.data, side=SIDE) if one.data is not None else None
    if small is None:
        pen.text((x + 12, y + SIDE // 2 - 8), "picture cannot be shown", fill=SOFT, font=font(13))
    else:
        page.paste(small, (x + (SIDE - small.width) // 2, y + (SIDE - small.height) // 2))
    y += SIDE + 5
    pen.text((x, y), fitting(pen, one.key, font(12), SIDE), fill=SOFT, font=font(12))
    for n, line in enumerate(wrapped(pen, one.caption or "–", font(13), SIDE, CAPTION_LINES)):
        pen.text((x, y + LINE * (n + 1)), line, fill=INK, font=font(13))
    y += LINE * (1 + CAPTION_LINES)
    for n, (name, value) in enumerate(one.values):
        words = fitting(pen, f"{name} {value}", font(12), SIDE)
        pen.text((x, y + LINE * n), words, fill=SOFT, font=font(12))


def font(size: int) -> Font:
    """DejaVu Sans where it is installed, else Pillow's own."""
    if size not in _FONTS:
        try:
            _FONTS[size] = ImageFont.truetype(FONT, size)
        except OSError:
            _FONTS[size] = ImageFont.load_default(size)
    return _FONTS[size]


_FONTS: dict[int, Font] = {}


def fitting(pen: ImageDraw.ImageDraw, text: str, used: Font, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if pen.textlength(text, font=used) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        if pen.textlength(text[:middle] + "…", font=used) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def wrapped(pen: ImageDraw.ImageDraw, text: str, used: Font, width: int, most: int) -> list[str]:
    """At most `most` lines, the last one cut; a word wider than a line is cut as well."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most - 1:
        line = words.pop(0)
        while words and pen.textlength(f"{line} {words[0]}", font=used) <= width:
            line += " " + words.pop(0)
        lines.append(fitting(pen, line, used, width))
    return [*lines, fitting(pen, " ".join(words), used, width)] if words else lines
