"""A million rows and more of a crawl that never was, with duplicates planted in known numbers.

Everything about a row is a function of (seed, number of the row), so shards are made one at a time, in any
order, and what is to be found is counted from the numbers alone. A row is new (an original), or repeats an
earlier original:

    pair      the same URL and caption, and the same file
    file      the same file at another URL
    near      a picture that looks alike: a few bits of its hashes differ
    meaning   another picture of the same thing: an embedding at a cosine of 0.97

N rows; D dimensions of an embedding. Bits come from splitmix64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

ORIGINAL, PAIR, FILE, NEAR, MEANING = range(5)
#: percent of the rows that repeat an earlier one, by kind; and of those that could not be fetched
SHARES = {PAIR: 5, FILE: 5, NEAR: 4, MEANING: 2}
FAILED = 12
ROWS_PER_SHARD = 10_000
#: cosine of an embedding to that of the original
COSINES = {NEAR: 0.99, MEANING: 0.97}
#: bits of a 256-bit hash that a picture that looks alike has otherwise
NEAR_BITS = 6
TOPICS, SITES, WORDS = 512, 50_000, 20_000


@dataclass(frozen=True, kw_only=True)
class World:
    """rows: how many there are, failed ones included."""

    rows: int
    seed: int = 0

    @property
    def shards(self) -> int:
        return -(-self.rows // ROWS_PER_SHARD)

    def numbers(self, shard: int) -> Places:
        """The rows of a shard."""
        return np.arange(shard * ROWS_PER_SHARD, min((shard + 1) * ROWS_PER_SHARD, self.rows))

    def uniform(self, what: str, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """A number in [0, 1) for each row."""
        return (self.bits(what, rows) >> np.uint64(11)).astype(np.float64) / 2.0**53

    def bits(self, what: str, rows: npt.NDArray[np.integer]) -> Numbers:
        """64 bits for each row, independent for each word `what`."""
        mark = np.uint64(int.from_bytes(f"{self.seed}{what}".encode()[:24].rjust(24), "big") % (1 << 61))
        return splitmix(rows.astype(np.uint64) + splitmix(np.array([mark]))[0])

    def kinds(self, rows: Places) -> Places:
        """What each row is."""
        bounds = np.cumsum([SHARES[kind] / 100 for kind in sorted(SHARES)])
        kind = np.searchsorted(bounds, self.uniform("kind", rows), side="right") + 1
        return np.where((kind > len(SHARES)) | (rows == 0), ORIGINAL, kind)

    def roots(self, rows: Places) -> Places:
        """The original that each row is or repeats."""
        found = rows.copy()
        at = np.flatnonzero(self.kinds(found) != ORIGINAL)
        while len(at):
            found[at] = (self.uniform("of", found[at]) * found[at]).astype(np.int64)
            at = at[self.kinds(found[at]) != ORIGINAL]
        return found

    def fetched(self, rows: Places) -> npt.NDArray[np.bool_]:
        return self.uniform("failed", rows) >= FAILED / 100

    def successes(self) -> int:
        return int(self.fetched(np.arange(self.rows)).sum())

    def repeated(self, kinds: Sequence[int]) -> int:
        """Fetched rows of these kinds, originals included, but for one of each original: what a search for
        duplicates has to mark."""
        rows = np.arange(self.rows)
        rows = rows[self.fetched(rows) & np.isin(self.kinds(rows), kinds)]
        return len(rows) - len(np.unique(self.roots(rows)))

    def embeddings(self, rows: Places, dimensions: int) -> npt.NDArray[np.float64]:
        """Unit vectors (N, D): originals gather around topics."""
        roots, kinds = self.roots(rows), self.kinds(rows)
        topics = (self.uniform("topic", roots) ** 2 * TOPICS).astype(np.int64)
        vectors = 0.6 * self._directions("topics", topics, dimensions)
        vectors = _unit(vectors + 0.8 * self._directions("own", roots, dimensions))
        for kind, cosine in COSINES.items():
            at = np.flatnonzero(kinds == kind)
            aside = self._directions("aside", rows[at], dimensions)
            aside = _unit(aside - (aside * vectors[at]).sum(1, keepdims=True) * vectors[at])
            vectors[at] = cosine * vectors[at] + np.sqrt(1 - cosine**2) * aside
        return vectors

    def _directions(self, what: str, rows: Places, dimensions: int) -> npt.NDArray[np.float64]:
        places = rows[:, None] * dimensions + np.arange(dimensions)
        return _unit(self.uniform(what, places) - 0.5)

    def hashes(self, what: str, rows: Places, words: int) -> Numbers:
        """Hashes of a picture (N, words of 64 bits): its original's, with some bits changed where it only
        looks alike; its own where it is of the same thing."""
        roots, kinds = self.roots(rows), self.kinds(rows)
        of = np.where(kinds == MEANING, rows, roots)
        found = self.bits(what, of[:, None] * words + np.arange(words))
        near = np.flatnonzero(kinds == NEAR)
        for turn in range(NEAR_BITS):
            bit = self.bits(f"{what}{turn}", rows[near]) % np.uint64(64 * words)
            found[near, (bit // np.uint64(64)).astype(np.int64)] ^= np.uint64(1) << bit % np.uint64(64)
        return found


def splitmix(values: Numbers) -> Numbers:
    """The output function of splitmix64."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
