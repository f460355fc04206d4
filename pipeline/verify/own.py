"""The checks of a folder that a stage wrote: everything against the manifests."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from pipeline import commit, compacted, manifest, storage
from pipeline.manifest import Done
from pipeline.shards import index
from pipeline.shards.format import is_key, shard_name
from pipeline.shards.scan import HashingReader, scan_tar
from pipeline.stage import Counts, digest_of
from pipeline.verify.report import Damage, Report
from pipeline.verify.tables import Table, read_table, short
from pipeline.verify.views import ViewImages, is_view_unit

#: stage -> which of its counts is the number of rows of its `.parquet`
ROWS = {"crawl": "in", "discover": "out", "pack": "out", "score": "in"}
#: stages whose parquets have each key once
KEYED = ("crawl", "dedup", "dedup-contamination", "dedup-near", "dedup-semantic", "pack", "score")
#: stages whose tars and parquets have their keys in ascending order
ASCENDING = ("crawl",)


class Own:
    """The checks of a folder that a stage wrote."""

    def __init__(self, folder: str, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.done: dict[int, list[Done]] = defaultdict(list)
        for done in manifest.list_manifests(folder):
            self.done[done.number].append(done)
        self.sizes = {storage.basename(f.url): f.size for f in storage.list_files(folder)}
        self.facts: dict[str, tuple[int, int]] = {}  # tar -> (samples, size)
        self.stage = ""
        self._images = ViewImages(folder)

    @property
    def units(self) -> list[int]:
        return sorted(self.done)

    def unit(self, number: int) -> tuple[list[str], int]:
        """(what is wrong with a unit, bytes read)."""
        *others, done = self.done[number]
        wrong = [f"{1 + len(others)} manifests: two runs raced"] if others else []
        try:
            record = manifest.read(done)
        except (ValueError, FileNotFoundError) as error:
            return [*wrong, f"the manifest cannot be read ({error})"], 0
        wrong += manifest_faults(done, record)
        if any(text.startswith("the manifest") for text in wrong):
            return wrong, 0
        self.stage = record["stage"]
        self._note_tars(record)
        read = 0
        tables: dict[str, Table] = {}
        keys: list[str] | None = None
        for name, facts in sorted(record["files"].items()):
            if name not in self.sizes:
                wrong.append(f"{name}: missing")
            elif self.sizes[name] != facts["size"]:
                wrong.append(f"{name}: {self.sizes[name]:,} bytes, the manifest says {facts['size']:,}")
            elif not self.quick:
                read += self.sizes[name]
                faults, found = self._part(name, facts, record)
                wrong += faults
                if isinstance(found, Table):
                    tables[name] = found
                elif found is not None:
                    keys = found
        table = next((t for n, t in tables.items() if n.endswith(f"{shard_name(number)}.parquet")), None)
        wrong += _disagreements(record, keys, table)
        if not wrong and is_view_unit(record):
            wrong = self._images.faults(record, quick=self.quick)
        return wrong, read

    def _note_tars(self, record: Mapping[str, Any]) -> None:
        for name, facts in record["files"].items():
            if name.endswith(".tar"):
                self.facts[name] = (record["counts"]["out"], facts["size"])

    def _part(
        self, name: str, facts: Mapping[str, Any], record: Mapping[str, Any]
    ) -> tuple[list[str], Table | list[str] | None]:
        """(what is wrong with a part, its table or its tar's keys where it has them)."""
        url = storage.join(self.folder, name)
        try:
            if name.endswith(".tar"):
                return self._tar(name, url, facts, record)
            with storage.local_copy(url) as path:
                if storage.sha256_file(path) != facts["sha256"]:
                    return [f"{name}: sha256 differs from the manifest's"], None
                if name.endswith(".parquet"):
                    return [], read_table(str(path))
                if name.endswith("_stats.json"):
                    return _stats_faults(name, json.loads(path.read_bytes()), record), None
        except FileNotFoundError:
            return [f"{name}: missing"], None
        except (OSError, ValueError, pa.ArrowException) as error:
            return [f"{name}: cannot be read ({short(error)})"], None
        return [], None

    def _tar(
        self, name: str, url: str, facts: Mapping[str, Any], record: Mapping[str, Any]
    ) -> tuple[list[str], list[str] | None]:
        notes = record.get("notes", {})
        with storage.open_read(url) as stream:
            reader = HashingReader(stream, md5="md5" in notes)
            found = scan_tar(reader)
        wrong = [] if reader.sha256() == facts["sha256"] else [f"{name}: sha256 differs from the manifest's"]
        wrong += [f"{name}: {found.fault}"] if found.fault else []
        if not wrong and "md5" in notes and reader.md5() != notes["md5"]:
            wrong.append(f"{name}: md5 differs from the manifest's")
        return wrong, found.keys if not wrong else None

    def folder_as_a_whole(self, report: Report) -> None:
        planned = {unit.number for unit in manifest.read_units(self.folder)}
        pending = {
            int(storage.basename(url).partition("-")[0])
            for url in storage.list_folders(commit.pending_folder(self.folder))
            if storage.exists(storage.join(url, commit.INTENT))
        }
        for number in sorted(pending):
            self._add(report, number, "a replacement was interrupted; any run finishes it")
        for number, names in sorted(_parts_of_units(self.sizes).items()):
            if number in self.done or number in pending:
                continue
            if number in planned:
                self._add(report, number, f"{', '.join(names)}: there is no manifest")
            else:
                report.unplanned += [f"{name}: no unit of this number was ever planned" for name in names]
        standing = self.done.keys() | pending
        report.missing = len(planned - standing - {d.unit for d in report.damaged})
        quarantined = manifest.list_quarantined(self.folder) - standing
        if quarantined:
            report.notes.append(f"{len(quarantined)} units failed three times, see _pairmill/quarantine")
        left = storage.list_temporary(self.folder)
        if left:
            report.notes.append(f"{len(left)} temporary files of killed writes; the next run sweeps them")
        report.indexes += self._index_faults()
        listing = manifest.list_folder(self.folder)
        lone = [storage.basename(url) for url in listing.lone_copies]
        report.indexes += [f"{name}: a copy of merged manifests that are missing" for name in lone]
        for urls in listing.compacted.values():
            for url in urls:
                found = [] if self.quick else compacted.damaged(url)
                report.indexes += [f"{storage.basename(u)}: merged manifests, damaged" for u in found]

    def _add(self, report: Report, number: int, text: str) -> None:
        report.damaged.append(Damage(folder=self.folder, unit=number, wrong=(text,)))

    def _index_faults(self) -> list[str]:
        """Where sizes.json and wids.json, if there are any, do not say what the tars are."""
        wrong = []
        for name, facts_of in ((index.SIZES, _facts_of_sizes), (index.WIDS, _facts_of_wids)):
            if name not in self.sizes:
                continue
            try:
                told = facts_of(json.loads(storage.read_bytes(storage.join(self.folder, name))))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                wrong.append(f"{name}: cannot be read ({short(error)})")
                continue
            tars = {n for n in self.sizes if n.endswith(".tar")}
            if told.keys() != tars:
                odd = sorted(told.keys() ^ tars)
                wrong.append(f"{name}: lists other tars than there are, such as {odd[0]}")
            for tar, (samples, size) in sorted(told.items()):
                found = self.facts.get(tar)
                if found is not None and (samples != found[0] or size not in (None, found[1])):
                    wrong.append(f"{name}: says {samples:,} samples of {tar}, which has {found[0]:,}")
                    break
        return wrong


def _facts_of_sizes(value: Mapping[str, int]) -> dict[str, tuple[int, int | None]]:
    return {name: (samples, None) for name, samples in value.items()}


def _facts_of_wids(value: Mapping[str, Any]) -> dict[str, tuple[int, int | None]]:
    return {s["url"]: (s["nsamples"], s["filesize"]) for s in value["shardlist"]}


def manifest_faults(done: Done, record: Any) -> list[str]:
    """Where a manifest does not say what its name stands for, or its counts do not add up."""
    if not manifest.matches(done, record):
        return ["the manifest is damaged: unit, digest or checksums are not those of its name"]
    try:
        digest = digest_of(
            stage=record["stage"],
            version=record["version"],
            config=record["config"],
            source=record["source"],
            fingerprints=[i["fingerprint"] for i in record["inputs"]],
        )
        Counts.from_json(record["counts"]).check()
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        return [f"the manifest is damaged ({short(error)})"]
    if digest != done.digest:
        return ["the manifest is damaged: what the unit was made from is not what its name stands for"]
    return []


def _disagreements(record: Mapping[str, Any], tar_keys: list[str] | None, table: Table | None) -> list[str]:
    """Where tar, parquet and counts of one unit do not agree."""
    wrong = []
    stage, counts, notes = record["stage"], record["counts"], record.get("notes", {})
    if notes.get("samples", counts["out"]) != counts["out"]:
        wrong.append(f"the manifest is damaged: {notes['samples']:,} samples, and {counts['out']:,} came out")
    if tar_keys is not None:
        if len(tar_keys) != counts["out"]:
            wrong.append(f"the tar has {len(tar_keys):,} samples, the manifest counts {counts['out']:,}")
        bad = [k for k in tar_keys if not is_key(k)]
        if bad:
            wrong.append(f"the tar has a key that is none: {bad[0]!r}")
        if stage in ASCENDING and any(a >= b for a, b in itertools.pairwise(tar_keys)):
            wrong.append("the keys of the tar are not in order")
    if table is None:
        return wrong
    if stage in ROWS and table.rows != counts[ROWS[stage]]:
        wrong.append(f"the parquet has {table.rows:,} rows, the manifest counts {counts[ROWS[stage]]:,}")
    if (
        stage in KEYED
        and table.keys is not None
        and (None in table.keys or len(set(table.keys)) != len(table.keys))
    ):
        wrong.append("the parquet has a key twice, or none")
    if tar_keys is not None and table.successes is not None and tar_keys != table.successes:
        wrong.append("the keys of the tar are not those of the parquet's successes")
    return wrong


def _stats_faults(name: str, stats: Any, record: Mapping[str, Any]) -> list[str]:
    counts = record["counts"]
    told = (stats.get("count", counts["in"]), stats.get("successes", counts["out"]))
    if told != (counts["in"], counts["out"]):
        return [f"{name}: says {told[1]} of {told[0]}, the manifest {counts['out']} of {counts['in']}"]
    return []


_PART = re.compile(r"(?:[a-z]+-)?(\d{8})(?:[._].*)")


def _parts_of_units(names: Collection[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for name in sorted(names):
        match = _PART.fullmatch(name)
        if match:
            found[int(match.group(1))].append(name)
    return found
