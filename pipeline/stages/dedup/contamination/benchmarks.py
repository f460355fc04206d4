"""Benchmarks, the first stage of method contamination: the hashes of their pictures, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import InputError
from pipeline.ranges import READERS
from pipeline.settings import location
from pipeline.stage import Counts, Output, Stage, Unit, append_units
from pipeline.stages.dedup.contamination.entries import of_parquet, of_pictures, of_text
from pipeline.stages.dedup.contamination.sets import list_pictures, parse_sets, pieces, shard_pictures


@dataclass(frozen=True, kw_only=True)
class BenchmarksConfig:
    """against: as DedupConfig has it. What the sets hold is an input of each unit, their names its source."""

    against: list[str] | str = location(factory=list)


class Benchmarks(Stage):
    """A part of a benchmark set -> the hashes of its pictures."""

    name = "dedup-benchmarks"

    def __init__(self, config: BenchmarksConfig) -> None:
        """Raises ConfigError for sets that are not NAME=PLACE."""
        self.config = config
        self.sets = parse_sets(config.against)
        self._listed: dict[str, list[tuple[str, storage.FileInfo]]] = {}

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        return append_units(planned, [piece for benchmark in self.sets for piece in pieces(benchmark)])

    def run(self, unit: Unit, scratch: Path) -> Output:
        table, undecodable = self._entries(unit.source, unit.inputs[0].url)
        counts = Counts(len(table) + undecodable, len(table), {"undecodable": undecodable})
        return Output(parts={".parquet": table}, counts=counts)

    def _entries(self, source: Any, url: str) -> tuple[pa.Table, int]:
        name = source["set"]
        if "text" in source:
            return of_text(name, url), 0
        if "pictures" not in source and "shard" not in source:
            return of_parquet(name, url), 0
        if "shard" in source:
            return of_pictures(name, shard_pictures(url))
        start, stop = source["pictures"]
        if url not in self._listed:
            self._listed[url] = list_pictures(url)
        group = self._listed[url][start:stop]
        if len(group) != stop - start:
            raise InputError(f"{url}: pictures were removed since the run was planned; run dedup again")
        with ThreadPoolExecutor(READERS) as pool:
            data = pool.map(lambda item: storage.read_bytes(item[1].url), group)
            return of_pictures(name, ((label, found) for (label, _), found in zip(group, data, strict=True)))
