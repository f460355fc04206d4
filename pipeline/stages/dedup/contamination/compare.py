"""Compare, the second stage of method contamination: the columns `contaminated_by` and
`contamination_distance` of one shard, by all benchmark pictures at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs, manifest
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard
from pipeline.settings import location, operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.contamination.lookup import NONE, Lookup
from pipeline.stages.dedup.hashes import INNER, LONG, SHA256, SHORT, hash_folder, read_outlines
from pipeline.stages.dedup.parts import read_all


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """benchmarks: the folder of the stage before. The rest is as in DedupConfig and ContaminationOptions."""

    input: str = location("")
    columns: list[str] | str = location(factory=list)
    benchmarks: str = operational("")
    distance: int = 16
    short_distance: int = 4


class Compare(Stage):
    """Hash column of a shard, all benchmarks -> for every row SET/name of the nearest, and its distance."""

    name = "dedup-contamination"

    def __init__(self, config: CompareConfig) -> None:
        self.config = config
        self._sets: list[Shard] = []
        self._lookup: Lookup | None = None

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = inputs.whole_folder(self.config.benchmarks, self._current())
        found = inputs.shards(self.config.input, ".tar")
        hashes = hash_folder(self.config.columns, "contamination")
        return [
            Unit(number=s.number, source={"shard": s.number}, inputs=(s.input, hashes.shard(s.number), whole))
            for s in found
        ]

    def _current(self) -> list[Shard]:
        """The parts of the benchmarks' folder, as they were planned last."""
        units = manifest.read_units(self.config.benchmarks)
        done = {s.number: s for s in inputs.shards(self.config.benchmarks, ".parquet")}
        missing = [u.number for u in units if u.number not in done]
        if missing:
            raise ConfigError(
                f"{self.config.benchmarks}: {len(missing)} of {len(units)} parts of the benchmarks are not "
                "hashed; finish that stage of dedup first, without --limit and over all tasks"
            )
        return [done[u.number] for u in units]

    def start(self) -> None:
        self._sets = self._current()
        tables = read_all(self._sets, columns.read_parquet)
        self._lookup = Lookup(
            pa.concat_tables(tables),
            distance=self.config.distance,
            short_distance=self.config.short_distance,
        )

    def run(self, unit: Unit, scratch: Path) -> Output:
        if inputs.whole_folder(self.config.benchmarks, self._sets) != unit.inputs[2]:
            raise InputError(
                f"{self.config.benchmarks}: it changed since the run was planned; run dedup again"
            )
        images, url = inputs.sibling(unit.inputs[0].url, ".parquet"), unit.inputs[1].url
        table = columns.read_column(url, {SHORT, LONG, INNER, SHA256})
        files = columns.read_parquet(images, {"key", "sha256"})
        assert self._lookup is not None
        label, distance = self._lookup.split(nearest(self._lookup, table, files, url))
        found = len(label) - label.null_count
        counts = Counts(len(table), len(table) - found, {"contaminated": found})
        names = pc.value_counts(pc.list_element(pc.split_pattern(label.drop_null(), "/", max_splits=1), 0))
        notes = {"sets": {v["values"]: v["counts"] for v in names.to_pylist()}, "against": len(self._lookup)}
        result = pa.table(
            {
                "key": table["key"].combine_chunks(),
                "contaminated_by": label,
                "contamination_distance": distance,
            }
        )
        return Output(parts={".parquet": result}, counts=counts, notes=notes)


def nearest(lookup: Lookup, table: pa.Table, files: pa.Table, url: str) -> np.ndarray:
    """For each row what `Lookup.split` takes: the nearest by long hashes, by the short one, by either sha256.

    Args:
        table: a hash column. files: the images' parquet, with the sha256 of what was downloaded if it has
            any.
    """
    best = np.full(len(table), NONE)
    hashes, has = read_outlines(table, url)
    best[has] = lookup.by_long(hashes)
    if SHORT in table.column_names:
        given = table[SHORT].is_valid().to_numpy()
        digits = "".join(table[SHORT].drop_null().to_pylist())
        short = np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)
        best[given] = np.minimum(best[given], lookup.by_short(short))
    digests = [table[SHA256]] if SHA256 in table.column_names else []
    if "sha256" in files.column_names:
        digests.append(
            files["sha256"].take(pc.index_in(table["key"], value_set=files["key"].combine_chunks()))
        )
    for column in digests:
        best = np.minimum(best, lookup.by_sha256(_bytes(column)))
    return best


def _bytes(column: pa.ChunkedArray) -> pa.Array:
    """binary(32) of hex digits; null for anything else."""
    found = []
    for value in column.to_pylist():
        try:
            data = bytes.fromhex(value) if value else None
        except ValueError:
            data = None
        found.append(data if data is not None and len(data) == 32 else None)
    return pa.array(found, pa.binary(32))
