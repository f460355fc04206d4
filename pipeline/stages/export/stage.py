"""The metadata of DataComp (arXiv:2304.14108): what its filtering baselines read in place of pictures.

    pairmill export --input images --columns '[columns/clip, columns/l14]' --output metadata \
        --scores '{clip_b32_similarity_score: clip_score, clip_l14_similarity_score: l14_score}' \
        --features '{l14_img: image_embedding, l14_txt: text_embedding}' --subset true

A shard becomes `N.parquet` (`uid`, `url`, `text`, `original_width`, `original_height`, `sha256`, the scores)
and, with features, `N.npz` with one float16 array a feature, in the rows' order. `uids.npy` lists all uids,
sorted, as DataComp's resharder takes a subset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs, storage, uids
from pipeline.errors import ConfigError, InputError
from pipeline.selection import Selection
from pipeline.settings import location, operational
from pipeline.stage import Counts, Output, Stage, Unit

#: our columns under DataComp's names
PLAIN = {
    "uid": "uid",
    "url": "url",
    "text": "caption",
    "original_width": "original_width",
    "original_height": "original_height",
    "sha256": "sha256",
}
FEATURES = ("b32_img", "b32_txt", "l14_img", "l14_txt")
SUBSET = "uids.npy"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is exported.

    Attributes:
        input: an image folder, or packed shards.
        columns: column folders over it.
        scores: names in the metadata, such as `clip_l14_similarity_score`, and the columns that hold them.
        features: arrays in the npz (`b32_img`, `b32_txt`, `l14_img`, `l14_txt`), and the columns of
            embeddings that hold them.
        where: export samples for which this SQL expression is true.
        preset: export samples that satisfy a preset of known datasets.
        subset: also list the uids of all exported samples in `uids.npy`; 16 bytes each pass through memory.
    """

    input: str = location("")
    columns: list[str] | str = location(factory=list)
    scores: dict[str, str] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    where: str | None = None
    preset: str | None = None
    subset: bool = operational(False)


class Export(Stage):
    """Image shard and its columns -> metadata of the samples that are selected."""

    name = "export"

    def __init__(self, config: ExportConfig) -> None:
        """Raises ConfigError for names that DataComp's metadata has not, or a rule that cannot be read."""
        unknown = sorted(set(config.features) - set(FEATURES))
        if unknown:
            raise ConfigError(f"features {unknown[0]!r}: DataComp's arrays are {', '.join(FEATURES)}")
        clash = sorted(set(config.scores) & set(PLAIN))
        if clash:
            raise ConfigError(
                f"scores {clash[0]!r} is a column of its own in the metadata; choose another name"
            )
        self.config = config
        self.suffixes = (".parquet", ".npz") if config.features else (".parquet",)
        self.selection = Selection(where=config.where, preset=config.preset)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        shards = inputs.shards(self.config.input, ".tar")
        folders = columns.open_folders(self.config.columns)
        units = [
            Unit(
                number=s.number,
                source={"shard": s.number},
                inputs=(s.input, *(folder.shard(s.number) for folder in folders)),
            )
            for s in shards
        ]
        first = units[0]
        schema = columns.joined_schema(shards[0].sibling(".parquet"), [i.url for i in first.inputs[1:]])
        self.selection.check(schema)
        for name in (*PLAIN.values(), *self.config.scores.values(), *self.config.features.values()):
            if name not in schema.names:
                raise ConfigError(
                    f"{self.config.input}: no column {name!r} to export; known columns: "
                    f"{', '.join(schema.names)}"
                )
        for feature, name in self.config.features.items():
            if not pa.types.is_fixed_size_list(schema.field(name).type):
                raise ConfigError(
                    f"features {feature!r}: column {name!r} is {schema.field(name).type}, no embedding; give "
                    "a column of `pairmill score --kind embedding`"
                )
        return units

    def run(self, unit: Unit, scratch: Path) -> Output:
        tar, *sidecars = [i.url for i in unit.inputs]
        table = columns.read_joined(inputs.sibling(tar, ".parquet"), sidecars)
        reasons = self.selection.reasons(table)
        for feature, name in self.config.features.items():
            missing = pc.if_else(pc.is_null(table[name].combine_chunks()), f"no_{feature}", None)
            reasons = pc.coalesce(reasons, missing.cast(pa.string()))
        dropped = Counter(reason for reason in reasons.to_pylist() if reason is not None)
        kept = table.filter(pc.is_null(reasons))
        parts: dict[str, Any] = {".parquet": self._metadata(kept)}
        if self.config.features:
            parts[".npz"] = self._write_features(kept, scratch / "features.npz")
        return Output(parts=parts, counts=Counts(len(table), len(kept), dropped))

    def _metadata(self, rows: pa.Table) -> pa.Table:
        wanted = {**PLAIN, **self.config.scores}
        return pa.table({theirs: rows[ours] for theirs, ours in wanted.items()})

    def _write_features(self, rows: pa.Table, path: Path) -> Path:
        arrays: dict[str, Any] = {f: matrix(rows[name]) for f, name in self.config.features.items()}
        with path.open("wb") as stream:  # given a path, numpy would add a suffix of its own
            np.savez(stream, **arrays)
        return path

    def finish(self, output: str) -> None:
        if self.config.subset:
            storage.write_bytes(storage.join(output, SUBSET), uids.dump(_all_uids(output)))


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Fixed-size lists without nulls as float16 [rows, width]."""
    lists = column.combine_chunks()
    width = lists.type.list_size
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.float16).reshape(len(lists), width)


def _all_uids(output: str) -> pa.ChunkedArray:
    found = inputs.shards(output, ".parquet")
    tables = [columns.read_parquet(s.input.url, {"uid"}) for s in found]
    column = pa.concat_tables(tables)["uid"]
    if column.null_count:
        raise InputError(f"{output}: {column.null_count} samples have no uid, so no subset can name them")
    return column
