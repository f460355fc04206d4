"""One unit of a takedown: its files without the rows that go, its counts, its manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import candidates, columns, commit, manifest, scratch, storage
from pipeline.errors import InputError
from pipeline.manifest import Done
from pipeline.shards.format import ROW_DIGITS
from pipeline.shards.view import TEXTS, open_view
from pipeline.stage import Counts, Input, Payload, digest_of
from pipeline.stages.pack.finish import shard_facts, view_facts
from pipeline.stages.pack.view import find_places, without
from pipeline.takedown import parts
from pipeline.takedown.lineage import Change, Lineage, former_marks
from pipeline.takedown.report import Gone, Outcome
from pipeline.takedown.search import CANDIDATES, COLUMNS, IMAGES, SHARDS, Found
from pipeline.tombstones import empty_rows


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """A unit that has rows to lose, or that may be made from one that had: its standing manifests, and what
    the search found in it."""

    folder: str
    kind: str
    number: int
    standing: tuple[Done, ...]
    found: Found


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What the rewriting of a unit starts from. inputs: what it is made from, as that is now."""

    folder: str
    record: Mapping[str, Any]
    keys: frozenset[str]
    positional: bool
    work: Path
    inputs: list[dict[str, Any]]

    def part(self, suffix: str) -> str | None:
        """The name of the part with this suffix."""
        return next((name for name in self.record["files"] if name.endswith(suffix)), None)

    def url(self, name: str) -> str:
        return storage.join(self.folder, name)

    def sha256(self, name: str) -> str:
        return str(self.record["files"][name]["sha256"])

    @property
    def counts(self) -> Counts:
        return Counts.from_json(self.record["counts"])


@dataclass(kw_only=True)
class Rewritten:
    """New parts by file name (those not named stay as they are), counts, notes."""

    parts: dict[str, Payload]
    counts: Counts
    notes: dict[str, Any] = field(default_factory=dict)


def rewrite_unit(job: UnitJob, lineage: Lineage, *, dry_run: bool) -> Outcome:
    """Takes rows out of one unit and puts it back through the journal.

    Raises:
        InputError: a file of the unit is missing or damaged.
    """
    record = manifest.read(job.standing[-1])
    found = job.found
    followed = lineage.follow(record["inputs"])
    positional = job.kind == CANDIDATES or (job.kind == COLUMNS and followed.positional)
    keys = _keys_to_go(job, record, found, followed.keys, positional=positional)
    outcome = Outcome(number=job.number, gone=_tell(job, found, keys), names=tuple(record["files"]))
    outcome.lacking = found.lacking
    outcome.was = tuple(former_marks(record, job.standing))
    gone = frozenset({*found.keys, *found.before})
    if job.kind in (COLUMNS, SHARDS):  # keys of candidates are not those of the images made from them
        gone |= followed.keys
    outcome.change = Change(mark=job.standing[-1].content, keys=gone, positional=positional)
    if not keys and not followed.changed:
        # nothing to do; but what is made from it may have been left behind by a crash, or not been at hand
        return outcome
    outcome.rewritten, outcome.relinked = bool(keys), not keys
    if not dry_run:
        mark = _put_back(job, record, followed.inputs, keys, outcome.was, positional=positional)
        outcome.change = replace(outcome.change, mark=mark)
    return outcome


def _put_back(
    job: UnitJob,
    record: Mapping[str, Any],
    inputs: list[dict[str, Any]],
    keys: frozenset[str],
    was: Collection[str],
    *,
    positional: bool,
) -> str:
    """Rewrites the files that lose rows, and the manifest; returns the unit's content mark."""
    with scratch.folder() as work:
        unit = Unit(
            folder=job.folder, record=record, keys=keys, positional=positional, work=work, inputs=inputs
        )
        # a view says where pictures lie, which is another place once their tar has lost some
        rewrite = keys or unit.part(TEXTS) is not None
        new = REWRITE[job.kind](unit) if rewrite else Rewritten(parts={}, counts=unit.counts)
        volatile = {n for n, f in record["files"].items() if f.get("volatile")} & set(new.parts)
        files = {n: {"sha256": commit.checksum(p), "volatile": n in volatile} for n, p in new.parts.items()}
        mark = manifest.content_mark({**record["files"], **files})
        made = _new_record(record, inputs, new, was=was, now=mark, rows=len(keys))
        stale = [done.url for done in job.standing]
        written = commit.replace(job.folder, made, new.parts, stale=stale, volatile=volatile)
        assert manifest.content_mark(written["files"]) == mark
    return mark


def _keys_to_go(
    job: UnitJob, record: Mapping[str, Any], found: Found, inherited: Collection[str], *, positional: bool
) -> frozenset[str]:
    """The keys of the rows that the unit has and is to lose."""
    if job.kind in (CANDIDATES, IMAGES) or not inherited:
        return frozenset(found.keys)
    there = set()
    for name in record["files"]:
        if name.endswith(".parquet"):
            table = columns.read_parquet(storage.join(job.folder, name))
            there |= _keys_in(table, positional=positional)
    return frozenset({*found.keys, *(there & set(inherited))})


def _keys_in(table: pa.Table, *, positional: bool) -> set[str]:
    """The keys of a table; over candidates only of rows that say anything, as emptied ones stay."""
    if "key" not in table.column_names:
        return set()
    if not (positional and _one_row_each(table)):
        return set(table["key"].to_pylist())
    said = pa.repeat(pa.scalar(False), len(table))
    for name in table.column_names:
        if name != "key":
            said = pc.or_(said, pc.is_valid(table[name]).combine_chunks())
    return set(table["key"].filter(said).to_pylist())


def _one_row_each(table: pa.Table) -> bool:
    """Whether a table has one row for each candidate of its part, in their order."""
    if not len(table):
        return True
    part = int(table["key"][0].as_py()[:-ROW_DIGITS])
    return bool(table["key"].combine_chunks().equals(candidates.keys(part, 0, len(table))))


def _tell(job: UnitJob, found: Found, keys: Collection[str]) -> list[Gone]:
    urls = dict(zip(found.keys, found.urls, strict=True))
    return [Gone(job.number, key, urls.get(key)) for key in sorted(keys)]


def _new_record(
    record: Mapping[str, Any],
    inputs: list[dict[str, Any]],
    new: Rewritten,
    *,
    was: Collection[str],
    now: str,
    rows: int,
) -> dict[str, Any]:
    """The manifest as it will be, `files` of the new parts excepted."""
    before = record["notes"].get("takedown", {})
    takedown = {
        "was": list(was),
        "now": now,
        "rows": before.get("rows", 0) + rows,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    made_from = {name: record[name] for name in ("stage", "version", "config", "source")}
    return {
        **record,
        "inputs": inputs,
        "digest": digest_of(**made_from, fingerprints=[i["fingerprint"] for i in inputs]),
        "counts": new.counts.to_json(),
        "notes": {**record["notes"], **new.notes, "takedown": takedown},
        "finished": takedown["time"],
    }


def _rewrite_candidates(unit: Unit) -> Rewritten:
    """Rows emptied: the crawl numbers them by their place."""
    name = _needed(unit, ".parquet")
    table, row_group = parts.read_table(unit.url(name), unit.sha256(name))
    keys = candidates.keys(candidates.part_number(name), 0, len(table))
    taken = pc.is_in(keys, value_set=pa.array(sorted(unit.keys), pa.string()))
    data = parts.encode_table(empty_rows(table, taken), row_group)
    counts = parts.kept_counts(unit.counts, len(unit.keys))
    return Rewritten(parts={name: data}, counts=counts)


def _rewrite_images(unit: Unit) -> Rewritten:
    """Samples out of the tar, their rows in the parquet emptied, the statistics counted anew."""
    name = _needed(unit, ".parquet")
    table, row_group = parts.read_table(unit.url(name), unit.sha256(name))
    taken = parts.rows_with(table, unit.keys)
    rows = table.filter(taken)
    pictures = {
        key
        for key, status in zip(rows["key"].to_pylist(), rows["status"].to_pylist(), strict=True)
        if status == columns.SUCCESS
    }
    emptied = empty_rows(table, taken)
    new = Rewritten(
        parts={name: parts.encode_table(emptied, row_group)},
        counts=parts.image_counts(emptied),
    )
    tar, stats = unit.part(".tar"), unit.part("_stats.json")
    if tar is not None and pictures:
        parts.copy_tar(unit.url(tar), unit.sha256(tar), unit.work / "shard.tar", without=pictures)
        new.parts[tar] = unit.work / "shard.tar"
    if stats is not None:
        old = json.loads(storage.read_bytes(unit.url(stats)))
        new.parts[stats] = parts.image_stats(old, emptied)
    return new


def _rewrite_columns(unit: Unit) -> Rewritten:
    """Rows of the keys removed from every table of the unit; over candidates emptied, since these have one
    row for each candidate."""
    made: dict[str, Payload] = {}
    lost = 0
    for name in unit.record["files"]:
        if not name.endswith(".parquet"):
            continue
        table, row_group = parts.read_table(unit.url(name), unit.sha256(name))
        if "key" not in table.column_names:
            continue
        taken = parts.rows_with(table, unit.keys)
        rows = pc.sum(taken).as_py() or 0
        if rows:
            stay = unit.positional and _one_row_each(table)
            table = empty_rows(table, taken) if stay else table.filter(pc.invert(taken))
            made[name] = parts.encode_table(table, row_group)
            lost = max(lost, min(rows, len(unit.keys)))
    counts = unit.counts if unit.positional else parts.fewer_counts(unit.counts, lost)
    return Rewritten(parts=made, counts=counts)


def _rewrite_shards(unit: Unit) -> Rewritten:
    """Samples out of tar and parquet; statistics, and the notes that the indexes are written from."""
    if unit.part(TEXTS) is not None:
        return _rewrite_view(unit)
    name, tar = _needed(unit, ".parquet"), _needed(unit, ".tar")
    table, row_group = parts.read_table(unit.url(name), unit.sha256(name))
    kept = table.filter(pc.invert(parts.rows_with(table, unit.keys)))
    target = unit.work / "shard.tar"
    samples = parts.copy_tar(unit.url(tar), unit.sha256(tar), target, without=unit.keys)
    counts = parts.kept_counts(unit.counts, len(table) - len(kept))
    new = Rewritten(
        parts={tar: target, name: parts.encode_table(kept, row_group)},
        counts=counts,
        notes=shard_facts(target, samples),
    )
    stats = unit.part("_stats.json")
    if stats is not None:
        new.parts[stats] = parts.packed_stats(json.loads(storage.read_bytes(unit.url(stats))), counts)
    return new


def _rewrite_view(unit: Unit) -> Rewritten:
    """Samples out of the list and the texts of a view; where the others lie in the tars as these are now."""
    name, texts = _needed(unit, ".parquet"), _needed(unit, TEXTS)
    table, row_group = parts.read_table(unit.url(name), unit.sha256(name))
    old = parts.read_part(unit.url(texts), unit.sha256(texts))
    images = open_view(unit.folder).images
    tars = [i for i in unit.inputs if i["name"].endswith(".tar")]
    places = find_places(
        [Input(url=storage.join(images, i["name"]), fingerprint=i["fingerprint"]) for i in tars]
    )
    target = unit.work / "texts"
    kept, lost = without(table, unit.keys, places, old, target)
    if lost:
        raise InputError(
            f"{unit.url(name)}: {len(lost)} pictures, such as {lost[0]!r}, are no longer among the images; "
            "run `pairmill pack --view true` again with --overwrite"
        )
    counts = parts.kept_counts(unit.counts, len(table) - len(kept))
    made: dict[str, Payload] = {name: parts.encode_table(kept, row_group), texts: target}
    stats = unit.part("_stats.json")
    if stats is not None:
        made[stats] = parts.packed_stats(json.loads(storage.read_bytes(unit.url(stats))), counts)
    return Rewritten(parts=made, counts=counts, notes=view_facts(len(kept)))


def _needed(unit: Unit, suffix: str) -> str:
    name = unit.part(suffix)
    assert name is not None, (suffix, unit.record["files"])
    return name


REWRITE: dict[str, Callable[[Unit], Rewritten]] = {
    CANDIDATES: _rewrite_candidates,
    IMAGES: _rewrite_images,
    COLUMNS: _rewrite_columns,
    SHARDS: _rewrite_shards,
}
