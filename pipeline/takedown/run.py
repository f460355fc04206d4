"""Runs a takedown: the tombstones first, so that nothing comes in again meanwhile, then folder by folder in
the order in which they are made from each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import commit, locks, manifest, scratch, storage, tombstones
from pipeline.errors import ConfigError, InputError
from pipeline.manifest import Done
from pipeline.shards import view
from pipeline.shards.format import shard_name
from pipeline.stages.pack.finish import write_indexes, write_view_index
from pipeline.takedown.leftovers import remove_leftovers
from pipeline.takedown.lineage import Lineage
from pipeline.takedown.report import Failure, FolderReport, Report
from pipeline.takedown.search import CANDIDATES, COLUMNS, IMAGES, NOTHING, SHARDS, search_parquet
from pipeline.takedown.unit import Outcome, UnitJob, rewrite_unit
from pipeline.tombstones import Entry, Tombstones

#: what one unit may fail of while the others go on
UNIT_ERRORS = (InputError, OSError, pa.ArrowException)
#: the name of a candidates' part begins so
PART = "part-"
#: units whose results may wait in memory
AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The folders to be searched; any of them, several of each.

    candidates, images, shards: outputs of discover, crawl and pack. columns: outputs of score and dedup over
    the images or candidates; they know rows by their keys alone, and so need those beside them.
    """

    candidates: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises ConfigError for a folder that is missing, that no stage of ours wrote, or that is another
        kind of folder."""
        if not (self.candidates or self.images or self.shards):
            hint = "; columns know keys alone, so give the images beside them" if self.columns else ""
            raise ConfigError(f"no folder to search: pass --images, --shards or --candidates{hint}")
        for kind, url in dict.fromkeys(self):
            if not storage.isdir(url):
                raise ConfigError(f"{kind} folder {url!r} does not exist; mend --{kind}")
            if not manifest.is_output(url):
                raise ConfigError(
                    f"{kind} folder {url!r} was not written by pairmill (it has no manifests), and is not "
                    "rewritten; a tombstone keeps its pictures out of what is packed from it: "
                    "`pairmill pack --tombstones FILE`"
                )
            found = _kind_of(url)
            if found not in (None, kind):
                raise ConfigError(f"{url!r} is a folder of {found}, not of {kind}; pass it as --{found}")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(kind, folder), each before those that are made from it: columns come wherever something may be
        below them, as they may be over candidates, over images or over packed shards."""
        for kind, folders in ((CANDIDATES, self.candidates), (IMAGES, self.images), (SHARDS, self.shards)):
            yield from ((kind, url) for url in folders)
            if folders:
                yield from ((COLUMNS, url) for url in self.columns)


def _kind_of(url: str) -> str | None:
    """What a folder is, by one of its manifests; None where no unit is finished yet."""
    done = next(iter(manifest.list_done(url).values()), None)
    if done is None:
        return None
    record = manifest.read(done)
    named = {"pack": SHARDS, "discover": CANDIDATES}.get(record["stage"])
    return named or (IMAGES if any(name.endswith(".tar") for name in record["files"]) else COLUMNS)


def take_down(
    folders: Folders,
    entries: Sequence[Entry],
    *,
    dry_run: bool = False,
    workers: int = 4,
    leftovers_after: float = 3600.0,
) -> Report:
    """Takes down what the entries name; returns what happened.

    Args:
        dry_run: look and tell, write nothing.
        workers: units searched or rewritten at a time; each has one parquet and a local tar.
        leftovers_after: seconds after which a temporary file counts as left by a killed write.

    Raises:
        ConfigError: before anything was written: a folder is missing or not ours, or tombstones cannot be
            read.
    """
    folders.check()
    report = Report(entries=len(entries))
    books = (*folders.candidates, *folders.images, *folders.shards)
    for folder in books:
        tombstones.load(tombstones.book_url(folder))
    if not dry_run:
        scratch.sweep()  # copies of remote tars that a killed takedown left on this machine
        report.busy = [f"{url} ({who})" for _, url in dict.fromkeys(folders) for who in locks.runs(url)]
        added = [tombstones.append(folder, entries) for folder in books]
        report.new_entries = max(added, default=0)
    with ThreadPoolExecutor(workers) as pool:
        run = _Run(Tombstones(entries), report, pool, dry_run=dry_run, leftovers_after=leftovers_after)
        for kind, url in folders:
            # of packed shards: what was chosen among all samples, which knows them by their keys
            for place in _inner_folders(url) if kind in (COLUMNS, SHARDS) else ():
                run.folder(COLUMNS, place)
            run.folder(kind, url)
    report.folders = _merged(report.folders, dry_run=dry_run)
    return report


def _inner_folders(url: str) -> list[str]:
    """The folders of a verb's inner stages, such as dedup's `_sketch`."""
    found = [f for f in storage.list_folders(url) if storage.basename(f) != manifest.BOOKS]
    return [f for f in found if storage.basename(f).startswith("_") and manifest.is_output(f)]


class _Run:
    """What the folders of one takedown share."""

    def __init__(
        self,
        stones: Tombstones,
        report: Report,
        pool: ThreadPoolExecutor,
        *,
        dry_run: bool,
        leftovers_after: float,
    ) -> None:
        self.stones, self.report, self.pool = stones, report, pool
        self.dry_run, self.leftovers_after = dry_run, leftovers_after
        self.lineage = Lineage()

    def folder(self, kind: str, url: str) -> None:
        """Searches a folder and rewrites what it has to lose."""
        told = FolderReport(kind=kind, url=url)
        self.report.folders.append(told)
        if not self.dry_run:
            commit.roll_forward(url)
        standing = _standing(url)
        told.shards = len(standing)
        sources = {unit.number: unit.source for unit in manifest.read_units(url)}
        changes = []
        for outcome in self._each(
            sorted(standing), lambda n: self._unit(kind, url, standing[n], sources.get(n, {})), url
        ):
            told.note(outcome)
            if outcome.change is not None:
                changes.append(outcome)
        for outcome in changes:
            assert outcome.change is not None
            self.lineage.add(outcome.number, outcome.names, outcome.was, outcome.change)
        if not self.dry_run:
            self._tidy(told, kind, set(standing))

    def _unit(self, kind: str, url: str, standing: Sequence[Done], source: Mapping[str, Any]) -> Outcome:
        number = standing[0].number
        found = NOTHING
        if kind != COLUMNS:
            prefix = PART if kind == CANDIDATES else ""
            place = storage.join(url, f"{prefix}{shard_name(number)}.parquet")
            found = search_parquet(place, kind, self.stones)
        if not found and not self.lineage.may_concern(number, source):
            return Outcome(number=number, lacking=found.lacking)
        job = UnitJob(folder=url, kind=kind, number=number, standing=tuple(standing), found=found)
        return rewrite_unit(job, self.lineage, dry_run=self.dry_run)

    def _each(self, numbers: Sequence[int], work: Callable[[int], Outcome], url: str) -> Iterator[Outcome]:
        """What became of the units that could be worked on; the others are failures."""

        def attempt(number: int) -> Outcome | Failure:
            try:
                return work(number)
            except UNIT_ERRORS as error:
                return Failure(url, number, str(error))

        for start in range(0, len(numbers), AT_ONCE):
            for result in self.pool.map(attempt, numbers[start : start + AT_ONCE]):
                if isinstance(result, Failure):
                    self.report.failures.append(result)
                else:
                    yield result

    def _tidy(self, told: FolderReport, kind: str, committed: set[int]) -> None:
        """Files of units that were never finished, temporary files, and the indexes of packed shards."""
        keys = self.lineage.keys if kind == COLUMNS else frozenset()
        left = remove_leftovers(told.url, committed, self.stones, keys=keys, older_than=self.leftovers_after)
        told.unfinished, told.leftovers = left.unfinished, left.young
        if kind == SHARDS and storage.exists(storage.join(told.url, "sizes.json")):
            # always, as a crash may have come between a shard and the indexes
            write_indexes(told.url)
        if kind == SHARDS and view.is_view(told.url):
            write_view_index(told.url, view.open_view(told.url).images)


def _standing(url: str) -> dict[int, list[Done]]:
    standing = defaultdict(list)
    for done in manifest.list_manifests(url):
        standing[done.number].append(done)
    return dict(standing)


def _merged(folders: Sequence[FolderReport], *, dry_run: bool) -> list[FolderReport]:
    """One report a folder, although columns are gone through several times. A later time of a dry run finds
    again what the earlier one did."""
    merged: dict[str, FolderReport] = {}
    for told in folders:
        known = merged.get(told.url)
        if known is None or (dry_run and told.rows >= known.rows):
            merged[told.url] = told
        elif not dry_run:
            known.add(told)
    return list(merged.values())
