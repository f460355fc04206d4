"""Centroids, the first stage of method semantic: k-means on a sample, once for all shards.

They stay as they are when shards are added, so that the older ones keep their clusters. Other embeddings (of
another model) need other centroids: that is refused without `--overwrite`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError, InputError
from pipeline.ranges import READERS
from pipeline.settings import location
from pipeline.stage import Counts, Input, Output, Resources, Stage, Unit
from pipeline.stages.dedup.semantic import kmeans, vectors
from pipeline.stages.dedup.semantic.config import SemanticOptions
from pipeline.stages.dedup.semantic.samples import Samples, ShardFiles

#: shards that tell how many samples there are in all
LOOKED_AT = 16
#: sampled rows of a cluster, and rows that are read for one that is sampled: shards are read
#: whole, and rows of few shards would be alike
ROWS_PER_CLUSTER, READ_FOR_ONE = 64, 4


@dataclass(frozen=True, kw_only=True)
class CentroidsConfig:
    """See SemanticOptions."""

    input: str = location("")
    columns: list[str] | str = location(factory=list)
    embedding: str
    where: str | None
    clusters: int | None
    sample: int | None
    iterations: int
    split: float | None
    seed: int
    threads: int


class Centroids(Stage):
    """All embeddings -> one table: cluster, vector."""

    name = "dedup-centroids"

    def __init__(self, config: CentroidsConfig) -> None:
        """Raises ConfigError for a predicate that is none."""
        self.config = config
        self._samples = Samples(
            input=config.input, folders=config.columns, embedding=config.embedding, where=config.where
        )
        self._faiss: Any = None
        self._shards: list[ShardFiles] = []

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.config.threads)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        last = self._samples.shards()[-1].number
        model = Input(url=self.config.input, fingerprint=self._samples.model())
        if planned and planned[0].inputs == (Input(url="", fingerprint=model.fingerprint),):
            last = planned[0].source["through"]
        return [Unit(number=0, source={"through": last}, inputs=(model,))]

    def start(self) -> None:
        self._faiss = kmeans.load_faiss(self.config.threads)
        self._shards = self._samples.shards()

    def run(self, unit: Unit, scratch: Path) -> Output:
        shards = [s for s in self._shards if s.number <= unit.source["through"]]
        shards.sort(key=lambda s: _draw(self.config.seed, str(s.number)))
        sample, rows, read = self._sample(shards)
        if not len(sample):
            raise InputError(f"{self.config.columns}: no sample has an embedding; score the images first")
        clusters = self.config.clusters or _automatic(rows)
        centroids = kmeans.train(
            self._faiss,
            sample,
            clusters,
            iterations=self.config.iterations,
            seed=self.config.seed,
            split=self.config.split,
        )
        table = pa.table(
            {"cluster": pa.array(range(len(centroids)), pa.int32()), "vector": vectors.to_arrow(centroids)}
        )
        notes = {"sample": len(sample), "rows_about": rows, "rows_read": read}
        return Output(parts={".parquet": table}, counts=Counts(len(centroids), len(centroids)), notes=notes)

    def _sample(self, shards: Sequence[ShardFiles]) -> tuple[vectors.Codes, int, int]:
        """(distinct codes in an order that is drawn, about how many samples there are, rows read)."""
        kept = _Smallest()
        about = read = wanted = 0
        for seen, (codes, draws) in enumerate(self._parts(shards), start=1):
            kept.add(codes, draws, name=str(self.config.columns))
            read += len(codes)
            if seen == min(LOOKED_AT, len(shards)):
                about = round(read / seen * len(shards))
                clusters = self.config.clusters or _automatic(about)
                wanted = self.config.sample or ROWS_PER_CLUSTER * clusters
            if wanted and kept.rows > 2 * wanted:
                kept.cut(wanted)
            if wanted and read >= READ_FOR_ONE * wanted:
                break
        kept.cut(wanted)
        return _distinct(kept.codes[0]), about, read

    def _parts(self, shards: Sequence[ShardFiles]) -> Iterator[tuple[vectors.Codes, npt.NDArray[np.uint64]]]:
        """The codes of shard after shard, each with a number drawn for its key; a few are read ahead."""

        def read(shard: ShardFiles) -> tuple[vectors.Codes, npt.NDArray[np.uint64]]:
            part = self._samples.read(shard)
            draws = [_draw(self.config.seed, key) for key in part.keys.to_pylist()]
            return part.codes, np.array(draws, np.uint64)

        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(shards), READERS):
                yield from pool.map(read, shards[start : start + READERS])


class _Smallest:
    """Rows with the smallest draws, as they come: a sample that does not depend on their order."""

    def __init__(self) -> None:
        self.codes: list[vectors.Codes] = []
        self._draws: list[npt.NDArray[np.uint64]] = []
        self.rows = 0

    def add(self, codes: vectors.Codes, draws: npt.NDArray[np.uint64], *, name: str) -> None:
        if self.codes:
            vectors.check_width(codes, self.codes[0].shape[1], name)
        self.codes.append(codes)
        self._draws.append(draws)
        self.rows += len(codes)

    def cut(self, rows: int) -> None:
        """Leaves so many, in the order of their draws, as one block."""
        draws = np.concatenate(self._draws)
        best = np.argsort(draws, kind="stable")[:rows]
        self._draws, self.codes = [draws[best]], [np.concatenate(self.codes)[best]]
        self.rows = len(best)


def _draw(seed: int, name: str) -> int:
    """A number of 64 bits, given by (seed, name) alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")


def _automatic(rows: int) -> int:
    """Clusters of which finding one costs as much as the comparisons within: k n = n^2 / 2 k."""
    return max(1, round(math.sqrt(rows / 2)))


def _distinct(codes: vectors.Codes) -> vectors.Codes:
    """Each vector once, in the order of their first ones."""
    rows = np.ascontiguousarray(codes).view(np.dtype((np.void, 2 * codes.shape[1]))).ravel()
    _, first = np.unique(rows, return_index=True)
    return codes[np.sort(first)]


def check_options(options: SemanticOptions) -> None:
    """Raises ConfigError for numbers that no stage can work with."""
    for name in ("clusters", "sample", "iterations", "group", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"semantic.{name} {value} must be 1 or more")
    if not 0 < options.eps < 1:
        raise ConfigError(f"semantic.eps {options.eps} must be above 0 and below 1, such as 0.05")
    if options.split is not None and options.split <= 1:
        raise ConfigError(f"semantic.split {options.split} must be above 1, or null")
