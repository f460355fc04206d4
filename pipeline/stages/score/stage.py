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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import candidates, columns, inputs
from pipeline.errors import ConfigError
from pipeline.pictures import rows_of, rows_with_pictures
from pipeline.predicate import NOT_SELECTED, Predicate
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
        if config.columns and config.where is None and not self.needs:
            raise ConfigError(f"columns {config.columns!r} are there for --where, which is not given")
        self.where = Predicate(config.where) if config.where is not None else None
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
        of_candidates = candidates.is_candidates(self.config.input)
        if of_candidates and self.kind.sees(self.config):
            raise ConfigError(
                f"input {self.config.input!r} holds candidates, and kind {self.config.kind!r} looks at "
                "pictures; crawl them first, and score the crawl's output"
            )
        if of_candidates:
            found, source = candidates.parts(self.config.input), "part"
        else:
            found, source = inputs.shards(self.config.input, ".tar"), "shard"
        folders = columns.open_folders(self.config.columns)
        units = [
            Unit(
                number=s.number,
                source={source: s.number},
                inputs=(s.input, *self._shared(), *(folder.shard(s.number) for folder in folders)),
            )
            for s in found
        ]
        if self.where is not None or self.needs:
            self._check_columns(self._schema(units[0]))
        return units

    def _check_columns(self, schema: pa.Schema) -> None:
        if self.where is not None:
            self.where.check(schema)
        missing = [name for name in self.needs if name not in schema.names]
        if missing:
            raise ConfigError(
                f"kind {self.config.kind!r} with these options reads column {missing[0]!r}, which neither "
                f"the input nor --columns has; known columns: {', '.join(schema.names)}"
            )
        self.kind.check_input(schema, self.config)

    def unit_over(self, number: int, shard: Input) -> Unit:
        """The unit over one shard of images that is not in its folder yet (`pipeline.fused`)."""
        return Unit(number=number, source={"shard": number}, inputs=(shard, *self._shared()))

    def _shared(self) -> tuple[Input, ...]:
        """What all units depend on, found once: it may be the hash of a large model."""
        if self._found is None:
            self._found = self.kind.inputs(self.config)
        return self._found

    def _schema(self, unit: Unit) -> pa.Schema:
        url = unit.inputs[0].url
        if "part" in unit.source:
            return candidates.joined_schema(url, self._sidecars(unit))
        return columns.joined_schema(_parquet_of(url), self._sidecars(unit))

    def _sidecars(self, unit: Unit) -> list[str]:
        own = len(unit.inputs) - len(columns.listed(self.config.columns))
        return [i.url for i in unit.inputs[own:]]

    def start(self) -> None:
        self._judge = self.kind.load(self.config)

    def run(self, unit: Unit, scratch: Path) -> Output:
        url, sidecars = unit.inputs[0].url, self._sidecars(unit)
        named = {
            *(name.lower() for name in self.needs),
            *(self.where.columns if self.where is not None else ()),
        }
        if "part" in unit.source:
            table, tar = candidates.read_part(url, {"caption", *named}), None
        else:
            table, tar = columns.read_images(_parquet_of(url)), url
        table = columns.join(table, ((s, columns.read_column(s, named)) for s in sidecars))
        judged, counts = self.judge(table, tar)
        assert self._judge is not None
        return Output(parts={".parquet": judged}, counts=counts, notes=self.kind.notes(self._judge))

    def judge(self, table: pa.Table, tar: str | None) -> tuple[pa.Table, Counts]:
        """The sidecar of one shard: a row for every success of `table`, or for every row where it has no
        `status`, and how many were judged or not, by reason.

        Args:
            table: `key`, `caption`, what the kind needs and what `where` names; `status` for images.
            tar: where the pictures are; None for a kind that needs none.
        """
        assert self._judge is not None, "start() loads the model"
        if "status" in table.column_names:
            table = table.filter(pc.equal(table["status"], columns.SUCCESS))
        dropped: Counter[str] = Counter()
        asked = table
        if self.where is not None:
            refused = self.where.refusals(table, NOT_SELECTED)
            dropped.update(r for r in refused.to_pylist() if r is not None)
            asked = table.filter(pc.is_null(refused))
        found: dict[str, tuple[Any, ...]] = {}
        brought = (*self.needs, *(name for name in self.kind.uses if name in table.column_names))
        if self.kind.sees(self.config) and tar:
            rows = rows_with_pictures(tar, asked, brought)
        else:
            rows = rows_of(asked, brought)
        for key, values, reason in self._judge.judge(rows):
            if values is not None:
                found[key] = values
            else:
                assert reason is not None
                dropped[reason] += 1
        return self._table(table["key"], found), Counts(len(table), len(found), dropped)

    def _table(self, keys: pa.ChunkedArray, found: dict[str, tuple[Any, ...]]) -> pa.Table:
        schema = self.schema
        rows = [found.get(key) for key in keys.to_pylist()]
        arrays = [
            pa.array([None if row is None else row[at] for row in rows], field.type)
            for at, field in enumerate(schema)
        ]
        return pa.table([pa.array(keys.to_pylist(), pa.string()), *arrays], names=["key", *schema.names])


def _parquet_of(tar: str) -> str:
    return tar.rsplit(".", 1)[0] + ".parquet"
