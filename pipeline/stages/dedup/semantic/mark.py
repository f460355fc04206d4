"""Mark, the last stage of method semantic: its columns for one shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError
from pipeline.ranges import read_between
from pipeline.settings import location, operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.semantic.resolve import RESOLVED
from pipeline.stages.dedup.semantic.samples import Samples

#: drop reason of the samples that are marked
DUPLICATE = "semantic_duplicate"


@dataclass(frozen=True, kw_only=True)
class SemanticMarkConfig:
    """collected: the folder of the stage before. The others: see SemanticOptions."""

    input: str = location("")
    columns: list[str] | str = location(factory=list)
    collected: str = operational("")
    embedding: str
    where: str | None
    group: int = operational()


class SemanticMark(Stage):
    """Shard, the rows of its group -> a row for every sample of the shard: `semantic_duplicate_of`,
    `semantic_similarity`, `semantic_cluster`; null for those that took no part."""

    name = "dedup-semantic"
    redo_on_new_inputs = True

    def __init__(self, config: SemanticMarkConfig) -> None:
        """Raises ConfigError for a predicate that is none."""
        self.config = config
        self._samples = Samples(
            input=config.input, folders=config.columns, embedding=config.embedding, where=config.where
        )

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        collected = {s.number: s.input for s in inputs.shards(self.config.collected, ".parquet")}
        units = []
        for shard in self._samples.shards():
            group = shard.number // self.config.group
            if group not in collected:
                raise ConfigError(
                    f"{self.config.collected}: group {group} is missing; finish the collect stage of dedup "
                    "first, without --limit and over all tasks"
                )
            files = (shard.inputs[0], collected[group])
            units.append(Unit(number=shard.number, source={"shard": shard.number}, inputs=files))
        return units

    def run(self, unit: Unit, scratch: Path) -> Output:
        keys = columns.read_column(unit.inputs[0].url, set())["key"].combine_chunks()
        table = mark(keys, unit.inputs[1].url)
        lost = len(table) - table["semantic_duplicate_of"].null_count
        counts = Counts(len(table), len(table) - lost, {DUPLICATE: lost})
        return Output(parts={".parquet": table}, counts=counts)


def mark(keys: pa.StringArray, collected: str) -> pa.Table:
    """The columns of samples with these keys, in their order."""
    ends = pc.min_max(keys).as_py()
    rows = read_between(collected, "key", ends["min"] or "", ends["max"] or "", names=RESOLVED.names)
    place = pc.index_in(keys, value_set=rows["key"].combine_chunks())
    return pa.table(
        {
            "key": keys,
            "semantic_duplicate_of": rows["of"].take(place),
            "semantic_similarity": rows["similarity"].take(place),
            "semantic_cluster": rows["cluster"].take(place),
        }
    ).combine_chunks()
