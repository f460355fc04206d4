"""Resolve, the third stage of method semantic: in one bucket of clusters, who means the same as whom."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import inputs
from pipeline.errors import InputError
from pipeline.inputs import Shard
from pipeline.ranges import read_between, write_sorted
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.parts import read_all
from pipeline.stages.dedup.semantic import vectors
from pipeline.stages.dedup.semantic.config import FAR_FROM_CENTROID
from pipeline.stages.dedup.semantic.pairs import find_earlier

#: what is read of a bucket, the vectors last
FACTS = ["cluster", "key", "centroid_similarity"]
#: a sample as it leaves: `of` is null unless it is a duplicate, `similarity` for the first of its cluster
RESOLVED = pa.schema(
    [("key", pa.string()), ("cluster", pa.int32()), ("similarity", pa.float32()), ("of", pa.string())]
)


@dataclass(frozen=True, kw_only=True)
class SemanticResolveConfig:
    """assigned: the folder of the stage before. The others: see SemanticOptions."""

    assigned: str = operational("")
    buckets: int
    eps: float
    keep: str


class SemanticResolve(Stage):
    """All groups -> for one bucket a row for each of its samples, sorted by key."""

    name = "dedup-semantic-resolve"
    redo_on_new_inputs = True

    def __init__(self, config: SemanticResolveConfig) -> None:
        self.config = config
        self._groups: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.assigned, inputs.shards(self.config.assigned, ".parquet"))
        return [Unit(number=b, source={"bucket": b}, inputs=(whole,)) for b in range(self.config.buckets)]

    def start(self) -> None:
        self._groups = inputs.shards(self.config.assigned, ".parquet")

    def run(self, unit: Unit, scratch: Path) -> Output:
        if inputs.whole_folder(self.config.assigned, self._groups) != unit.inputs[0]:
            raise InputError(f"{self.config.assigned}: it changed since the run was planned; run dedup again")
        facts, codes = self._read(unit.source["bucket"])
        table = resolve(facts, codes, eps=self.config.eps, keep=self.config.keep)
        sizes = np.unique(facts["cluster"].to_numpy(), return_counts=True)[1]
        notes = {"clusters": len(sizes), "largest": int(sizes.max(initial=0))}
        counts = Counts(len(table), len(table))
        return Output(
            parts={".parquet": write_sorted(table, scratch / "resolved")}, counts=counts, notes=notes
        )

    def _read(self, bucket: int) -> tuple[pa.Table, vectors.Codes]:
        """The facts of a bucket's samples, and their vectors in the same order."""
        names = [*FACTS, "vector"]
        tables = read_all(self._groups, lambda url: read_between(url, "bucket", bucket, bucket, names=names))
        facts = pa.concat_tables([table.select(FACTS) for table in tables]).combine_chunks()
        pieces = [vectors.from_arrow(table["vector"]) for table in tables]
        del tables
        width = pieces[0].shape[1]
        codes = np.empty((sum(map(len, pieces)), width), np.int16)
        at = len(codes)
        while pieces:  # each is given back as it is copied: a bucket is in memory once
            piece = pieces.pop()
            codes[at - len(piece) : at] = piece
            at -= len(piece)
        return facts, codes


def resolve(facts: pa.Table, codes: vectors.Codes, *, eps: float, keep: str) -> pa.Table:
    """Compares the samples of each cluster.

    Args:
        facts: key, cluster, centroid_similarity of each sample.
        codes: (N, D), in the same order.
    """
    by = ["cluster", *(["centroid_similarity"] if keep == FAR_FROM_CENTROID else []), "key"]
    indexes = pc.sort_indices(facts, [(name, "ascending") for name in by])
    order = indexes.to_numpy()
    facts = facts.take(indexes)
    cluster = facts["cluster"].to_numpy()
    before = np.full(len(order), -1, np.int64)
    similarity = np.full(len(order), np.nan, np.float32)
    bounds = [*np.flatnonzero(np.diff(cluster, prepend=-1)), len(order)]
    for start, stop in itertools.pairwise(bounds):
        found, similarity[start:stop] = find_earlier(codes[order[start:stop]])
        before[start:stop] = np.where(found < 0, -1, found + start)
    lost = similarity.astype(np.float64) > 1 - eps
    of = facts["key"].take(pa.array(before, mask=~lost))
    alone = np.isnan(similarity)
    columns = [facts["key"], facts["cluster"], pa.array(similarity, mask=alone), of]
    return pa.table(columns, schema=RESOLVED).sort_by("key").combine_chunks()
