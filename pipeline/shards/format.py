"""Names in the shard format: shards, keys, members. FORMAT.md in this folder is the public contract."""

from __future__ import annotations

import hashlib
import re

SHARD_DIGITS = 8
INDEX_DIGITS = 4
#: rows of one part of a candidates folder are numbered with so many digits
ROW_DIGITS = 8
#: samples a shard can number; clip-retrieval assumes no more either
MAX_SHARD_SAMPLES = 10**INDEX_DIGITS

IMAGE_SUFFIXES = ("jpg", "png", "webp", "jpeg")
_KEY = re.compile(r"[0-9a-z_]{1,64}")
_INDEXED_IMAGE = re.compile(r"\d+\.(?:jpg|png|webp|jpeg)")


def shard_name(number: int) -> str:
    """8 digits: 3 -> `00000003`."""
    if not 0 <= number < 10**SHARD_DIGITS:
        raise ValueError(f"shard number {number} must be in 0..{10**SHARD_DIGITS - 1}")
    return f"{number:0{SHARD_DIGITS}d}"


def sample_key(shard: int, index: int) -> str:
    """12 digits: the shard, and the position in it before anything was dropped."""
    if not 0 <= index < MAX_SHARD_SAMPLES:
        raise ValueError(f"index {index} in a shard must be in 0..{MAX_SHARD_SAMPLES - 1}")
    return f"{shard_name(shard)}{index:0{INDEX_DIGITS}d}"


def candidate_key(part: int, row: int) -> str:
    """16 digits: the part of a candidates folder, and the row in it. Candidates are stored without it: parts
    never change, so the place says it."""
    if not 0 <= row < 10**ROW_DIGITS:
        raise ValueError(f"row {row} of a part must be in 0..{10**ROW_DIGITS - 1}")
    return f"{shard_name(part)}{row:0{ROW_DIGITS}d}"


def is_key(key: str) -> bool:
    """Own keys are `[0-9a-z_]{1,64}`: no dot (readers split at it), no slash."""
    return _KEY.fullmatch(key) is not None


def is_image(suffix: str) -> bool:
    """Whether a member suffix is a picture: `jpg`, or `0.jpg` where a sample has several."""
    return suffix in IMAGE_SUFFIXES or _INDEXED_IMAGE.fullmatch(suffix) is not None


def sample_uid(caption: str, url: str) -> str:
    """DataComp's identity of a pair: md5 of the alt text followed by the URL, 32 hex digits."""
    return hashlib.md5((caption + url).encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
