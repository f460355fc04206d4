"""The score stage: one row for every success of an image shard, or for every candidate, with a judgement.

    pairmill score --kind clip --model runs/scorer/model --input images --output columns/clip
    pairmill score --kind language --input candidates --output columns/language

A row that cannot be judged has null and is counted by reason; it fails nothing. What a kind judges, how it is
loaded and which columns it writes stands in its own file (`pipeline.stages.score.kind`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import candidates
from pipeline.asked import Asked
from pipeline.errors import ConfigError
from pipeline.pictures import Row, rows_of, rows_with_pictures
from pipeline.stage import Counts, Input, Output, Resources, Stage, Unit
from pipeline.stages.score.clip import Clip
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.embedding import Embedding
from pipeline.stages.score.hashes import Hash
from pipeline.stages.score.kind import Judge, Kind
from pipeline.stages.score.language import Language
from pipeline.stages.score.quality import Quality
from pipeline.stages.score.safety import Safety

KINDS: dict[str, Kind] = {
    "clip": Clip(),
    "embedding": Embedding(),
    "hash": Hash(),
    "language": Language(),
    "quality": Quality(),
    "safety": Safety(),
}

#: options of all kinds
COMMON = frozenset({"input", "kind", "columns", "where", "name", "cpus"})


class ScoreStage(Stage):
    """Image shard, or part of the candidates -> the columns of one kind."""

    name = "score"

    def __init__(self, config: ScoreConfig) -> None:
        """Raises ConfigError for values that no worker could start with."""
        if config.kind not in KINDS:
            raise ConfigError(f"kind {config.kind!r} must be one of {', '.join(KINDS)}")
        self.kind = KINDS[config.kind]
        if config.name is None:
            config = dataclasses.replace(config, name=self.kind.column)
        self.config = config
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self._name) or self._name == "key":
            raise ConfigError(f"name {self._name!r} must be a column name such as clip_score or clip_b32")
        if config.cpus <= 0:
            raise ConfigError(f"cpus {config.cpus} must be above 0")
        self._refuse_options_of_others()
        self.kind.check(config)
        self.needs = self.kind.needs(config)
        self.asked = Asked(
            input=config.input,
            columns=config.columns,
            where=config.where,
            needs=("caption", *self.needs),
            uses=self.kind.uses,
        )
        self._judge: Judge | None = None
        self._found: tuple[Input, ...] | None = None

    @property
    def _name(self) -> str:
        assert self.config.name is not None
        return self.config.name

    @property
    def schema(self) -> pa.Schema:
        """The columns that it writes beside `key`."""
        return self.kind.columns(self._name, self.config, self._judge)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.config.cpus, gpus=self.config.gpus)

    def _refuse_options_of_others(self) -> None:
        for field in dataclasses.fields(ScoreConfig):
            known = field.name in COMMON or field.name in self.kind.options
            if not known and getattr(self.config, field.name) != field.default:
                raise ConfigError(
                    f"{field.name} {getattr(self.config, field.name)!r} means nothing to kind "
                    f"{self.config.kind!r}; leave it away"
                )

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        if self.kind.sees(self.config) and candidates.is_candidates(self.config.input):
            raise ConfigError(
                f"input {self.config.input!r} holds candidates, and kind {self.config.kind!r} looks at "
                "pictures; crawl them first, and score the crawl's output"
            )
        units = self.asked.units(self._shared())
        if self.needs:
            self.kind.check_input(self.asked.schema(units[0]), self.config)
        return units

    def unit_over(self, number: int, shard: Input) -> Unit:
        """The unit over one shard of images that is not in its folder yet (`pipeline.fused`)."""
        return Unit(number=number, source={"shard": number}, inputs=(shard, *self._shared()))

    def _shared(self) -> tuple[Input, ...]:
        """What all units depend on, found once: it may be the hash of a large model."""
        if self._found is None:
            self._found = self.kind.inputs(self.config)
        return self._found

    def start(self) -> None:
        self._judge = self.kind.load(self.config)

    def run(self, unit: Unit, scratch: Path) -> Output:
        assert self._judge is not None, "start() loads the model"
        table, refused = self.asked.read(unit)
        dropped = Counter(reason for reason in refused.to_pylist() if reason is not None)
        found: dict[str, tuple[Any, ...]] = {}
        for key, values, reason in self._judge.judge(self._rows(unit, table.filter(pc.is_null(refused)))):
            if values is not None:
                found[key] = values
            else:
                assert reason is not None
                dropped[reason] += 1
        return Output(
            parts={".parquet": self._table(table["key"], found)},
            counts=Counts(len(table), len(found), dropped),
            notes=self.kind.notes(self._judge),
        )

    def _rows(self, unit: Unit, asked: pa.Table) -> Iterator[Row]:
        """What the kind looks at, in an order that the shard alone gives."""
        brought = (*self.needs, *(name for name in self.kind.uses if name in asked.column_names))
        if "shard" in unit.source and self.kind.sees(self.config):
            return rows_with_pictures(unit.inputs[0].url, asked, brought)
        return rows_of(asked, brought)

    def _table(self, keys: pa.ChunkedArray, found: dict[str, tuple[Any, ...]]) -> pa.Table:
        schema = self.schema
        rows = [found.get(key) for key in keys.to_pylist()]
        arrays = [
            pa.array([None if row is None else row[at] for row in rows], field.type)
            for at, field in enumerate(schema)
        ]
        return pa.table([pa.array(keys.to_pylist(), pa.string()), *arrays], names=["key", *schema.names])
