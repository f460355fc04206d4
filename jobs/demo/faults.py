"""What goes wrong on the demo's web, how often, and which fate each fault ought to meet.

Every picture on a page of the small web has exactly one of these kinds. `right` and `wrong_caption` are the
pairs that the filter is judged by; all others exist so that each rule and each drop reason has something to
catch.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of picture on the small web.

    Attributes:
        count: how many a world of scale 1 has
        crawlable: whether a crawler that behaves gets a picture it may keep
        told: whether the alt text is a caption (right or wrong) rather than no description at all
        about: what is planted, for the truth table's reader
    """

    count: int
    crawlable: bool
    told: bool = True
    about: str


FAULTS: dict[str, Fault] = {
    "right": Fault(count=2700, crawlable=True, about="good picture, its own caption"),
    "wrong_caption": Fault(count=700, crawlable=True, about="good picture, the caption of another scene"),
    "duplicate_pair": Fault(count=60, crawlable=True, about="same address and alt text on three pages"),
    "duplicate_bytes": Fault(count=60, crawlable=True, about="same picture and alt text at a second address"),
    "moved": Fault(count=20, crawlable=True, about="redirect to the picture on an allowed host"),
    "busy_once": Fault(count=16, crawlable=True, about="503 at the first request, the picture at the next"),
    "slow": Fault(count=4, crawlable=True, about="arrives in small pieces, within two seconds"),
    "hostile_alt": Fault(count=1, crawlable=True, about="own caption followed by a <script> element"),
    "boilerplate_alt": Fault(count=60, crawlable=True, told=False, about="alt text such as IMG_2041.jpg"),
    "short_alt": Fault(count=60, crawlable=False, told=False, about="alt text under five characters"),
    "dead_link": Fault(count=80, crawlable=False, about="404"),
    "unreachable": Fault(count=10, crawlable=False, about="nothing listens at the host's port"),
    "endless": Fault(count=2, crawlable=False, about="drips a byte at a time, far beyond any deadline"),
    "tiny": Fault(count=40, crawlable=False, about="icon of 48 pixels"),
    "small_file": Fault(count=40, crawlable=False, about="full size, but under 5000 bytes"),
    "truncated": Fault(count=30, crawlable=False, about="JPEG cut in the middle"),
    "html_as_jpg": Fault(count=30, crawlable=False, about="an error page served as image/jpeg"),
    "opt_out": Fault(count=40, crawlable=False, about="X-Robots-Tag: noai or noimageai"),
    "redirect_private": Fault(count=10, crawlable=False, about="redirect to a host that is not allowed"),
    "private": Fault(count=10, crawlable=False, about="address inside the private network"),
    "gif": Fault(count=30, crawlable=False, about="animation format"),
    "svg": Fault(count=20, crawlable=False, about="drawing format"),
    "data_url": Fault(count=15, crawlable=False, about="the picture inside the address"),
    "file_url": Fault(count=10, crawlable=False, about="an address on the reader's own disk"),
}

#: one row per picture on the web; `url` is unique, `pages` counts the pages that show it
TRUTH_SCHEMA = pa.schema(
    [
        ("url", pa.string()),  # absolute, as a browser would resolve it; a data: URL is cut to 64 characters
        ("alt", pa.string()),  # the text a reader of the page sees, entities resolved
        ("fault", pa.string()),  # key of FAULTS
        ("is_wrong", pa.bool_()),  # null where the filter cannot be judged by it
        ("is_crawlable", pa.bool_()),
        ("scene", pa.string()),  # what the picture shows
        ("caption_scene", pa.string()),  # what the alt text tells; empty where it tells nothing
        ("overlap", pa.string()),  # what a wrong caption has in common with the picture: none, colour, object
        ("language", pa.string()),
        ("form", pa.string()),  # how the page writes the address: src, data-src, srcset
        ("page", pa.string()),  # the first page that shows it
        ("pages", pa.int32()),
        ("archive", pa.string()),  # warc, wat or both
    ]
)


def quota(fault: str, scale: float) -> int:
    """How many pictures of one kind a world of this scale has; at least one of each."""
    return max(1, round(FAULTS[fault].count * scale))
