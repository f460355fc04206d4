"""Kind `hash`: what near duplicates and benchmark pictures are found by (`pipeline.phash`).

    pairmill score --kind hash --input images --output columns/hash

`phash` is the well-known 64-bit hash, for lists that others made. `phash_long` (256 bits) and `phash_inner`
(256 bits of each of four inner crops) are what `dedup --method near` and `--method contamination` compare.
`picture_sha256` is that of the picture's bytes in the shard, which may be smaller than what was downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.phash import CorruptPictureError, decode_grey, outlines, phash64, to_hex
from pipeline.pictures import prepared
from pipeline.stages.score.kind import NO_PICTURE, UNDECODABLE, Judge, Judgement, Kind, Row

if TYPE_CHECKING:
    from pipeline.stages.score.config import ScoreConfig

#: pictures that wait or are being decoded, for each thread
AHEAD = 4


class Hash(Kind):
    """Four columns, in hex digits: 16, 64, 64 for each inner crop, 64."""

    column = "phash"
    pictures = True
    options = frozenset({"decode_threads"})

    def schema(self, name: str) -> pa.Schema:
        return pa.schema(
            [
                (name, pa.string()),
                (f"{name}_long", pa.string()),
                (f"{name}_inner", pa.string()),
                ("picture_sha256" if name == self.column else f"{name}_sha256", pa.string()),
            ]
        )

    def load(self, config: ScoreConfig) -> Judge:
        return HashJudge(config.decode_threads)


class HashJudge:
    """Decodes and hashes in threads."""

    name = "phash"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        for row, found in prepared(rows, _values, threads=self.threads, ahead=AHEAD * self.threads):
            if isinstance(found, str):
                yield Judgement(row.key, None, found)
            else:
                yield Judgement(row.key, found)


def _values(row: Row) -> tuple[str, str, str, str] | str:
    """The values of one row, or why it has none."""
    if row.picture is None:
        return NO_PICTURE
    try:
        grey = decode_grey(row.picture)
    except CorruptPictureError:
        return UNDECODABLE
    long = outlines(grey)
    return phash64(grey), to_hex(long[0]), to_hex(long[1:]), hashlib.sha256(row.picture).hexdigest()
