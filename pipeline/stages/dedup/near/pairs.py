"""Which pictures of a bucket look like one with a smaller key: pure functions over arrays.

Two pictures are near when a hash of one and a hash of the other differ in at most `distance` bits
(`pipeline.phash.alike`), at least one of them being of the whole picture, and have the value of a band in
common. `find_losers` gives each picture the smallest key that is near it.

Equal hashes are one thing to compare, whatever the number of pictures that have them. The hashes that share a
value are compared with each other where they are at most `most`; where they are more, only pairs in which one
has one of the `most` smallest keys, so that the work grows with their number and not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.phash import WORDS, alike, hamming
from pipeline.stages.dedup.near.entries import LOSERS, hash_words

#: groups up to this size are compared all at once, larger ones each in tiles
SMALL = 256
_TILE = 512
#: a rank and a distance as one number, whose order is theirs
_SHIFT = np.int64(9)
_SPREAD = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)
_NOBODY = np.int64(1) << np.int64(50)


@dataclass
class Distinct:
    """The different hashes of a bucket, each once for every band value it stands under, sorted by group.

    words: uint64 [n, WORDS]. start: int64, where each group begins, and the end. ranks: int64 [2, n], the
    smallest rank of the pictures that have it as any hash ([0]), and as that of the whole ([1]). best: int64
    [2, n], the smallest of these ranks near it, each with its distance. distance, most: as NearOptions have.
    """

    words: np.ndarray
    start: np.ndarray
    ranks: np.ndarray
    best: np.ndarray
    distance: int
    most: int

    def compare(self) -> int:
        """Fills `best`; returns how many hashes were not compared with all of their group."""
        sizes = np.diff(self.start)
        self._compare_small(sizes)
        skipped = 0
        for group in np.nonzero(sizes > SMALL)[0]:
            skipped += self._compare_large(np.arange(self.start[group], self.start[group + 1]))
        return skipped

    def _compare_small(self, sizes: np.ndarray) -> None:
        """Each hash with its neighbour, then with the next but one, and so on: as many steps as the largest
        group is long."""
        end = np.repeat(self.start[1:], sizes)
        one = np.nonzero(np.repeat(sizes <= SMALL, sizes))[0]
        for step in range(1, SMALL):
            one = one[one + step < end[one]]
            if not len(one):
                return
            self._note(one, one + step)

    def _compare_large(self, members: np.ndarray) -> int:
        by_key = members[np.argsort(self.ranks[0][members], kind="stable")]
        first = by_key[: self.most]
        for at in range(0, len(by_key), _TILE):
            rows = by_key[at : at + _TILE]
            for begin in range(0, min(len(first), at + _TILE), _TILE):
                columns = first[begin : begin + _TILE]
                different = np.zeros((len(rows), len(columns)), np.uint16)
                for word in range(WORDS):
                    words = self.words[:, word]
                    different += np.bitwise_count(words[rows, None] ^ words[None, columns])
                row, column = np.nonzero(different <= self.distance)
                apart = rows[row] != columns[column]
                self._note(rows[row[apart]], columns[column[apart]])
        return max(0, len(members) - self.most)

    def _note(self, one: np.ndarray, other: np.ndarray) -> None:
        """Compares pairs, and tells each side of the other where they are near."""
        near = np.bitwise_count(self.words[one, 0] ^ self.words[other, 0]) <= self.distance
        one, other = one[near], other[near]
        distance = hamming(self.words[one], self.words[other])
        near = alike(self.words[one], self.words[other], distance, self.distance)
        one, other, distance = one[near], other[near], distance[near]
        for best, ranks in zip(self.best, self.ranks, strict=True):
            np.minimum.at(best, one, (ranks[other] << _SHIFT) | distance)
            np.minimum.at(best, other, (ranks[one] << _SHIFT) | distance)


def find_losers(entries: pa.Table, *, distance: int, most: int) -> tuple[pa.Table, int]:
    """The pictures that are near one with a smaller key, each with the smallest such key (table LOSERS,
    sorted by key); and how many hashes were not compared with all that share a value with them.

    Args:
        entries: those of a bucket, as ENTRIES has them.
    """
    if not len(entries):
        return LOSERS.empty_table(), 0
    keys = pc.unique(entries["key"])
    keys = keys.take(pc.sort_indices(keys))
    rank = pc.index_in(entries["key"], value_set=keys).to_numpy().astype(np.int64)
    whole = entries["whole"].to_numpy()
    words = hash_words(entries["hash"])
    # a value has nothing in its lowest 16 bits: MOST_BITS
    group = entries["value"].to_numpy() | entries["band"].to_numpy().astype(np.uint64)
    # equal hashes have equal sums; others that have may only come to be compared for nothing
    order = np.lexsort(((words * _SPREAD).sum(axis=1, dtype=np.uint64), group))
    words, rank, whole = words[order], rank[order], whole[order]
    new_group = _changes(group[order])
    new_hash = new_group | _changes(words)
    begins = np.nonzero(new_hash)[0]
    smallest = np.minimum.reduceat(rank, begins)
    of_wholes = np.minimum.reduceat(np.where(whole, rank, _NOBODY), begins)
    ranks = np.stack([smallest, of_wholes])
    found = Distinct(
        words=words[begins],
        start=np.append(np.nonzero(new_group[begins])[0], len(begins)),
        ranks=ranks,
        best=ranks << _SHIFT,
        distance=distance,
        most=most,
    )
    skipped = found.compare()
    place = np.cumsum(new_hash) - 1
    code = np.where(whole, found.best[0][place], found.best[1][place])
    best = np.full(len(keys), _NOBODY << _SHIFT)
    np.minimum.at(best, rank, code)
    loses = np.nonzero(best >> _SHIFT < np.arange(len(keys)))[0]
    of, apart = best[loses] >> _SHIFT, (best[loses] & 511).astype(np.int32)
    table = [keys.take(pa.array(loses)), keys.take(pa.array(of)), pa.array(apart)]
    return pa.table(table, schema=LOSERS), skipped


def _changes(values: np.ndarray) -> np.ndarray:
    """bool [n]: whether an item, or a row, differs from the one before it; the first one does."""
    changed = np.ones(len(values), bool)
    different = values[1:] != values[:-1]
    changed[1:] = different.any(axis=1) if different.ndim > 1 else different
    return changed
