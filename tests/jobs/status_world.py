"""Output folders as stages would leave them, for tests of `pairmill status`."""

from __future__ import annotations

from pathlib import Path

from pipeline import manifest, storage
from pipeline.stage import Unit


def folder_of(output: Path, *, total: int, done: int, quarantined: int = 0) -> str:
    """An output folder as a stage would leave it, without its parts."""
    units = [Unit(number=number, source={"n": number}, inputs=()) for number in range(total)]
    manifest.write_units(str(output), units)
    counts = {"in": 10, "out": 7, "dropped": {"timeout": 2, "opt_out": 1}}
    for number in range(done):
        record = {"stage": "crawl", "unit": number, "digest": "d" * 16, "files": {}, "counts": counts}
        manifest.write(str(output), record)
    for number in range(total - quarantined, total):
        storage.write_bytes(manifest.quarantine_url(str(output), number), b"{}")
    return str(output)
