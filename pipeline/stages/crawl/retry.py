"""The retry: rows of finished shards are fetched again, and the pictures that come now fill their gaps.

    pairmill retry images --where "reason = 'timeout' OR http_status = 429"

A crawl whose units are the shards it touches. What is fetched is told by the shard itself: its parquet has
URL, caption and carried columns of every row, so the list is not needed. The new tar holds the samples of the
old one and the new ones in the order of their keys, and is, byte for byte, what the crawl would have written
had the servers answered the first time. Rows that were not chosen stay as they are. The manifest keeps the
digest of the crawl: a rerun of the crawl finds nothing to do.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import columns, inputs, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.planning import describe_difference
from pipeline.predicate import Predicate
from pipeline.shards.format import shard_name
from pipeline.shards.reader import index_tar, iter_samples
from pipeline.shards.writer import ShardWriter
from pipeline.stage import Counts, Input, Output, Stage, Unit
from pipeline.stages.crawl.again import choose
from pipeline.stages.crawl.config import CrawlConfig
from pipeline.stages.crawl.rows import SCHEMA, Fate, make_stats, make_table
from pipeline.stages.crawl.sources import Rows
from pipeline.stages.crawl.stage import CrawlStage


class RetryStage(CrawlStage):
    """Fetches the rows again that `where` chooses (`pipeline.stages.crawl.again`), shard by shard.

    Args:
        config: of the crawl; what is semantic in it must be what the shards were made with.
        images: the crawl's output folder, which this stage reads and whose shards it replaces.
        where: predicate over the columns of `images/N.parquet`.
        numbers: the shards to be touched.
        made_by: the stage that made the folder, where that is more than a crawl; its digests are in the
            manifests.
    """

    def __init__(
        self,
        config: CrawlConfig,
        *,
        images: str,
        where: str,
        numbers: Sequence[int],
        made_by: Stage | None = None,
    ) -> None:
        super().__init__(config)
        self.images, self.where, self.numbers = images, where, frozenset(numbers)
        self.made_by = made_by or self

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        """The units of the crawl as its manifests tell them; inputs are known for those to be touched.

        Raises:
            ConfigError: one of these was not made by this crawl.
        """
        self.config.check()
        done = manifest.list_done(self.images)
        return [self._unit(u, done[u.number]) if u.number in self.numbers else u for u in planned]

    def _unit(self, unit: Unit, done: manifest.Done) -> Unit:
        record = manifest.read(done)
        made_from = tuple(Input(url=i["name"], fingerprint=i["fingerprint"]) for i in record["inputs"])
        unit = Unit(number=unit.number, source=unit.source, inputs=made_from)
        if unit.digest(self.made_by) != done.digest:
            raise ConfigError(
                f"{self.images}: shard {shard_name(unit.number)} was made differently: "
                f"{'; '.join(describe_difference(self.made_by, unit, record))}. A retry may change how URLs "
                "are fetched (--fetch.total_timeout, --workers), not what is made of them"
            )
        return unit

    def run(self, unit: Unit, scratch: Path) -> Output:
        if self._crawler is None:
            raise AssertionError("start() comes before run()")
        began = time.time()
        with _open_shard(self.images, unit.number) as (record, table, old_tar):
            positions = choose(table, Predicate(self.where)).positions
            asked = table.take(pa.array(positions, pa.int64()))
            fetched, new_tar = self._crawler.crawl(asked["key"].to_pylist(), _rows_of(asked), scratch)
            figures = self._crawler.take_figures()
            fates = _put_in_place(table, positions, fetched)
            tar = _merge(old_tar, new_tar, scratch / "merged.tar")
        counts = Counts()
        for fate in fates:
            counts.drop(fate.reason) if fate.reason else counts.keep()
        got = sum(f.reason is None for f in fetched)
        before = record["notes"]
        retry = {
            "where": self.where,
            "asked": len(positions),
            "got": got,
            "fetch": figures,
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        }
        return Output(
            parts={
                ".tar": tar,
                ".parquet": make_table(fates, _carried(table)),
                "_stats.json": make_stats(fates, began=began, ended=time.time(), figures=figures),
            },
            counts=counts,
            volatile=frozenset({"_stats.json"}),
            notes={
                **before,
                "bytes": sum(f.row["bytes"] or 0 for f in fates),
                "attempts": before.get("attempts", 0) + sum(f.attempts for f in fetched),
                "retries": [*before.get("retries", []), retry],
            },
        )


def _rows_of(table: pa.Table) -> Rows:
    """The rows as a list would have given them."""
    return Rows(urls=table["url"].to_pylist(), captions=table["caption"].to_pylist(), carried=_carried(table))


def _carried(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if name not in SCHEMA.names])


def _put_in_place(table: pa.Table, positions: Sequence[int], fetched: Sequence[Fate]) -> list[Fate]:
    """The fates of all rows of a shard: those fetched now at their positions, the others as they stand."""
    fates = [Fate(row=row, attempts=0) for row in table.select(SCHEMA.names).to_pylist()]
    for position, fate in zip(positions, fetched, strict=True):
        fates[position] = fate
    return fates


def _merge(old: Path, new: Path, target: Path) -> Path:
    """Both tars' samples in the order of their keys, one at a time in memory."""
    with ShardWriter(target) as writer:
        samples = heapq.merge(iter_samples(str(old)), iter_samples(str(new)), key=lambda sample: sample.key)
        for sample in samples:
            writer.write(sample)
    new.unlink()
    return target


@contextmanager
def _open_shard(images: str, number: int) -> Iterator[tuple[Mapping[str, Any], pa.Table, Path]]:
    """(manifest, parquet, local tar) of a committed shard, once it is clear that they belong together: a
    damaged shard must not come out of a retry with fresh checksums.

    Raises:
        InputError: a part is missing, or is not what its manifest says.
    """
    done = next(iter(manifest.list_unit(images, number)), None)
    name = storage.join(images, shard_name(number))
    if done is None:
        raise InputError(
            f"{name}: the shard has no manifest now: another process replaces it; run the command again"
        )
    record = manifest.read(done)
    stem = shard_name(number)
    tar_part, parquet_part = (inputs.checked(images, f"{stem}{s}", record) for s in (".tar", ".parquet"))
    with tar_part as tar, parquet_part as parquet:
        table = pq.read_table(parquet).replace_schema_metadata(None)
        _check_pictures(table, tar, name)
        yield record, table, tar


def _check_pictures(table: pa.Table, tar: Path, name: str) -> None:
    standing = [
        key
        for key, status in zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
        if status == columns.SUCCESS
    ]
    found = [sample.key for sample in index_tar(str(tar))]
    if found != standing:
        raise InputError(
            f"{name}: the tar holds {len(found)} samples, the parquet tells of {len(standing)}, or their "
            "order differs; run `pairmill verify --fix` first"
        )
