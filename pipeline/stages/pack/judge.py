"""Why each row of an image shard is dropped, by what is asked of it alone.

Pack itself, the stages that choose among all samples, and the dry run judge with this one class, so they
never disagree. What is read of a shard is what the rule names and nothing else, where a caller does not need
the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs, tombstones, uids
from pipeline.rules import get_preset
from pipeline.selection import Selection
from pipeline.stage import Input
from pipeline.stages.pack.captions import LISTS, CaptionPolicy, Chosen
from pipeline.stages.pack.rule import Limits, RuleOptions

#: columns of the images that every judgement looks at
_ALWAYS = frozenset({"key", "status", "reason"})
#: what caption policies other than `web` look at
_CAPTIONS = frozenset({"caption", "web_itm", "synthetic_captions", *LISTS})


@dataclass(frozen=True)
class Judged:
    """reasons: why each row is dropped; null where it is kept. chosen: the texts of each row."""

    reasons: pa.StringArray
    chosen: Chosen


class Judge:
    """Cheap to build and to pickle; `start` reads the list of uids."""

    def __init__(self, rule: RuleOptions, *, books: Sequence[str] | str, seed: int) -> None:
        """Raises ConfigError for a rule that cannot be read, before any input is looked at.

        books: places of tombstones, as `pipeline.tombstones.load` takes them.
        """
        self.rule, self.limits = rule, Limits.of(rule)
        self._books = books
        self.selection = Selection(where=rule.where, preset=rule.preset)
        preset = get_preset(rule.preset).captions if rule.preset is not None else None
        self.captions = CaptionPolicy(rule.captions, seed=seed, preset=preset)
        self._rules = self.selection.rules()

    def check(self, schema: pa.Schema) -> None:
        """Raises ConfigError unless the rule can be asked of tables of this schema, or where tombstones
        cannot be read."""
        tombstones.load(self._books)
        self.selection.check(schema)
        self.captions.check(schema)
        self.limits.check(schema)

    def shared_inputs(self) -> tuple[Input, ...]:
        """What the judgement depends on beside the shards: the list of uids, the text of the preset."""
        found = []
        rule = self.rule
        if rule.uids is not None:
            ((_, info),) = inputs.files(rule.uids)
            uids.load(rule.uids)
            found.append(Input(url=rule.uids, fingerprint=inputs.file_fingerprint(info)))
        if rule.preset is not None:
            text = repr([(name, one.text) for name, one in self._rules])
            if (captions := get_preset(rule.preset).captions) is not None:
                text += repr(captions)
            mark = hashlib.sha256(text.encode()).hexdigest()[:12]
            found.append(Input(url=f"preset:{rule.preset}", fingerprint=mark))
        return tuple(found)

    def start(self) -> None:
        if self.rule.uids is not None:
            subset = uids.load(self.rule.uids)
            self.selection = Selection(where=self.rule.where, preset=self.rule.preset, uids=subset)

    def judge(self, table: pa.Table) -> Judged:
        """Judges the rows of a joined table (`pipeline.columns`).

        Raises:
            ConfigError: a rule cannot be evaluated over the table.
            InputError: captions lack the scores that their policy goes by.
        """
        # read each time: a worker may live for days, and what is taken down meanwhile must not go in
        taken = tombstones.load(self._books).mask(table)
        reasons = pc.if_else(taken, tombstones.TAKEN_DOWN, self.selection.reasons(table))
        chosen = self.captions.choose(table)
        return Judged(pc.coalesce(reasons, chosen.reasons), chosen)

    def columns(self) -> frozenset[str]:
        """The columns that are looked at, in lower case."""
        names = {name for _, one in self._rules for name in one.columns}
        names |= set(tombstones.load(self._books).columns)
        if self.rule.uids is not None:
            names.add("uid")
        if self.captions.name != "web":
            names |= _CAPTIONS
        if self.limits.per_text:
            names.add("caption")
        if self.limits.per_domain:
            names.add("url")
        if self.limits.by is not None:
            names.add(self.limits.by.lower())
        return _ALWAYS | names

    def order(self) -> list[str]:
        """The reasons that the rule itself can give, in the order in which it asks."""
        found = [tombstones.TAKEN_DOWN]
        found += ["not_in_uids"] if self.rule.uids is not None else []
        for name, _ in self._rules:
            found += [name, f"{name}_null"]
        return found


def read_shard(tar: str, sidecars: Sequence[str], names: Collection[str] | None = None) -> pa.Table:
    """The joined table of an image shard; only the columns in `names` (lower case) where given, of those that
    there are.

    Raises:
        InputError, ConfigError: as `pipeline.columns.read_joined`.
    """
    images = inputs.sibling(tar, ".parquet")
    if names is None:
        return columns.read_joined(images, sidecars)
    return columns.join(
        _read_images(images, names), ((url, columns.read_column(url, names)) for url in sidecars)
    )


def _read_images(url: str, names: Collection[str]) -> pa.Table:
    """`columns.read_images` of some columns: what img2dataset does not write is added where it is named."""
    there = columns.read_schema(url).names
    wanted = {"key", "status", *names}
    if "uid" in names and "uid" not in there:
        wanted |= {"caption", "url"}
    if not {"key", "status", "caption", "url"} <= set(there):
        return columns.read_images(url)  # says what is wrong
    table = columns.read_parquet(url, wanted)
    columns.check_keys(table, url)
    if "uid" in names:
        return columns.complete_images(table)
    # a uid that nobody asks for takes longer to make than all the rest
    unasked = table.append_column("uid", pa.nulls(len(table), pa.string()))
    return columns.complete_images(unasked).drop_columns("uid")
