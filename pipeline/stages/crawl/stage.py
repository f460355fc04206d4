"""The crawl: a list of URLs and captions becomes image shards, and what became of every URL.

    pairmill crawl --input candidates --output images --fetch.contact https://example.org/crawl

Output, as img2dataset lays it out: `N.tar` with the pictures that were got (`.jpg .json .txt`), `N.parquet`
with one row for every URL, `N_stats.json`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import tombstones
from pipeline.shards.format import sample_key
from pipeline.stage import Counts, Output, Resources, Stage, Unit, append_units
from pipeline.stages.crawl.config import ColumnOptions, CrawlConfig, FetchConfig
from pipeline.stages.crawl.lists import ListReader
from pipeline.stages.crawl.selected import Selected
from pipeline.stages.crawl.sources import Rows, plan_pieces, split_columns

if TYPE_CHECKING:
    from pipeline.stages.crawl.worker import Crawler

log = logging.getLogger(__name__)

__all__ = ["ColumnOptions", "CrawlConfig", "CrawlStage", "FetchConfig"]


class CrawlStage(Stage):
    """Fetches the pictures of a list. One unit is `shard_size` rows of one file."""

    name: str = "crawl"
    version: int = 2
    suffixes: tuple[str, ...] = (".tar", ".parquet", "_stats.json")

    def __init__(self, config: CrawlConfig) -> None:
        self.config: CrawlConfig = config
        self._crawler: Crawler | None = None
        self._readers: dict[str, ListReader] = {}
        self._selected = Selected(config)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.config.cpus)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        self.config.check()
        tombstones.load(self.config.tombstones)  # a mistake in them is told before anything starts
        fetch = self.config.fetch
        if not (fetch.contact or fetch.allow_private or self.config.local_pictures):
            log.warning(
                "fetch.contact is empty: site owners cannot reach you; give a URL or an e-mail address"
            )
        return append_units(planned, plan_pieces(self.config, planned))

    def start(self) -> None:
        # Not on top: the command line and a finished stage need neither the client nor the decoders, which
        # take seconds to import.
        from pipeline.stages.crawl.worker import Crawler

        self._crawler = Crawler(self.config)

    def close(self) -> None:
        if self._crawler is not None:
            self._crawler.close()

    def run(self, unit: Unit, scratch: Path) -> Output:
        if self._crawler is None:
            raise AssertionError("start() comes before run()")
        # Here for the same reason: it knows what the fetcher returns.
        from pipeline.stages.crawl.rows import make_stats, make_table

        began = time.time()
        rows = self._rows(unit)
        keys = [sample_key(unit.number, position) for position in range(len(rows.urls))]
        fates, tar = self._crawler.crawl(keys, rows, scratch)
        figures = self._crawler.take_figures()
        counts = Counts()
        for fate in fates:
            if fate.reason is None:
                counts.keep()
            else:
                counts.drop(fate.reason)
        return Output(
            parts={
                ".tar": tar,
                ".parquet": make_table(fates, rows.carried),
                "_stats.json": make_stats(fates, began=began, ended=time.time(), figures=figures),
            },
            counts=counts,
            volatile=frozenset({"_stats.json"}),
            notes={
                "bytes": sum(f.row["bytes"] or 0 for f in fates),
                "attempts": sum(f.attempts for f in fates),
                "fetch": figures,
            },
        )

    def _rows(self, unit: Unit) -> Rows:
        url = unit.inputs[0].url
        if url not in self._readers:
            # only one: it may hold a whole JSON file
            self._readers = {url: ListReader(url, self.config.columns)}
        start, stop = unit.source["rows"]
        table, refused = self._selected.join(unit, self._readers[url].read(start, stop))
        local = self.config.local_pictures is not None
        rows = split_columns(table, self.config.columns, str(unit.source["file"]), local=local)
        return dataclasses.replace(rows, refused=refused)
