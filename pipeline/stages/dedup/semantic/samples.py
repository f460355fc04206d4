"""What method semantic compares: the embeddings of a shard's samples, and why some have none."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import candidates, columns, inputs, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.predicate import NOT_SELECTED, Predicate
from pipeline.shards.format import shard_name
from pipeline.stage import Input
from pipeline.stages.dedup.semantic import vectors

#: why a sample takes no part: there is no embedding, or it is zero or holds NaN
NO_EMBEDDING = "no_embedding"


class ShardFiles(NamedTuple):
    """A shard and what is read of it: its embeddings; with `where` also the images and all other columns."""

    number: int
    inputs: tuple[Input, ...]


class Part(NamedTuple):
    """keys and codes (M, D) of the samples that take part; dropped: why the others do not."""

    keys: pa.StringArray
    codes: vectors.Codes
    dropped: Counter[str]


class Samples:
    """The shards of an input with their embeddings; cheap to build, and picklable."""

    def __init__(
        self, *, input: str, folders: Sequence[str] | str, embedding: str, where: str | None
    ) -> None:
        """Raises ConfigError for a predicate that is none."""
        self.input, self.folders, self.embedding = input, columns.listed(folders), embedding
        self.where = Predicate(where) if where is not None else None

    def shards(self) -> list[ShardFiles]:
        """All shards by number, their embeddings first among the inputs.

        Raises:
            ConfigError: the input is missing or holds candidates, no column folder has the embeddings or one
                is not made for all shards, or `where` does not fit the columns.
        """
        if candidates.is_candidates(self.input):
            raise ConfigError(
                f"input {self.input!r} holds candidates, whose pictures are not fetched yet; method semantic "
                "compares pictures: crawl them first"
            )
        found = inputs.shards(self.input, ".tar")
        ours, others = self._open(found[0].number)
        if self.where is None:
            return [ShardFiles(s.number, (ours.shard(s.number),)) for s in found]
        shards = [
            ShardFiles(s.number, (ours.shard(s.number), s.input, *(f.shard(s.number) for f in others)))
            for s in found
        ]
        files = shards[0].inputs
        self.where.check(
            columns.joined_schema(
                inputs.sibling(files[1].url, ".parquet"), [f.url for f in (files[0], *files[2:])]
            )
        )
        return shards

    def _open(self, number: int) -> tuple[columns.ColumnFolder, list[columns.ColumnFolder]]:
        """The folder of the embeddings, and the others."""
        folders = columns.open_folders(self.folders)
        schemas = [columns.read_schema(folder.shard(number).url) for folder in folders]
        having = [at for at, schema in enumerate(schemas) if self.embedding in schema.names]
        if not having:
            raise ConfigError(
                f"no column {self.embedding!r} in columns {self.folders!r}; run `pairmill score "
                "--kind embedding` and give its --output, or name another column by --semantic.embedding"
            )
        kind = schemas[having[0]].field(self.embedding).type
        if vectors.dimensions_of(kind) is None:
            raise ConfigError(
                f"column {self.embedding!r} of {folders[having[0]].url} is {kind}; embeddings are fixed-size "
                f"lists of 1 to {vectors.MAX_DIMENSIONS} floats"
            )
        ours = folders.pop(having[0])
        if folders and self.where is None:
            raise ConfigError(
                f"columns {[f.url for f in folders]!r} are there for --semantic.where, which is not given"
            )
        return ours, folders

    def model(self) -> str:
        """What made the embeddings: 12 hex digits that stay when shards are added or samples taken down, and
        change with the model."""
        number = inputs.shards(self.input, ".tar")[0].number
        ours, _ = self._open(number)
        record = manifest.read(manifest.list_done(storage.absolute(ours.url))[number])
        shared = [
            i["fingerprint"] for i in record["inputs"][1:] if not i["name"].startswith(shard_name(number))
        ]
        facts = [record["stage"], record["version"], record["config"], shared, record["notes"].get("model")]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def read(self, shard: ShardFiles) -> Part:
        """The samples of a shard that take part.

        Raises:
            InputError: a file is missing or damaged, or has no embeddings.
        """
        url = shard.inputs[0].url
        wanted = {self.embedding.lower(), *(self.where.columns if self.where else ())}
        table = columns.read_column(url, wanted)
        if self.embedding not in table.column_names or not vectors.dimensions_of(table[self.embedding].type):
            raise InputError(
                f"{url}: no fixed-size lists in column {self.embedding!r}; score the shard again"
            )
        dropped: Counter[str] = Counter()
        if self.where is not None:
            table = self._selected(self.where, table, shard, dropped)
        codes, there = vectors.encode(table[self.embedding])
        dropped[NO_EMBEDDING] += int(len(table) - len(codes))
        return Part(table["key"].combine_chunks().filter(pa.array(there)), codes, dropped)

    def _selected(
        self, where: Predicate, table: pa.Table, shard: ShardFiles, dropped: Counter[str]
    ) -> pa.Table:
        images = columns.read_images(inputs.sibling(shard.inputs[1].url, ".parquet"))
        images = images.filter(pc.equal(images["status"], columns.SUCCESS))
        others = ((i.url, columns.read_column(i.url, where.columns)) for i in shard.inputs[2:])
        joined = columns.join(images, [(shard.inputs[0].url, table), *others])
        refused = where.refusals(joined, NOT_SELECTED)
        dropped.update(r for r in refused.to_pylist() if r is not None)
        return joined.select(["key", self.embedding]).filter(pc.is_null(refused))
