"""Merges the manifests of finished units by the thousand: `pairmill compact FOLDER`.

Of each thousand units in turn: the merged object is written whole, then the objects that went into it go,
then the marks of void units, then the loose manifests. Whoever looks in between sees every unit just once,
since a loose manifest always wins over a merged one and both say the same. So a compaction may be killed
anywhere, and the next one goes on from there. Pictures, tables and shards are never touched.

A unit that is redone later has a loose manifest again, until the next compaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline import commit, compacted, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.manifest import Done, Listing


@dataclass(kw_only=True)
class Result:
    """merged: manifests that are no files of their own any more. objects: objects written. damaged: locations
    of manifests that are not what their names say; they were left where they are."""

    merged: int = 0
    objects: int = 0
    damaged: list[str] = field(default_factory=list)


def compact(output: str, *, tell: Callable[[int, int], None] = lambda done, total: None) -> Result:
    """Merges the loose manifests of a finished (or unfinished) output folder. No run may replace units of the
    folder meanwhile.

    Args:
        tell: called with (thousands done, thousands to do).

    Raises:
        ConfigError: no stage wrote the folder.
        InputError: a merged object is damaged, or another compaction is at work.
    """
    if not manifest.is_output(output):
        raise ConfigError(f"{output!r} has no manifests; give output folders of stages")
    commit.roll_forward(output)
    for copy in manifest.list_folder(output).lone_copies:
        compacted.restore(copy)
    listing = manifest.list_folder(output)
    loose: dict[int, list[Done]] = defaultdict(list)
    for done in listing.loose:
        loose[done.number // compacted.THOUSAND].append(done)
    todo = sorted(
        loose.keys()
        | {number // compacted.THOUSAND for number in listing.void}
        | {thousand for thousand, urls in listing.compacted.items() if len(urls) > 1}
    )
    result = Result()
    for done_, thousand in enumerate(todo):
        tell(done_, len(todo))
        _merge_thousand(output, thousand, loose.get(thousand, []), listing, result)
    tell(len(todo), len(todo))
    return result


def _merge_thousand(
    output: str, thousand: int, loose: Sequence[Done], listing: Listing, result: Result
) -> None:
    before = listing.compacted.get(thousand, [])
    void = {n for n in listing.void if n // compacted.THOUSAND == thousand}
    entries: dict[tuple[int, str, str], dict[str, Any]] = {}
    here = Listing(loose=list(loose), void=void, compacted={thousand: before})
    try:
        for done in manifest.standing_rows(output, here):
            entries[done.number, done.digest, done.content] = manifest.read(done)
    except FileNotFoundError as error:
        raise InputError(f"{output}: another compaction is at work; run again when it has ended") from error
    merged = []
    for done, record in zip(loose, _read_loose(loose), strict=True):
        if record is None:
            result.damaged.append(done.url)
        else:
            merged.append(done)
            entries[done.number, done.digest, done.content] = record
    written = ""
    if entries:
        name, data = compacted.encode((d, c, record) for (_, d, c), record in entries.items())
        written = storage.join(manifest.manifest_folder(output), name)
        if written not in before:
            compacted.write(manifest.manifest_folder(output), name, data)
            result.objects += 1
    for url in before:
        if url != written:
            compacted.remove(url)
    _remove([manifest.void_url(output, n) for n in sorted(void)])
    _remove([done.url for done in merged])
    result.merged += len(merged)


def _read_loose(loose: Sequence[Done]) -> list[dict[str, Any] | None]:
    """The manifests; None for one that is not what its name says."""
    with ThreadPoolExecutor(compacted.THREADS) as pool:
        return list(pool.map(_read_checked, loose))


def _read_checked(done: Done) -> dict[str, Any] | None:
    try:
        record = manifest.read(done)
    except (ValueError, FileNotFoundError):
        return None
    return record if manifest.matches(done, record) else None


def _remove(urls: Sequence[str]) -> None:
    with ThreadPoolExecutor(compacted.THREADS) as pool:
        list(pool.map(lambda url: storage.remove(url, missing_ok=True), urls))
