"""Assign, the second stage of method semantic: the cluster of every sample of a group of shards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import columns, inputs
from pipeline.ranges import ROW_GROUP
from pipeline.settings import location
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.semantic import vectors
from pipeline.stages.dedup.semantic.samples import Samples, ShardFiles

#: smaller row groups would make the footer larger than what is read
SMALL_ROW_GROUP = 256


@dataclass(frozen=True, kw_only=True)
class AssignConfig:
    """centroids: the folder of the stage before. buckets: parts into which clusters are divided. The others:
    see SemanticOptions."""

    input: str = location("")
    columns: list[str] | str = location(factory=list)
    centroids: str = location("")
    embedding: str
    where: str | None
    group: int
    buckets: int


class Assigned(NamedTuple):
    """The samples of a shard (M) with their cluster and the cosine to its centroid."""

    keys: pa.StringArray
    codes: vectors.Codes
    cluster: npt.NDArray[np.int64]
    similarity: vectors.Floats


class Assign(Stage):
    """A group of shards -> bucket, cluster, key, cosine to the centroid, vector; sorted by the first three.

    A group is what the shards' numbers say (shard n is of group n // group), so that shards that come later
    go into groups of their own, or the last one.
    """

    name = "dedup-assign"
    redo_on_new_inputs = True

    def __init__(self, config: AssignConfig) -> None:
        """Raises ConfigError for a predicate that is none."""
        self.config = config
        self._samples = Samples(
            input=config.input, folders=config.columns, embedding=config.embedding, where=config.where
        )
        self._centroids: vectors.Codes | None = None

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        (centroids,) = inputs.shards(self.config.centroids, ".parquet")
        groups: dict[int, list[ShardFiles]] = defaultdict(list)
        for shard in self._samples.shards():
            groups[shard.number // self.config.group].append(shard)
        return [
            Unit(
                number=group,
                source={"group": group, "shards": [s.number for s in shards]},
                inputs=(centroids.input, *(i for s in shards for i in s.inputs)),
            )
            for group, shards in sorted(groups.items())
        ]

    def run(self, unit: Unit, scratch: Path) -> Output:
        if self._centroids is None:
            table = columns.read_parquet(unit.inputs[0].url)
            self._centroids = vectors.from_arrow(table["vector"])
        width = self._centroids.shape[1]
        parts, dropped = [], Counter[str]()
        for shard in _shards(unit):
            part = self._samples.read(shard)
            vectors.check_width(part.codes, width, shard.inputs[0].url)
            cluster, similarity = vectors.nearest(part.codes, self._centroids)
            parts.append(Assigned(part.keys, part.codes, cluster, similarity))
            dropped.update(part.dropped)
        table = self._table(parts, width)
        # one bucket is read at a time; vectors do not repeat
        rows = min(ROW_GROUP, max(SMALL_ROW_GROUP, len(table) // self.config.buckets))
        path = scratch / "assigned"
        pq.write_table(table, path, row_group_size=rows, compression="zstd", use_dictionary=False)
        counts = Counts(len(table) + dropped.total(), len(table), dropped)
        return Output(parts={".parquet": path}, counts=counts)

    def _table(self, parts: Sequence[Assigned], width: int) -> pa.Table:
        keys = pa.chunked_array([p.keys for p in parts], pa.string()).combine_chunks()
        cluster = np.concatenate([p.cluster for p in parts]).astype(np.int32)
        similarity = np.concatenate([p.similarity for p in parts])
        codes = np.concatenate([p.codes for p in parts])
        bucket = cluster % np.int32(self.config.buckets)
        order = np.lexsort((pc.rank(keys).to_numpy(), cluster, bucket))
        return pa.table(
            {
                "bucket": pa.array(bucket[order], pa.int32()),
                "cluster": pa.array(cluster[order], pa.int32()),
                "key": keys.take(pa.array(order)),
                "centroid_similarity": pa.array(similarity[order], pa.float32()),
                "vector": vectors.to_arrow(codes[order]),
            }
        )


def _shards(unit: Unit) -> list[ShardFiles]:
    """The shards of a group with what is read of each: the same number of files for all."""
    numbers, files = unit.source["shards"], unit.inputs[1:]
    each = len(files) // len(numbers)
    return [ShardFiles(n, files[at * each : (at + 1) * each]) for at, n in enumerate(numbers)]
