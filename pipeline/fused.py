"""Fused stages: images are made, judged and sifted in one unit, so that what is not wanted is never stored.

    pairmill crawl ... --fused.floor "clip_score >= 0.2" --fused.output columns/clip --fused.score.model MODEL

At web scale not every picture can be kept until its score is known. Here the first stage (the crawl) makes
its shard in a scratch folder, column stages (a score) judge it there, and pictures for which the floor is not
true leave the tar before it is published. Nothing else is lost of them: their rows stay in `N.parquet`, with
status and reason `below_floor`, and their columns stay in the column folders. Those are ordinary column
folders: their manifests say what the column stage alone would have said over these images, so it finds
nothing to do.

This knows neither of the stages, only the stage contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, commit, manifest, storage
from pipeline.errors import ConfigError
from pipeline.predicate import Predicate
from pipeline.shards.format import shard_name
from pipeline.shards.reader import iter_samples
from pipeline.shards.writer import ShardWriter
from pipeline.stage import Counts, Input, Output, Payload, Resources, Stage, Unit

BELOW_FLOOR = "below_floor"
TAR, PARQUET, STATS = ".tar", ".parquet", "_stats.json"


class ColumnStage(Protocol):
    """What a stage must offer to be fused: that of a shard of images which is not in its folder yet."""

    def unit_over(self, number: int, shard: Input) -> Unit:
        """The unit that judges this shard. Its first input is the shard's tar, beside which N.parquet lies;
        the others (a model, say) are the same for all shards."""
        ...


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column stage, and the folder that it writes."""

    stage: Any  # a Stage that is a ColumnStage
    output: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a column stage says of one shard."""

    column: Column
    output: Output


class Fused(Stage):
    """An image stage, the column stages that judge its shards, and the floor that sifts them.

    Args:
        config: what all of it is made from; the images' manifests hold its semantic part.
        first: makes images: parts `.tar`, `.parquet` with a row for everything, `_stats.json`.
        columns: what judges them.
        floor: predicate over the images' columns and the new ones. A picture is kept where it is true.
        schema: the columns that the floor may name, with their types.
    """

    def __init__(
        self, config: Any, *, first: Stage, columns: Sequence[Column], floor: str, schema: pa.Schema
    ) -> None:
        """Raises ConfigError for a floor that cannot be asked."""
        if set(first.suffixes) != {TAR, PARQUET, STATS}:
            raise AssertionError(f"stage {first.name} makes {first.suffixes}, no images")
        self.name, self.version = first.name, first.version
        self.suffixes, self.prefix = first.suffixes, first.prefix
        self.config, self.first, self.columns = config, first, tuple(columns)
        self.floor, self.schema = Predicate(floor), schema
        self.floor.check(schema)

    @property
    def resources(self) -> Resources:
        needs = [self.first.resources, *(c.stage.resources for c in self.columns)]
        return Resources(cpus=sum(n.cpus for n in needs), gpus=sum(n.gpus for n in needs))

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        """The units of the first stage; what the column stages are made of is one more input for each."""
        marks = self.marks()
        units = [
            Unit(number=u.number, source=u.source, inputs=(*u.inputs, *marks))
            for u in self.first.plan(planned)
        ]
        for column in self.columns:
            _write_units(column, units)
        return units

    def marks(self) -> list[Input]:
        """One input for each column stage: all that its units are made of beside the shard."""
        anywhere = Input(url="", fingerprint="")
        return [
            Input(url=c.stage.name, fingerprint=c.stage.unit_over(0, anywhere).digest(c.stage))
            for c in self.columns
        ]

    def start(self) -> None:
        for stage in (self.first, *(c.stage for c in self.columns)):
            stage.start()

    def close(self) -> None:
        for stage in (self.first, *(c.stage for c in self.columns)):
            stage.close()

    def run(self, unit: Unit, scratch: Path) -> Output:
        own = Unit(
            number=unit.number, source=unit.source, inputs=unit.inputs[: len(unit.inputs) - len(self.columns)]
        )
        made = self.first.run(own, folder_in(scratch, "first"))
        images, table = lay_out(made.parts, folder_in(scratch, "images"), unit.number)
        judged = self.judge(table, images, scratch, unit.number)
        refusals = self._refusals(table, judged)
        sifted = _sift(made, images, table, refusals, self.floor.text)
        content = _content_mark(f"{self.prefix}{shard_name(unit.number)}", sifted)
        sifted.before_manifest = lambda: self._commit_columns(unit.number, content, judged)
        return sifted

    def judge(self, table: pa.Table, tar: Path, scratch: Path, number: int) -> list[Judged]:
        """What the column stages say of the pictures in `tar`, beside which N.parquet (`table`) lies."""
        shard = Input(url=str(tar), fingerprint="")
        judged = []
        for position, column in enumerate(self.columns):
            unit = column.stage.unit_over(number, shard)
            output = column.stage.run(unit, folder_in(scratch, f"column-{position}"))
            judged.append(Judged(column=column, output=output))
        return judged

    def _refusals(self, table: pa.Table, judged: Sequence[Judged]) -> pa.StringArray:
        """For every row of the images why it leaves the tar now; null where it does not."""
        known = columns.complete_images(columns.normalise(table))
        joined = columns.join(known, [(j.column.output, table_of(j.output)) for j in judged])
        pictures = pc.indices_nonzero(pc.fill_null(pc.equal(joined["status"], columns.SUCCESS), False))
        found = self.floor.refusals(joined.take(pictures), BELOW_FLOOR)
        return found.take(pc.index_in(pa.array(range(len(table)), pa.uint64()), value_set=pictures))

    def _commit_columns(self, number: int, content: str, judged: Sequence[Judged]) -> None:
        """The columns of a shard whose manifest will have this content mark."""
        for one in judged:
            shard = Input(url=f"{shard_name(number)}{TAR}", fingerprint=content)
            unit = one.column.stage.unit_over(number, shard)
            # of an attempt that died before the images stood, or of images that are being replaced
            stale = [done.url for done in manifest.list_unit(one.column.output, number)]
            commit.commit(one.column.stage, unit, one.output, one.column.output, stale=stale)

    def finish(self, output: str) -> None:
        self.first.finish(output)
        for column in self.columns:
            column.stage.finish(column.output)


def _write_units(column: Column, units: Sequence[Unit]) -> None:
    """The column folder's list of units, as planning the column stage over all of these images writes it."""
    own = [column.stage.unit_over(u.number, Input(url="", fingerprint="")) for u in units]
    before = manifest.read_units(column.output)
    if [(u.number, u.source) for u in before] != [(u.number, u.source) for u in own]:
        manifest.write_units(column.output, own)


def folder_in(scratch: Path, name: str) -> Path:
    (scratch / name).mkdir()
    return scratch / name


def lay_out(parts: dict[str, Payload], folder: Path, number: int) -> tuple[Path, pa.Table]:
    """The shard as an image folder has it, for those who judge it: (its tar, its parquet as a table)."""
    tar, table = parts[TAR], parts[PARQUET]
    if not isinstance(tar, Path) or not isinstance(table, pa.Table):
        raise AssertionError("an image stage gives its tar as a file, and its rows as a table")
    (folder / f"{shard_name(number)}{PARQUET}").write_bytes(commit.encode(table))
    return tar.rename(folder / f"{shard_name(number)}{TAR}"), table


def table_of(output: Output) -> pa.Table:
    table = output.parts[PARQUET]
    if not isinstance(table, pa.Table):
        raise AssertionError("a column stage gives its column as a table")
    return columns.normalise(table)


def _sift(made: Output, tar: Path, table: pa.Table, refusals: pa.StringArray, floor: str) -> Output:
    """The output of the first stage without the pictures that are refused."""
    refused = pc.is_valid(refusals)
    counts = Counts(made.counts.taken, made.counts.kept, made.counts.dropped)
    for reason in refusals.drop_null().to_pylist():
        counts.kept -= 1
        counts.dropped[reason] += 1
    gone = set(table["key"].filter(refused).to_pylist())
    below = counts.dropped[BELOW_FLOOR] + counts.dropped[f"{BELOW_FLOOR}_null"]
    stats = made.parts[STATS]
    return Output(
        parts={
            TAR: _without(tar, gone) if gone else tar,
            PARQUET: _told(table, refused, refusals, floor),
            STATS: _less(stats, len(gone), below, floor) if isinstance(stats, dict) else stats,
        },
        counts=counts,
        volatile=made.volatile,
        notes={**made.notes, BELOW_FLOOR: below},
    )


def _without(tar: Path, gone: set[str]) -> Path:
    target = tar.with_name("sifted.tar")
    with ShardWriter(target) as writer:
        for sample in iter_samples(str(tar)):
            if sample.key not in gone:
                writer.write(sample)
    tar.unlink()
    return target


def _told(table: pa.Table, refused: pa.BooleanArray, refusals: pa.StringArray, floor: str) -> pa.Table:
    """The rows, those without a picture now with status, reason and message that say so."""
    news = {"status": BELOW_FLOOR, "reason": refusals, "error_message": _message(floor)}
    for name, value in news.items():
        at = table.schema.get_field_index(name)
        column = pc.if_else(refused, value, table[name].combine_chunks())
        table = table.set_column(at, table.schema.field(at), column.cast(table.schema.field(at).type))
    return table


def _message(floor: str) -> str:
    return f"below the floor {floor}"


def _less(stats: dict[str, Any], gone: int, below: int, floor: str) -> dict[str, Any]:
    """img2dataset's statistics, the pictures that left now no longer among the successes; `below` with those
    that had left before."""
    by_message = Counter(stats["status_dict"])
    by_message["success"] -= gone
    by_message[_message(floor)] += gone
    return {
        **stats,
        "successes": stats["successes"] - gone,
        BELOW_FLOOR: below,
        "status_dict": {message: n for message, n in by_message.items() if n},
    }


def _content_mark(stem: str, output: Output) -> str:
    """The content mark that the commit will give these parts."""
    files: dict[str, dict[str, str]] = {}
    for suffix, payload in output.parts.items():
        if suffix not in output.volatile:
            files[f"{stem}{suffix}"] = {"sha256": commit.checksum(payload)}
    return manifest.content_mark(files)


def check_folders(output: str, folders: Sequence[str]) -> None:
    """Raises ConfigError unless all folders of a fused run are named, and differ."""
    places = [storage.absolute(f) for f in (output, *folders) if f]
    if len(places) != 1 + len(folders) or len(set(places)) != len(places):
        raise ConfigError(
            f"output {output!r} and the column folders {list(folders)} must all be given and differ"
        )
