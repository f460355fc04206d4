"""CIDEr-D: how much a caption says of what people say of the same picture (Vedantam et al., arXiv 1411.5726).

Captions become vectors of n-grams (n = 1 to 4), each weighted by its count and by how rare it is: the
logarithm of pictures over pictures whose references hold it. Compared are a candidate and each reference of
its picture: the cosine with counts clipped to the reference's, times a Gaussian of the difference of lengths
(sigma 6), averaged over n and over references, times 10. A caption that equals its only reference scores 10
where all its n-grams are rare; papers print the mean times 100 (a published 130 is 1.30 here).

The score depends on the set: rarity is counted over the pictures at hand, so figures of different pools do
not compare.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

LONGEST = 4
SIGMA = 6.0

Ngram = tuple[str, ...]
#: one weight per n-gram, for each n
Vectors = list[dict[Ngram, float]]
Rarity = Callable[[Ngram], float]

_WORD = re.compile(r"n't\b|'\w+|\w+(?:[-.]\w+)*")


def tokenise(caption: str) -> list[str]:
    """Lower-case words without punctuation, close to what COCO's scorer gets from the Penn Treebank's rules.

    As there: clitics stand alone (`isn't` -> `is n't`, `dog's` -> `dog 's`), hyphenated words and decimals
    stay whole, punctuation goes. Not as there: rare rules such as `cannot` -> `can not`.
    """
    text = caption.lower().replace("’", "'").replace("n't", " n't")
    return _WORD.findall(text)


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each picture's candidate, 0 to 10; the mean of them is the set's.

    Args:
        references: for each candidate, at least one caption of its picture.

    Raises:
        ValueError: a picture without references, or another number of pictures.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions for {len(references)} pictures; give one a picture")
    empty = next((i for i, refs in enumerate(references) if not refs), None)
    if empty is not None:
        raise ValueError(f"picture {empty} of {len(references)} has no reference caption; give at least one")
    counted = [[_ngrams(tokenise(r)) for r in refs] for refs in references]
    pictures_with: Counter[Ngram] = Counter()
    for refs in counted:
        pictures_with.update({g for r in refs for g in r})
    log_pictures = math.log(len(references))

    def rarity(gram: Ngram) -> float:
        return log_pictures - math.log(max(1, pictures_with[gram]))

    scores = []
    for candidate, refs in zip(candidates, counted, strict=True):
        mine = _ngrams(tokenise(candidate))
        scores.append(10.0 * sum(_similarity(mine, r, rarity) for r in refs) / len(refs))
    return scores


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


def _similarity(candidate: Counter[Ngram], reference: Counter[Ngram], rarity: Rarity) -> float:
    """The mean over n of clipped cosines, times the penalty for another length."""
    mine, theirs = _vectors(candidate, rarity), _vectors(reference, rarity)
    total = 0.0
    for a, b in zip(mine, theirs, strict=True):
        norms = math.sqrt(sum(w * w for w in a.values())) * math.sqrt(sum(w * w for w in b.values()))
        product = sum(min(w, b[g]) * b[g] for g, w in a.items() if g in b)
        total += product / norms if norms else product
    # lengths are counted in bigrams, as the released scorer does
    difference = _bigrams(candidate) - _bigrams(reference)
    return total / LONGEST * math.exp(-(difference**2) / (2 * SIGMA**2))


def _vectors(counts: Counter[Ngram], rarity: Rarity) -> Vectors:
    vectors: Vectors = [{} for _ in range(LONGEST)]
    for gram, count in counts.items():
        vectors[len(gram) - 1][gram] = count * rarity(gram)
    return vectors


def _bigrams(counts: Counter[Ngram]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 2)
