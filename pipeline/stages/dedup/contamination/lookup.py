"""The benchmark pictures in memory, and for each picture of a shard the nearest of them.

Hashes are looked up by bands. Long ones have four bands of 16 bits, so that all that differ in up to 3 bits
are found for sure, and others nearly always; short ones one band more than the bits in which they may differ,
so all are found.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.phash import BITS, WORDS, alike, band_values, hamming
from pipeline.stages.dedup.contamination.entries import BENCHMARK, words_of
from pipeline.stages.dedup.hashes import HASHES

LONG_BANDS, LONG_BITS = 4, 16
#: pairs that are compared at a time
_PAIRS = 1 << 20
#: a distance and the place of a label as one number, whose order is theirs
_SHIFT = np.int64(40)
NONE = np.int64(1) << np.int64(60)
#: a bit of a 64-bit hash in bits of 256
SHORT_BIT = BITS // 64


class Bands:
    """Hashes under the values of their bands."""

    def __init__(self, hashes: np.ndarray, *, bands: int, bits: int) -> None:
        """hashes: uint64 [m, words]."""
        self.hashes, self.bands, self.bits = hashes, bands, bits
        values = band_values(hashes, bands, bits)
        self.order = np.argsort(values, axis=0, kind="stable")
        self.values = np.take_along_axis(values, self.order, axis=0)

    def pairs(
        self, queries: np.ndarray, distance: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(places of queries, places of hashes, bits in which they differ) of pairs at most `distance` apart
        that have the value of a band in common; those that have several come again.

        Args:
            queries: uint64 [q, words].
        """
        wanted = band_values(queries, self.bands, self.bits)
        for band in range(self.bands):
            low = np.searchsorted(self.values[:, band], wanted[:, band], "left")
            many = np.searchsorted(self.values[:, band], wanted[:, band], "right") - low
            asking = np.nonzero(many)[0]
            parts = np.cumsum(many[asking]) // _PAIRS
            for part in range(int(parts[-1]) + 1 if len(parts) else 0):
                rows = asking[parts == part]
                query = np.repeat(rows, many[rows])
                ends = np.cumsum(many[rows])
                step = np.arange(len(query)) - np.repeat(ends - many[rows], many[rows])
                found = self.order[low[query] + step, band]
                apart = hamming(queries[query], self.hashes[found])
                near = apart <= distance
                yield query[near], found[near], apart[near]


class Lookup:
    """All benchmark pictures.

    Attributes:
        labels: SET/name, sorted.
    """

    def __init__(self, table: pa.Table, *, distance: int, short_distance: int) -> None:
        """table: as BENCHMARK has it."""
        self.distance, self.short_distance = distance, short_distance
        table = pa.concat_tables([BENCHMARK.empty_table(), table])
        label = pc.binary_join_element_wise(table["set"], table["name"], "/")
        table = table.append_column("label", label).sort_by("label").combine_chunks()
        self.labels = table["label"].combine_chunks()
        place = np.arange(len(table))
        has = table["long"].is_valid().to_numpy()
        long = words_of(table["long"].drop_null(), HASHES * WORDS)
        # of equal ones the first label is nearest; sets may have thousands of blank pictures
        long, first = np.unique(long, axis=0, return_index=True)
        hashes, self._owner, self._whole = _flat(long.reshape(-1, HASHES, WORDS), place[has][first])
        self._long = Bands(hashes, bands=LONG_BANDS, bits=LONG_BITS)
        only_short = pc.and_(table["short"].is_valid(), pc.is_null(table["long"])).to_numpy()
        short, first = np.unique(words_of(table["short"].filter(pa.array(only_short)), 1), return_index=True)
        self._short_owner = place[only_short][first]
        bands = short_distance + 1
        self._short = Bands(short[:, None], bands=bands, bits=64 // bands)
        self._sha256 = table["digest"].combine_chunks()

    def __len__(self) -> int:
        return len(self.labels)

    def by_long(self, hashes: np.ndarray) -> np.ndarray:
        """int64 [n]: distance and place of the label as one number (`split`), or NONE.

        Args:
            hashes: uint64 [n, HASHES, WORDS].
        """
        different, back = np.unique(hashes.reshape(len(hashes), -1), axis=0, return_inverse=True)
        queries, row, whole = _flat(different.reshape(-1, HASHES, WORDS), np.arange(len(different)))
        best = np.full(len(different), NONE)
        for query, found, apart in self._long.pairs(queries, self.distance):
            fits = alike(queries[query], self._long.hashes[found], apart, self.distance)
            fits &= whole[query] | self._whole[found]
            np.minimum.at(best, row[query[fits]], apart[fits] << _SHIFT | self._owner[found[fits]])
        return best[back.ravel()]

    def by_short(self, hashes: np.ndarray) -> np.ndarray:
        """The same of 64-bit hashes, uint64 [n], of the entries that have no others."""
        best = np.full(len(hashes), NONE)
        for query, found, apart in self._short.pairs(hashes[:, None], self.short_distance):
            np.minimum.at(best, query, (apart * SHORT_BIT) << _SHIFT | self._short_owner[found])
        return best

    def by_sha256(self, digests: pa.Array) -> np.ndarray:
        """The same of sha256 (binary, nulls are none): distance 0 where a file is the same."""
        place = pc.index_in(digests, value_set=self._sha256, skip_nulls=True)
        return pc.fill_null(place.cast(pa.int64()), int(NONE)).to_numpy()

    def split(self, best: np.ndarray) -> tuple[pa.Array, pa.Array]:
        """(label, distance) of each; null for NONE."""
        none = best == NONE
        place = pa.array(np.where(none, 0, best & (1 << 40) - 1), mask=none)
        return self.labels.take(place), pa.array((best >> _SHIFT).astype(np.int32), mask=none)


def _flat(hashes: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes [m, WORDS], whose each is, whether it is of the whole) of hashes [n, HASHES, WORDS]; an inner
    crop's that its picture has already is left out."""
    first = np.ones(hashes.shape[:2], bool)
    for later in range(1, HASHES):
        first[:, later] = ~(hashes[:, :later] == hashes[:, later : later + 1]).all(axis=2).any(axis=1)
    picture, which = np.nonzero(first)
    return hashes[picture, which], owner[picture], which == 0
