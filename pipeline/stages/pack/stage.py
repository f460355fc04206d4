"""The pack stage: groups of image shards and their columns become training shards.

    pairmill pack --input images --columns columns/clip --where "clip_score >= 0.28" --output shards

A unit is a group of image shards. Its rows are joined with their columns, judged (`pipeline.selection`), and
those kept are written in a seeded order: `N.tar`, `N.parquet` (all columns of the kept rows, in the order of
the tar) and `N_stats.json`. What was dropped is counted by reason in the manifest. When all units stand,
`sizes.json` (open_clip) and `wids.json` (random access by wids) are written over the whole folder.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs, tombstones, uids
from pipeline.errors import ConfigError, InputError
from pipeline.rules import get_preset
from pipeline.selection import Selection
from pipeline.settings import location, since
from pipeline.stage import Counts, Input, Output, Stage, Unit
from pipeline.stages.pack.captions import CaptionOptions, CaptionPolicy
from pipeline.stages.pack.finish import shard_facts, write_indexes
from pipeline.stages.pack.groups import plan_groups, shuffled
from pipeline.stages.pack.samples import make_sample, open_pool, rows_of
from pipeline.tombstones import Tombstones

#: the images' parquet says success, and the tar has no picture under this key
NO_PICTURE = "missing_in_shard"


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What is packed, and by which rule.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset).
        columns: column folders to join: outputs of score and dedup.
        where: keep samples for which this SQL expression over the columns is true, such as
            `clip_score >= 0.28 AND duplicate_of IS NULL`.
        preset: keep samples that satisfy a preset of known datasets, such as `laion400m`.
        uids: keep samples whose uid is in this file: DataComp's `.npy` of pairs, or a text list.
        tombstones: folders or lists of what was taken down (docs/takedown.md) and must not be packed; those
            of the image folder and of the output always count.
        group: image shards in one training shard.
        seed: of the order of shards and samples.
        captions: which texts of a sample are packed.
    """

    input: str = location("")
    columns: tuple[str, ...] = location(())
    where: str | None = None
    preset: str | None = None
    uids: str | None = location(None)
    tombstones: list[str] | str = location(factory=list)
    group: int = 4
    seed: int = 0
    captions: CaptionOptions = since(CaptionOptions())


class Pack(Stage):
    """Groups of image shards -> training shards."""

    name = "pack"
    version = 1
    suffixes = (".tar", ".parquet", "_stats.json")

    def __init__(self, config: PackConfig) -> None:
        """Raises ConfigError for a rule that cannot be read, before any input is looked at."""
        if config.group < 1:
            raise ConfigError(f"group {config.group} must be at least 1 image shard")
        self.config = config
        self._books = tombstones.with_book(config, config.input).tombstones
        self.selection = Selection(where=config.where, preset=config.preset)
        preset = get_preset(config.preset).captions if config.preset is not None else None
        self.captions = CaptionPolicy(config.captions, seed=config.seed, preset=preset)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        images = {s.number: s for s in inputs.shards(self.config.input, ".tar")}
        self._tombstones()
        folders = [columns.open_folder(url) for url in self.config.columns]
        parts = {n: (s.input, *(f.shard(n) for f in folders)) for n, s in images.items()}
        first = next(iter(images.values()))
        schema = columns.joined_schema(first.sibling(".parquet"), [i.url for i in parts[first.number][1:]])
        self.selection.check(schema)
        self.captions.check(schema)
        shared = self._shared_inputs()
        sources = plan_groups(planned, sorted(images), group=self.config.group, seed=self.config.seed)
        return [
            Unit(
                number=number,
                source=source,
                inputs=(*(i for n in source["shards"] for i in parts[n]), *shared),
            )
            for number, source in enumerate(sources)
        ]

    def _shared_inputs(self) -> tuple[Input, ...]:
        """What every unit depends on beside its shards: the list of uids, the text of the preset's rules."""
        found = []
        if self.config.uids is not None:
            ((_, info),) = inputs.files(self.config.uids)
            uids.load(self.config.uids)
            found.append(Input(url=self.config.uids, fingerprint=inputs.file_fingerprint(info)))
        if self.config.preset is not None:
            text = repr([(name, rule.text) for name, rule in self.selection.rules()])
            if (captions := get_preset(self.config.preset).captions) is not None:
                text += repr(captions)
            mark = hashlib.sha256(text.encode()).hexdigest()[:12]
            found.append(Input(url=f"preset:{self.config.preset}", fingerprint=mark))
        return tuple(found)

    def _tombstones(self) -> Tombstones:
        """Raises ConfigError for a place that does not exist, or an entry that cannot be read."""
        return tombstones.load(self._books)

    def start(self) -> None:
        if self.config.uids is not None:
            config, subset = self.config, uids.load(self.config.uids)
            self.selection = Selection(where=config.where, preset=config.preset, uids=subset)

    def run(self, unit: Unit, scratch: Path) -> Output:
        # webdataset brings torch, which the driver does not need
        from pipeline.shards.writer import ShardWriter

        shards = self._shards_of(unit)
        table = columns.concat([_read_shard(images, sidecars) for images, sidecars in shards])
        # read for every unit: a worker may live for days, and what is taken down meanwhile must not go in
        taken = self._tombstones().mask(table)
        reasons = pc.if_else(taken, tombstones.TAKEN_DOWN, self.selection.reasons(table))
        chosen = self.captions.choose(table)
        reasons = pc.coalesce(reasons, chosen.reasons)
        dropped = Counter(r for r in reasons.to_pylist() if r is not None)
        # what was taken down is told by its reason alone: the images' parquet calls it a failed download
        others = pc.fill_null(pc.not_equal(reasons, tombstones.TAKEN_DOWN), True)
        statuses = Counter(table["status"].filter(others).to_pylist())
        kept = _in_order(chosen.written(table).filter(pc.is_null(reasons)), self.config.seed)
        target = scratch / "shard.tar"
        with open_pool([images for images, _ in shards]) as pool, ShardWriter(target) as writer:
            written = []
            for row in rows_of(kept):
                pictures = pool.read(row["key"])
                written.append(pictures is not None)
                if pictures is None:
                    dropped[NO_PICTURE] += 1
                else:
                    writer.write(make_sample(row, pictures))
        kept = kept.filter(pa.array(written, pa.bool_()))
        counts = Counts(len(table), len(kept), dropped)
        facts = shard_facts(target, len(kept))
        parts = {".tar": target, ".parquet": kept, "_stats.json": _stats(counts, statuses)}
        return Output(parts=parts, counts=counts, notes=facts)

    def _shards_of(self, unit: Unit) -> list[tuple[str, list[str]]]:
        """(tar, sidecars) of each image shard of the group, as `plan` put them among the inputs."""
        width = 1 + len(self.config.columns)
        urls = [i.url for i in unit.inputs][: width * len(unit.source["shards"])]
        return [(urls[at], urls[at + 1 : at + width]) for at in range(0, len(urls), width)]

    def finish(self, output: str) -> None:
        write_indexes(output)


def _read_shard(tar: str, sidecars: list[str]) -> pa.Table:
    return columns.read_joined(tar.rsplit(".", 1)[0] + ".parquet", sidecars)


def _in_order(table: pa.Table, seed: int) -> pa.Table:
    keys = table["key"].to_pylist()
    if len(set(keys)) != len(keys):
        raise InputError(
            "two shards of the group share a key; keys must be unique over the whole image folder"
        )
    place = {key: at for at, key in enumerate(keys)}
    return table.take(pa.array([place[key] for key in shuffled(keys, seed)], pa.int64()))


def _stats(counts: Counts, statuses: Counter[str]) -> dict[str, Any]:
    """img2dataset's and DataComp's fields (without times, which would differ from run to run), and the
    drops by reason."""
    stats = counts.to_json()
    return {
        "count": stats["in"],
        "successes": stats["out"],
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": statuses["failed_to_resize"],
        "dropped": stats["dropped"],
    }
