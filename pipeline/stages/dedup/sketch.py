"""Sketch, the first stage of dedup: the hashes of every success of an image shard, sorted by bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError
from pipeline.settings import location
from pipeline.shards.format import is_image
from pipeline.shards.reader import iter_samples
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.entries import (
    ENTRIES,
    IMAGE,
    KINDS,
    URL_CAPTION,
    bucket_of,
    pair_hash,
    text_hash,
    write_part,
)


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Which samples are the same.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset).
        on: what makes a duplicate: `url_caption` (both equal), `image` (the same sha256 of the downloaded
            file; of the picture in the shard where the images' parquet has no sha256).
        buckets: parts into which all hashes are divided; one part must fit in a worker's memory (about 100
            bytes for each of 2 * samples / buckets).
    """

    input: str = location("")
    on: tuple[str, ...] = KINDS
    buckets: int = 16


class Sketch(Stage):
    """Image shard -> entries (bucket, kind, hash, key)."""

    name = "dedup-sketch"
    suffixes = (".parquet", "_keys.parquet")

    def __init__(self, config: DedupConfig) -> None:
        """Raises ConfigError for kinds that are not known, or fewer than one bucket."""
        unknown = sorted(set(config.on) - set(KINDS))
        if unknown or not config.on:
            raise ConfigError(f"dedup on {list(config.on)}: give one or both of {', '.join(KINDS)}")
        if not 1 <= config.buckets <= 100_000:
            raise ConfigError(f"buckets {config.buckets} must be in 1..100000")
        self.config = config

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        found = inputs.shards(self.config.input, ".tar")
        return [Unit(number=s.number, source={"shard": s.number}, inputs=(s.input,)) for s in found]

    def run(self, unit: Unit, scratch: Path) -> Output:
        tar = unit.inputs[0].url
        images = columns.read_images(tar.rsplit(".", 1)[0] + ".parquet")
        images = images.filter(pc.equal(images["status"], columns.SUCCESS))
        rows = [(bucket_of(h, self.config.buckets), k, h, key) for k, h, key in self._hashes(images, tar)]
        rows.sort()
        arrays = [pa.array([r[at] for r in rows], kind) for at, kind in enumerate(ENTRIES.types)]
        table = pa.table(arrays, schema=ENTRIES)
        keys = pa.table({"key": images["key"]})
        parts = {".parquet": write_part(table, scratch / "entries"), "_keys.parquet": keys}
        return Output(parts=parts, counts=Counts(len(images), len(images)))

    def _hashes(self, images: pa.Table, tar: str) -> Iterator[tuple[int, bytes, str]]:
        keys = images["key"].to_pylist()
        if URL_CAPTION in self.config.on:
            kind = KINDS.index(URL_CAPTION)
            pairs = zip(keys, images["url"].to_pylist(), images["caption"].to_pylist(), strict=True)
            yield from ((kind, pair_hash(url or "", caption), key) for key, url, caption in pairs)
        if IMAGE in self.config.on:
            kind = KINDS.index(IMAGE)
            if "sha256" in images.column_names:
                hashes = zip(keys, images["sha256"].to_pylist(), strict=True)
                yield from ((kind, text_hash(value), key) for key, value in hashes if value)
            else:
                yield from ((kind, digest, key) for key, digest in _hash_pictures(tar, set(keys)))


def _hash_pictures(tar: str, keys: set[str]) -> Iterator[tuple[str, bytes]]:
    for sample in iter_samples(tar):
        pictures = [data for suffix, data in sorted(sample.members.items()) if is_image(suffix)]
        if sample.key in keys and pictures:
            yield sample.key, hashlib.sha256(b"".join(pictures)).digest()[:16]
