"""Words and numbers of the report, and what is done to text that comes from the web.

Alt texts, URLs and page addresses are hostile input. Escaping is the template's work (autoescape is on and
nothing here returns markup); this module takes away what escaping leaves: control characters, characters
that turn the direction of the text around them, invisible tags, texts without end, links that are no web
addresses, and passwords inside of addresses.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import urlsplit

MAX_CAPTION = 220
MAX_WORD = 80
MAX_MARKS = 3  # combining marks that a letter may carry; more of them paint over the lines around

#: joiners that Persian, Hindi and emoji need; every other format character (category Cf) goes
_JOINERS = "\u200c\u200d"
_USER_INFO = re.compile(r"(?<=://)[^/@\s'\"]+@")
_QUERY = re.compile(r"(https?://[^\s'\"?#]+)\?[^\s'\"]+")


def clean(value: object, limit: int = MAX_CAPTION) -> str:
    """One line of plain text: no control, format, private or surrogate characters, cut at `limit`."""
    # Cut first as well: a text of megabytes is not worth normalising.
    raw = ("" if value is None else str(value))[: 8 * limit]
    kept: list[str] = []
    marks = 0
    for character in raw:
        category = unicodedata.category(character)
        if category in ("Cc", "Zl", "Zp"):
            character = " "
        elif category in ("Cf", "Cs", "Co", "Cn") and character not in _JOINERS:
            continue
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks <= MAX_MARKS:
            kept.append(character)
    text = " ".join("".join(kept).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def safe_url(value: object) -> str | None:
    """The address if it may become a link: absolute, http or https, without user info; else None."""
    text = "" if value is None else str(value)
    if len(text) > 2000 or clean(text, 2001) != text or any(c in text for c in " \\\"'<>`"):
        return None
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname)
    except ValueError:
        return None
    return text if parts.scheme in ("http", "https") and named and "@" not in parts.netloc else None


def host_of(url: str | None) -> str:
    """The host of a safe address, for a link's words."""
    return clean(urlsplit(url).hostname or "", MAX_WORD) if url else ""


def redact(text: str) -> str:
    """A configuration as it may be shown: no user info and no query in addresses (signatures, tokens)."""
    return _QUERY.sub(r"\1?…", _USER_INFO.sub("…@", text))


def printable(text: str) -> str:
    """A text of several lines without control and format characters, its lines kept."""
    lines = text.split("\n")
    return "\n".join("".join(c for c in line if unicodedata.category(c)[0] != "C") for line in lines)


def count(value: float) -> str:
    """`4,980`."""
    return f"{round(value):,}"


def share(part: float, whole: float) -> str:
    """`68.5 %` with a no-break space; what is neither nothing nor all is never rounded to 0 or 100 %."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1\u00a0%"
    if 99.9 < percent < 100:
        return "> 99.9\u00a0%"
    return f"{percent:.1f}\u00a0%" if 0 < percent < 100 else f"{percent:.0f}\u00a0%"


def plural(number: float, one: str, many: str | None = None) -> str:
    """`1 link`, `4,980 links`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def figure(value: Any) -> str:
    """A measured number with as many digits as say something: `0.283`, `1.5e-05`, `1,204`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(value, MAX_WORD)
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    size = abs(value)
    if isinstance(value, int) or not value or size >= 1000:
        return f"{value:,.0f}"
    if size and size < 0.001:
        return f"{value:.1e}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def measure(value: float) -> str:
    """A score or a distance: whole numbers as they are, others with three decimals or so."""
    return f"{value:,.0f}" if value == round(value) else figure(value)


def duration(seconds: float) -> str:
    """`48 s`, `3 min 12 s`, `5 h 02 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
