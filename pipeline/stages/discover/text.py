"""Cleans alt texts: what a candidate's caption is made of."""

from __future__ import annotations

import html
import re
import unicodedata

#: an entity that ends as it should. Without the semicolon `A&section=2` would become `A§ion=2`
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

#: control characters (white space is collapsed afterwards), soft hyphens, bidi marks, overrides and isolates,
#: zero-width spaces, byte-order marks, interlinear marks, lone surrogates, non-characters. Kept: the joiners
#: U+200C and U+200D, which Persian, the Indic scripts and emoji need
_UNWANTED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def clean_text(text: str) -> str:
    """An alt text fit for training: entities resolved, control and bidi characters out, NFC, white space
    collapsed to single spaces and cut off at both ends.

    HTML parsers resolve entities once already; many sites escape twice (`Tom &amp;amp; Jerry`), so one more
    level is resolved here, for WARC and WAT alike.
    """
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), text)
    if not text.isprintable():  # then it holds neither what is unwanted nor white space but the plain one
        text = " ".join(_UNWANTED.sub("", text).split())
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = text.strip(" ")
    return " ".join(text.split()) if "  " in text else text
