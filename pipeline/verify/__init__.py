"""Checks output folders against their manifests: `pairmill verify images columns/clip shards`.

Of each committed unit: the manifest says what its name stands for; every part is there with its size and
sha256; a tar is whole from its first header to its end mark, and has as many samples as the manifest counts
and the keys of the parquet's successes in their order; a parquet has the rows that were counted and unique
keys; the stats agree. Of the folder: parts without a manifest, two manifests of one unit, replacements that
were interrupted, indexes that say something else (`pipeline.verify.own`).

A foreign folder (img2dataset's) has no checksums. There the tars are read as strictly, and tar, parquet and
stats must agree; so a tar that was cut between two members is found as well (`pipeline.verify.foreign`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import manifest, storage
from pipeline.errors import ConfigError
from pipeline.verify.foreign import Foreign
from pipeline.verify.own import Own
from pipeline.verify.report import Damage, Report

__all__ = ["Damage", "Report", "verify"]

#: units that are handed to the threads at a time
WINDOW = 512

Tell = Callable[[int, int, str], None]


def verify(
    folder: str,
    *,
    units: Collection[int] | None = None,
    quick: bool = False,
    workers: int = 0,
    tell: Tell = lambda done, total, detail: None,
) -> Report:
    """Checks one folder; changes nothing in it.

    Args:
        units: only the units with these numbers, and nothing of the folder as a whole.
        quick: sizes only: nothing but listings and manifests is read.
        workers: units at a time; 0 takes as many as there are CPUs.
        tell: called with (units checked, units in all, a few words).

    Raises:
        ConfigError: the folder does not exist.
        InputError: manifests that were compacted are damaged.
    """
    if not storage.isdir(folder):
        raise ConfigError(f"{folder!r} does not exist; give output folders of stages, or of img2dataset")
    check = Own(folder, quick) if manifest.is_output(folder) else Foreign(folder, quick)
    todo = [unit for unit in check.units if units is None or unit in units]
    report = Report(folder=folder, units=len(todo))
    seen = 0
    for unit, wrong, size in _in_threads(check.unit, todo, workers or os.cpu_count() or 1):
        seen, report.bytes = seen + 1, report.bytes + size
        if wrong:
            report.damaged.append(Damage(folder=folder, unit=unit, wrong=tuple(wrong)))
        tell(seen, len(todo), f"{len(report.damaged)} damaged, {report.bytes / 1e9:,.2f} GB read")
    if units is None:
        check.folder_as_a_whole(report)
    report.damaged.sort(key=lambda d: d.unit)
    report.stage = check.stage
    return report


def _in_threads(
    check: Callable[[int], tuple[list[str], int]], units: Sequence[int], workers: int
) -> Iterator[tuple[int, list[str], int]]:
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(units), WINDOW):
            window = units[start : start + WINDOW]
            for unit, (wrong, size) in zip(window, pool.map(check, window), strict=True):
                yield unit, wrong, size
