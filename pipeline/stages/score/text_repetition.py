"""How much of a caption says again what it has said: shares from 0 (nothing twice) towards 1.

Web captions repeat themselves for search engines (`cheap shoes, shoes cheap, shoes`). Measured on tokens,
after the repetition rules of MassiveText (Rae et al. 2021, arXiv:2112.11446, table A1), which are made for
pages: captions are short, so words and runs of three words are counted, and nothing is a threshold here.

A token is a run of characters between white space, lower case, without the punctuation around it; each Han,
kana or Thai character is one, since these scripts do not part words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: words in a row whose second appearance counts as said again
RUN = 3
# Thai and Lao, Hiragana and Katakana, Han (with its extensions)
_UNSPACED = "\u0e01-\u0eff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_AROUND = re.compile(r"^[\W_]+|[\W_]+$")


def tokens(text: str) -> list[str]:
    """The words of a text as they are compared; what has neither letter nor digit is none."""
    found = (_AROUND.sub("", token) for token in _TOKEN.findall(text.casefold()))
    return [token for token in found if token]


def repeated_words(words: Sequence[str]) -> float | None:
    """The share of words that stood before: 1 - distinct / all. None where there are no words.

    Long texts repeat articles and prepositions: 20 words of plain English have about 0.1, 100 words 0.3.
    """
    return 1 - len(set(words)) / len(words) if words else None


def repeated_runs(words: Sequence[str]) -> float | None:
    """The share of characters that lie in a run of `RUN` words which stood before, as a whole, further left.
    0 for texts without such runs; None where there are no words."""
    if not words:
        return None
    seen: set[tuple[str, ...]] = set()
    again = [False] * len(words)
    for at in range(len(words) - RUN + 1):
        run = tuple(words[at : at + RUN])
        if run in seen:
            again[at : at + RUN] = [True] * RUN
        seen.add(run)
    lengths = [len(word) for word in words]
    return sum(n for n, hit in zip(lengths, again, strict=True) if hit) / sum(lengths)
