"""Mark, the last stage of dedup: the columns `duplicate_of` and `duplicate_reason` of one shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline import columns, inputs
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard
from pipeline.settings import operational
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.dedup.entries import KINDS, folder_input, read_where
from pipeline.stages.dedup.resolve import READERS


@dataclass(frozen=True, kw_only=True)
class MarkConfig:
    """sketch, resolve: the folders of the stages before. buckets: as they were made with."""

    sketch: str = operational("")
    resolve: str = operational("")
    buckets: int = 16


class Mark(Stage):
    """Sketch of a shard, all losers -> a row for every success: `duplicate_of` (key or null) and
    `duplicate_reason` (`url_caption` or `image`)."""

    name = "dedup"
    redo_on_new_inputs = True

    def __init__(self, config: MarkConfig) -> None:
        self.config = config
        self._losers: list[Shard] = []

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        whole = folder_input(self.config.resolve, self._buckets())
        found = inputs.shards(self.config.sketch, ".parquet")
        return [Unit(number=s.number, source={"shard": s.number}, inputs=(s.input, whole)) for s in found]

    def _buckets(self) -> list[Shard]:
        found = [s for s in inputs.shards(self.config.resolve, ".parquet") if s.number < self.config.buckets]
        if len(found) != self.config.buckets:
            raise ConfigError(
                f"{self.config.resolve}: {len(found)} of {self.config.buckets} buckets are resolved; "
                "finish the resolve stage of dedup first, without --limit and over all tasks"
            )
        return found

    def start(self) -> None:
        self._losers = self._buckets()

    def run(self, unit: Unit, scratch: Path) -> Output:
        if folder_input(self.config.resolve, self._losers) != unit.inputs[1]:
            raise InputError(f"{self.config.resolve}: it changed since the run was planned; run dedup again")
        stem = unit.inputs[0].url.removesuffix(".parquet")
        keys = columns.read_column(f"{stem}_keys.parquet")["key"].to_pylist()
        losers = self._losers_among(keys)
        of = [losers.get(key, (0, None))[1] for key in keys]
        reasons = [KINDS[losers[key][0]] if key in losers else None for key in keys]
        table = pa.table(
            {
                "key": pa.array(keys, pa.string()),
                "duplicate_of": pa.array(of, pa.string()),
                "duplicate_reason": pa.array(reasons, pa.string()),
            }
        )
        dropped = Counter(f"duplicate_{reason}" for reason in reasons if reason)
        counts = Counts(len(keys), len(keys) - len(losers), dropped)
        return Output(parts={".parquet": table}, counts=counts)

    def _losers_among(self, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
        """key -> (kind, winner), the first kind where a key has lost in both."""
        if not keys:
            return {}
        low, high = min(keys), max(keys)
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(lambda s: read_where(s.input.url, "key", low, high), self._losers))
        table = pa.concat_tables(parts)
        rows = zip(*(table[name].to_pylist() for name in ("key", "kind", "of")), strict=True)
        wanted = set(keys)
        found: dict[str, tuple[int, str]] = {}
        for key, kind, of in rows:
            if key in wanted and (key not in found or kind < found[key][0]):
                found[key] = (kind, of)
        return found
