"""The retry of a fused crawl: pictures that come now are judged and sifted as the others were.

The first stage fills gaps of shards that stand. What was judged before keeps its columns, those of pictures
below the floor included; only the new pictures are judged, and those of them below the floor leave the tar.
Columns and images are replaced together, as `pipeline.fused` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, commit, inputs, manifest
from pipeline.errors import ConfigError, InputError
from pipeline.fused import PARQUET, TAR, Column, Fused, Judged, folder_in, table_of
from pipeline.shards.format import shard_name
from pipeline.stage import Counts, Output, Stage, Unit

#: status of a picture that need not be judged again, in the scratch folder alone
JUDGED_BEFORE = "judged_before"


class FusedRetry(Fused):
    """A fused stage over its own output.

    Args:
        made_by: the fused stage that made the images.
        first: fills gaps of their shards; its units have the inputs that the manifests list.
    """

    def __init__(self, made_by: Fused, *, first: Stage) -> None:
        super().__init__(
            made_by.config,
            first=first,
            columns=made_by.columns,
            floor=made_by.floor.text,
            schema=made_by.schema,
        )

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        """The units of the first stage as they are.

        Raises:
            ConfigError: the column stages are not what they were.
        """
        units = self.first.plan(planned)
        now = [mark.fingerprint for mark in self.marks()]
        for unit in units:
            before = [i.fingerprint for i in unit.inputs[-len(now) :]]
            if unit.inputs and before != now:
                raise ConfigError(
                    f"shard {shard_name(unit.number)} was judged by another model, or otherwise, than new "
                    "pictures would be now; bring the old model back, or crawl again with --overwrite"
                )
        return units

    def judge(self, table: pa.Table, tar: Path, scratch: Path, number: int) -> list[Judged]:
        before = [_Before(column, number) for column in self.columns]
        known = set.intersection(*(b.keys for b in before))
        hidden = pa.array([key in known for key in table["key"].to_pylist()], pa.bool_())
        at = table.schema.get_field_index("status")
        status = pc.if_else(hidden, JUDGED_BEFORE, table["status"].combine_chunks())
        shown = table.set_column(at, table.schema.field(at), status)
        folder = folder_in(scratch, "new")
        (folder / f"{shard_name(number)}{PARQUET}").write_bytes(commit.encode(shown))
        link = folder / f"{shard_name(number)}{TAR}"
        link.hardlink_to(tar)
        new = super().judge(shown, link, scratch, number)
        return [b.joined_by(n, table) for b, n in zip(before, new, strict=True)]


class _Before:
    """What a column folder says of a shard so far."""

    def __init__(self, column: Column, number: int) -> None:
        """Raises InputError where it says nothing, or its bytes are not those of its manifest."""
        done = next(iter(manifest.list_unit(column.output, number)), None)
        if done is None:
            raise InputError(
                f"{column.output}: no shard {shard_name(number)}; crawl it again with --overwrite"
            )
        record = manifest.read(done)
        name = f"{shard_name(number)}{PARQUET}"
        with inputs.checked(column.output, name, record) as path:
            self.table = columns.read_column(str(path))
        self.counts = Counts.from_json(record["counts"])
        self.keys = set(self.table["key"].to_pylist())

    def joined_by(self, new: Judged, images: pa.Table) -> Judged:
        """The column of both, in the order of the images."""
        fresh = table_of(new.output)
        fresh = fresh.filter(pc.invert(pc.is_in(fresh["key"], self.table["key"].combine_chunks())))
        both = pa.concat_tables([self.table, fresh.cast(self.table.schema)])
        places = pc.index_in(images["key"], value_set=both["key"].combine_chunks()).drop_null()
        counts = Counts()
        for part in (self.counts, new.output.counts):
            counts.add(part)
        output = Output(
            parts={PARQUET: both.take(places).combine_chunks()}, counts=counts, notes=new.output.notes
        )
        return Judged(column=new.column, output=output)
