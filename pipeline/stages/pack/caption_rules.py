"""Which texts of one picture are kept, and in which order: the rules behind the policies of `captions`.

Pure functions of what the columns say of one row. Texts come out best first, each once; a text of white space
is none. A score that is null or no number was not given: what was not judged is not kept. Scores are compared
as the 32-bit floats that they are, so that 0.7 in a column reaches a threshold of 0.7.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WEB, SYNTHETIC = "web", "synthetic"
SOURCES = (WEB, SYNTHETIC)
#: candidates that LAION-COCO's first CLIP hands to the second
TOP = 5


@dataclass(frozen=True)
class Text:
    """A text and where it comes from: `web` or `synthetic`."""

    source: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A synthetic text with its scores: ITM probability, first and second CLIP; null where not given."""

    text: str
    itm: float | None = None
    clip: float | None = None
    clip2: float | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the columns say of one row: the text of the web with its ITM probability, synthetic texts."""

    key: str
    web: str = ""
    web_itm: float | None = None
    synthetic: Sequence[Candidate] = ()


Rule = Callable[[Picture], list[Text]]


def score(value: float | None) -> float | None:
    """A score as it was given; null where it is null or no number."""
    return None if value is None or math.isnan(value) else float(value)


def capfilt(picture: Picture, *, threshold: float, most: int) -> list[Text]:
    """BLIP's filter (arXiv 2201.12086, section 3.3): texts whose ITM probability is at least `threshold`, the
    web's first, then at most `most` synthetic ones by falling probability."""
    least = np.float32(threshold)
    kept = [c for c in picture.synthetic if c.itm is not None and np.float32(c.itm) >= least]
    texts = _synthetic(sorted(kept, key=lambda c: -_given(c.itm)), most)
    if picture.web_itm is not None and np.float32(picture.web_itm) >= least:
        texts.insert(0, Text(WEB, picture.web))
    return distinct(texts)


def laion_coco(picture: Picture, *, most: int) -> list[Text]:
    """LAION-COCO: of the five that fit best by the first CLIP the best by the second one; the best by the
    first where the second judged none of the five. Equal ones in the order of the first, then as written."""
    judged = sorted((c for c in picture.synthetic if c.clip is not None), key=lambda c: -_given(c.clip))
    top = judged[:TOP]
    again = sorted((c for c in top if c.clip2 is not None), key=lambda c: -_given(c.clip2))
    return distinct(_synthetic(again or top, most))


def mix(picture: Picture, *, weights: Mapping[str, float], most: int, seed: int) -> list[Text]:
    """The web's text and synthetic ones; whose come first is drawn by `weights`, keyed by (seed, key).

    Sources of weight 0 have no part, and those without a text are not drawn. Synthetic texts are in the order
    of their best judge: LAION-COCO's where CLIP scored them, else by falling ITM probability, else as they
    were written.
    """
    by_itm = sorted(picture.synthetic, key=lambda c: -_given(c.itm))
    texts = {
        WEB: distinct([Text(WEB, picture.web)]),
        SYNTHETIC: laion_coco(picture, most=most) or distinct(_synthetic(by_itm, most)),
    }
    able = {name: weights[name] for name in SOURCES if weights.get(name, 0) > 0 and texts[name]}
    if not able:
        return []
    first = drawn(able, f"{seed}:{picture.key}:caption")
    return distinct([t for name in sorted(able, key=lambda name: name != first) for t in texts[name]])


def drawn(weights: Mapping[str, float], name: str) -> str:
    """One of the names in proportion to its weight, by a hash of `name`."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    left = number * sum(weights.values())
    for one, weight in weights.items():
        left -= weight
        if left < 0:
            return one
    return next(reversed(list(weights)))  # rounding left a crumb


def distinct(texts: Sequence[Text]) -> list[Text]:
    """Each wording once, the first place where it stands; without those of white space."""
    found: dict[str, Text] = {}
    for one in texts:
        if one.text.strip():
            found.setdefault(one.text, one)
    return list(found.values())


def _synthetic(candidates: Sequence[Candidate], most: int) -> list[Text]:
    return distinct([Text(SYNTHETIC, c.text) for c in candidates])[:most]


def _given(value: float | None) -> float:
    return -math.inf if value is None else value
