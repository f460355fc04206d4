"""The options of dedup, for all methods. Light to import: the command line is parsed by it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.settings import location, since
from pipeline.stages.dedup.contamination.config import ContaminationOptions
from pipeline.stages.dedup.near.config import NearOptions
from pipeline.stages.dedup.semantic.config import SemanticOptions


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Which rows are the same.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset); for method exact also a
            candidates folder.
        method: `exact`, the same URL, caption or file; `near`, pictures that look alike; `contamination`,
            pictures that look like one of a benchmark; `semantic`, pictures whose embeddings lie close.
        on: method exact: what makes a duplicate, one or several: `url_caption` (both equal), `url` (whatever
            the caption), `image` (the same sha256 of the downloaded file; of the picture in the shard where
            the images' parquet has no sha256), `phash_caption` (COYO's: the same 64-bit pHash and caption).
            Null: `url_caption`, and of images `image` too.
        buckets: parts into which all hashes are divided; one part must fit in a worker's memory (exact: about
            250 bytes for each of rows * kinds / buckets).
        columns: column folders over the same input that a method reads: near, contamination and
            `phash_caption` need that of `score --kind hash`, semantic that of `score --kind embedding`.
        against: method contamination: benchmark pictures, each NAME=PLACE; a place is a folder of pictures, a
            folder of shards, a hash column folder, or a list of hashes.
        near: options of method near.
        contamination: options of method contamination.
        semantic: options of method semantic.
    """

    input: str = location("")
    on: list[str] | str | tuple[str, ...] | None = None
    buckets: int = 16
    method: str = since("exact")
    columns: list[str] | str = location(factory=list)
    against: list[str] | str = location(factory=list)
    near: NearOptions = since(NearOptions())
    contamination: ContaminationOptions = since(ContaminationOptions())
    semantic: SemanticOptions = since(SemanticOptions())

    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.on] if isinstance(self.on, str) else self.on or ()))
