"""Sketch, the first stage of method exact: the hashes of every row that takes part, sorted by bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import candidates, columns, inputs
from pipeline.errors import ConfigError
from pipeline.ranges import write_sorted
from pipeline.shards.format import is_image
from pipeline.shards.reader import iter_samples
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.config import DedupConfig
from pipeline.stages.dedup.exact.entries import (
    IMAGE,
    KINDS,
    PHASH_CAPTION,
    URL,
    URL_CAPTION,
    make_entries,
    pair_hash,
    text_hash,
)

#: the column of kind phash_caption
PHASH = "phash"


class Sketch(Stage):
    """Image shard, or part of the candidates -> entries (bucket, kind, hash, key), and the keys."""

    name = "dedup-sketch"
    suffixes = (".parquet", "_keys.parquet")

    def __init__(self, config: DedupConfig) -> None:
        """Raises ConfigError for kinds that are not known, or fewer than one bucket."""
        unknown = sorted(set(config.kinds()) - set(KINDS))
        if unknown or not config.kinds():
            raise ConfigError(f"dedup on {list(config.kinds())}: give one or several of {', '.join(KINDS)}")
        if not 1 <= config.buckets <= 100_000:
            raise ConfigError(f"buckets {config.buckets} must be in 1..100000")
        if config.columns and PHASH_CAPTION not in config.kinds():
            raise ConfigError(
                f"columns {config.columns!r} are there for --on {PHASH_CAPTION}; leave them away"
            )
        self.config = config

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        if candidates.is_candidates(self.config.input):
            if pictures := {IMAGE, PHASH_CAPTION} & set(self.config.kinds()):
                raise ConfigError(
                    f"dedup on {min(pictures)}: {self.config.input!r} holds candidates, whose pictures are "
                    f"not fetched yet; give {URL_CAPTION} or {URL}, and compare images after the crawl"
                )
            found, source = candidates.parts(self.config.input), "part"
        else:
            found, source = inputs.shards(self.config.input, ".tar"), "shard"
        folders = columns.open_folders(self.config.columns)
        units = [
            Unit(
                number=s.number,
                source={source: s.number},
                inputs=(s.input, *(folder.shard(s.number) for folder in folders)),
            )
            for s in found
        ]
        if PHASH_CAPTION in self.config.kinds():
            self._check_phash(units[0])
        return units

    def _check_phash(self, unit: Unit) -> None:
        images, *sidecars = (i.url for i in unit.inputs)
        schema = columns.joined_schema(inputs.sibling(images, ".parquet"), sidecars)
        if PHASH not in schema.names or not pa.types.is_string(schema.field(PHASH).type):
            raise ConfigError(
                f"dedup on {PHASH_CAPTION} needs the text column {PHASH!r}; make it by `pairmill score "
                "--kind hash` and name its folder in --columns"
            )

    def run(self, unit: Unit, scratch: Path) -> Output:
        url = unit.inputs[0].url
        if "part" in unit.source:
            rows = candidates.read_part(url, {"url", "caption"})
        else:
            rows = columns.read_images(inputs.sibling(url, ".parquet"))
            sidecars = [i.url for i in unit.inputs[1:]]
            rows = columns.join(rows, ((s, columns.read_column(s, {PHASH})) for s in sidecars))
            rows = rows.filter(pc.equal(rows["status"], columns.SUCCESS))
        kinds = [(KINDS.index(kind), *self._hashes(kind, rows, url)) for kind in self.config.kinds()]
        entries = make_entries(kinds, self.config.buckets)
        keys = pa.table({"key": rows["key"]})
        parts = {".parquet": write_sorted(entries, scratch / "entries"), "_keys.parquet": keys}
        return Output(parts=parts, counts=Counts(len(rows), len(rows)))

    def _hashes(self, kind: str, rows: pa.Table, tar: str) -> tuple[list[bytes], pa.Array]:
        """The hashes of the rows that have what is compared, and their keys."""
        named = {URL: "url", URL_CAPTION: "url", PHASH_CAPTION: PHASH}
        if kind in named:
            rows = rows.filter(pc.is_valid(rows[named[kind]]))
        keys = rows["key"].combine_chunks()
        if kind in (URL_CAPTION, PHASH_CAPTION):
            pairs = zip(rows[named[kind]].to_pylist(), rows["caption"].to_pylist(), strict=True)
            return [pair_hash(name, caption) for name, caption in pairs], keys
        if kind == URL:
            return [text_hash(url) for url in rows["url"].to_pylist()], keys
        if "sha256" in rows.column_names:
            values = rows["sha256"].to_pylist()
            given = pa.array([bool(value) for value in values], pa.bool_())
            return [text_hash(value) for value in values if value], keys.filter(given)
        found = list(_hash_pictures(tar, set(keys.to_pylist())))
        return [digest for _, digest in found], pa.array([key for key, _ in found], pa.string())


def _hash_pictures(tar: str, keys: set[str]) -> Iterator[tuple[str, bytes]]:
    for sample in iter_samples(tar):
        pictures = [data for suffix, data in sorted(sample.members.items()) if is_image(suffix)]
        if sample.key in keys and pictures:
            yield sample.key, hashlib.sha256(b"".join(pictures)).digest()[:16]
