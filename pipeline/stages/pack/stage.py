"""The pack stage: groups of image shards and their columns become training shards.

    pairmill pack --input images --columns columns/clip --where "clip_score >= 0.28" --output shards

A unit is a group of image shards. Its rows are joined with their columns, judged (`judge`; what is asked of
all samples together was decided by the stages of `select`), and those kept are written in a seeded order:
`N.tar`, `N.parquet` (all columns of the kept rows, in the order of the tar) and `N_stats.json`. What was
dropped is counted by reason in the manifest. When all units stand, `sizes.json` (open_clip) and `wids.json`
(random access by wids) are written over the whole folder. A view has `N.texts` in the place of `N.tar`, and
`view.json` (`pipeline.shards.view`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs, tombstones
from pipeline.errors import ConfigError, InputError
from pipeline.settings import location, since
from pipeline.shards import view as views
from pipeline.stage import Counts, Input, Output, Payload, Stage, Unit
from pipeline.stages.pack.finish import shard_facts, view_facts, write_indexes, write_view_index
from pipeline.stages.pack.groups import plan_groups, shuffled
from pipeline.stages.pack.judge import Judge, read_shard
from pipeline.stages.pack.rule import RuleOptions
from pipeline.stages.pack.samples import make_sample, open_pool, rows_of
from pipeline.stages.pack.view import find_places, write_view

#: the images' parquet says success, and the tar has no picture under this key
NO_PICTURE = "missing_in_shard"

#: parts, the rows that are in them, whether each row that was to be written has a picture, notes
Written = tuple[dict[str, Payload], pa.Table, list[bool], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PackConfig(RuleOptions):
    """What is packed, and by which rule.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset).
        columns: column folders to join: outputs of score and dedup.
        tombstones: folders or lists of what was taken down (docs/takedown.md) and must not be packed; those
            of the image folder and of the output always count.
        group: image shards in one training shard.
        seed: of the order of shards and samples.
        view: write lists of where the pictures lie in the image folder instead of copies of them.
        buckets: parts into which the hashes of max_per_text and max_per_domain are divided; one must fit in a
            worker's memory (about 150 bytes for each of rows / buckets).
    """

    input: str = location("")
    columns: tuple[str, ...] = location(())
    tombstones: list[str] | str = location(factory=list)
    group: int = 4
    seed: int = 0
    view: bool = since(False)
    buckets: int = since(16)


class Pack(Stage):
    """Groups of image shards -> training shards."""

    name = "pack"
    version = 1
    suffixes = (".tar", ".parquet", "_stats.json")

    def __init__(self, config: PackConfig, *, verdicts: str | None = None) -> None:
        """verdicts: the folder of what was decided on all samples together, where the rule asks for that.

        Raises:
            ConfigError: a rule that cannot be read, before any input is looked at.
        """
        if config.group < 1:
            raise ConfigError(f"group {config.group} must be at least 1 image shard")
        self.config = config
        self.judge = Judge(config, books=books_of(config), seed=config.seed)
        self.verdicts = verdicts if self.judge.limits else None
        assert bool(self.verdicts) == bool(self.judge.limits), "the stages of `select` come first"
        if self.judge.limits:  # other verdicts on shards that stand, since some were added, are no surprise
            self.redo_on_new_inputs = True
        if config.view:
            self.suffixes = (".parquet", views.TEXTS, "_stats.json")

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        config = self.config
        images = {s.number: s for s in inputs.shards(config.input, ".tar")}
        folders = [columns.open_folder(url) for url in config.columns]
        parts = {n: (s.input, *(f.shard(n) for f in folders)) for n, s in images.items()}
        first = next(iter(images.values()))
        schema = columns.joined_schema(first.sibling(".parquet"), [i.url for i in parts[first.number][1:]])
        self.judge.check(schema)
        if self.config.view:
            _check_names(schema)
        parts = self._with_verdicts(parts)
        shared = self.judge.shared_inputs()
        sources = plan_groups(planned, sorted(images), group=config.group, seed=config.seed, view=config.view)
        return [
            Unit(
                number=number,
                source=source,
                inputs=(*(i for n in source["shards"] for i in parts[n]), *shared),
            )
            for number, source in enumerate(sources)
        ]

    def _with_verdicts(self, parts: dict[int, tuple[Input, ...]]) -> dict[int, tuple[Input, ...]]:
        if self.verdicts is None:
            return parts
        decided = {s.number: s.input for s in inputs.shards(self.verdicts, ".parquet")}
        if missing := sorted(parts.keys() - decided.keys()):
            raise ConfigError(
                f"{self.verdicts}: {len(missing)} of {len(parts)} image shards have no verdicts yet; run "
                "pack again over all tasks, where it runs as several"
            )
        return {n: (*found, decided[n]) for n, found in parts.items()}

    def start(self) -> None:
        self.judge.start()

    def run(self, unit: Unit, scratch: Path) -> Output:
        shards = self._shards_of(unit)
        table = columns.concat([read_shard(images, sidecars) for images, sidecars, _ in shards])
        judged = self.judge.judge(table)
        reasons = judged.reasons
        if self.verdicts is not None:
            reasons = pc.coalesce(reasons, _verdicts(table, [verdicts for _, _, verdicts in shards]))
        dropped = Counter(r for r in reasons.to_pylist() if r is not None)
        # what was taken down is told by its reason alone: the images' parquet calls it a failed download
        others = pc.fill_null(pc.not_equal(reasons, tombstones.TAKEN_DOWN), True)
        statuses = Counter(table["status"].filter(others).to_pylist())
        kept = _in_order(judged.chosen.written(table).filter(pc.is_null(reasons)), self.config.seed)
        write = self._write_view if self.config.view else self._write_tar
        parts, kept, there, facts = write(unit, kept, scratch)
        if there.count(False):
            dropped[NO_PICTURE] += there.count(False)
        counts = Counts(len(table), len(kept), dropped)
        return Output(parts={**parts, "_stats.json": _stats(counts, statuses)}, counts=counts, notes=facts)

    def _write_tar(self, unit: Unit, kept: pa.Table, scratch: Path) -> Written:
        # late: what only plans does without it
        from pipeline.shards.writer import ShardWriter

        target = scratch / "shard.tar"
        with open_pool([images for images, _, _ in self._shards_of(unit)]) as pool:
            there = []
            with ShardWriter(target) as writer:
                for row in rows_of(kept):
                    pictures = pool.read(row["key"])
                    there.append(pictures is not None)
                    if pictures is not None:
                        writer.write(make_sample(row, pictures))
        kept = kept.filter(pa.array(there, pa.bool_()))
        return {".tar": target, ".parquet": kept}, kept, there, shard_facts(target, len(kept))

    def _write_view(self, unit: Unit, kept: pa.Table, scratch: Path) -> Written:
        marks = {i.url: i for i in unit.inputs}
        places = find_places([marks[images] for images, _, _ in self._shards_of(unit)])
        kept, there = write_view(kept, rows_of(kept), places, scratch / "texts")
        return {".parquet": kept, views.TEXTS: scratch / "texts"}, kept, there, view_facts(len(kept))

    def _shards_of(self, unit: Unit) -> list[tuple[str, list[str], str]]:
        """(tar, sidecars, verdicts or nothing) of each image shard of the group, as `plan` put them among the
        inputs."""
        width = 1 + len(self.config.columns)
        step = width + (self.verdicts is not None)
        urls = [i.url for i in unit.inputs][: step * len(unit.source["shards"])]
        return [
            (urls[at], urls[at + 1 : at + width], "".join(urls[at + width : at + step]))
            for at in range(0, len(urls), step)
        ]

    def finish(self, output: str) -> None:
        if self.config.view:
            write_view_index(output, self.config.input)
        else:
            write_indexes(output)


def books_of(config: PackConfig) -> list[str] | str:
    """The tombstones that count for a pack: those that its config names, and those of its images."""
    return tombstones.with_book(config, config.input).tombstones


def _verdicts(table: pa.Table, urls: Sequence[str]) -> pa.Array:
    """What was decided on each row; null where it is kept."""
    found = pa.concat_tables([columns.read_parquet(url) for url in urls]).combine_chunks()
    place = pc.index_in(table["key"].combine_chunks(), value_set=found["key"].combine_chunks())
    return found["reason"].combine_chunks().take(place)


def _check_names(schema: pa.Schema) -> None:
    clash = [name for name in schema.names if name.lower() in (views.TAR, views.MEMBERS)]
    if clash:
        raise ConfigError(f"a view writes column {clash[0]!r}, which is there already; name it otherwise")


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
