"""Rows, the first selecting stage: what of an image shard competes, judged by what is asked of it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.ranges import write_sorted
from pipeline.settings import since
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.stages.pack.captions import CaptionOptions
from pipeline.stages.pack.judge import Judge, read_shard
from pipeline.stages.pack.rule import PER_DOMAIN, PER_TEXT
from pipeline.stages.pack.select.state import STATE, asked_next, by_values, domain_hashes, text_hashes
from pipeline.tombstones import TAKEN_DOWN

#: what the rule itself has against a row that competes all the same, as `of: all` says
REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """What is asked of a row alone, and what must be known of it later.

    where, preset, captions, seed: of the rule. by: the column that later choices go by. of_all: whether every
    picture competes. limits: (reason, limit) of what is asked of all rows together, in order. buckets: parts
    into which the hashes of a limit are divided.
    """

    where: str | None = None
    preset: str | None = None
    captions: CaptionOptions = since(CaptionOptions())
    seed: int = 0
    by: str | None = None
    of_all: bool = False
    limits: tuple[tuple[str, int], ...] = ()
    buckets: int = 16


class Rows(Stage):
    """Image shard and its columns -> the state of its rows."""

    name = "pack-rows"

    def __init__(self, config: RowsConfig, judge: Judge, *, input: str, folders: Sequence[str]) -> None:
        """input: the image folder; folders: of columns. The judge is that of the rule in the config."""
        self.config, self.judge = config, judge
        self.input, self.folders = input, tuple(folders)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        images = inputs.shards(self.input, ".tar")
        folders = [columns.open_folder(url) for url in self.folders]
        sidecars = {s.number: tuple(f.shard(s.number) for f in folders) for s in images}
        first = images[0]
        urls = [i.url for i in sidecars[first.number]]
        self.judge.check(columns.joined_schema(first.sibling(".parquet"), urls))
        shared = self.judge.shared_inputs()
        return [
            Unit(number=s.number, source={"shard": s.number}, inputs=(s.input, *sidecars[s.number], *shared))
            for s in images
        ]

    def start(self) -> None:
        self.judge.start()

    def run(self, unit: Unit, scratch: Path) -> Output:
        width = len(self.folders)
        tar, *sidecars = [i.url for i in unit.inputs[: 1 + width]]
        table = read_shard(tar, sidecars, self.judge.columns())
        judged = self.judge.judge(table)
        dropped = Counter(r for r in judged.reasons.to_pylist() if r is not None)
        state = self._state(table, judged.chosen.written(table), judged.reasons)
        state = asked_next(state, self.config.limits[:1], self.config.buckets)
        counts = Counts(len(table), len(table) - dropped.total(), dropped)
        return Output(parts={".parquet": write_sorted(state, scratch / "state")}, counts=counts)

    def _state(self, table: pa.Table, written: pa.Table, reasons: pa.StringArray) -> pa.Table:
        kept = pc.is_null(reasons)
        competes = kept
        if self.config.of_all:
            there = pc.fill_null(pc.equal(table["status"], columns.SUCCESS), False).combine_chunks()
            taken = pc.fill_null(pc.equal(reasons, TAKEN_DOWN), False)
            competes = pc.and_(there, pc.invert(taken))
        rows = table.filter(competes)
        refused = pc.if_else(kept, pa.scalar(None, pa.string()), REFUSED).filter(competes)
        limits = dict(self.config.limits)
        texts = urls = pa.nulls(len(rows), pa.binary(16))
        if PER_TEXT in limits:
            texts = text_hashes(written.filter(competes)["caption"].combine_chunks())
        if PER_DOMAIN in limits:
            urls = domain_hashes(rows["url"].combine_chunks())
        return pa.table(
            [pa.nulls(len(rows), pa.int32()), rows["key"], refused, self._by(rows), texts, urls], schema=STATE
        )

    def _by(self, rows: pa.Table) -> pa.Array:
        if self.config.by is None:
            return pa.nulls(len(rows), pa.float64())
        wanted = self.config.by.lower()
        return by_values(next(rows[name] for name in rows.column_names if name.lower() == wanted))
