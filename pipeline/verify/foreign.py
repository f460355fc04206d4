"""The checks of a folder that img2dataset wrote: no manifests, so tar, parquet and stats are compared."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.shards.scan import HashingReader, scan_tar
from pipeline.verify.report import Report
from pipeline.verify.tables import read_table, read_through, short


class Foreign:
    """The checks of a folder that img2dataset wrote."""

    stage = ""

    def __init__(self, folder: str, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.sizes = {storage.basename(f.url): f.size for f in storage.list_files(folder)}
        self.parts: dict[int, dict[str, str]] = defaultdict(dict)
        for name in self.sizes:
            match = re.fullmatch(r"(\d+)(\.tar|\.parquet|_stats\.json)", name)
            if match:
                self.parts[int(match.group(1))][match.group(2)] = name
        if not self.parts:
            raise ConfigError(f"{folder!r} holds neither manifests nor shards; there is nothing to verify")

    @property
    def units(self) -> list[int]:
        return sorted(self.parts)

    def unit(self, number: int) -> tuple[list[str], int]:
        parts = self.parts[number]
        stem = next(iter(parts.values())).split(".")[0].removesuffix("_stats")
        wrong = [f"{stem}{s}: missing" for s in (".tar", ".parquet", "_stats.json") if s not in parts]
        if self.quick:
            return wrong + [f"{n}: empty" for n in parts.values() if not self.sizes[n]], 0
        samples = rows = successes = None
        if ".tar" in parts:
            with storage.open_read(storage.join(self.folder, parts[".tar"])) as stream:
                found = scan_tar(HashingReader(stream))
            if found.fault:
                wrong.append(f"{parts['.tar']}: {found.fault}")
            else:
                samples = set(found.keys)
        if ".parquet" in parts:
            try:
                with storage.local_copy(storage.join(self.folder, parts[".parquet"])) as path:
                    table = read_table(str(path))
                    read_through(str(path))
                rows = table.rows
                successes = None if table.successes is None else set(table.successes)
            except (OSError, ValueError, pa.ArrowException) as error:
                wrong.append(f"{parts['.parquet']}: cannot be read ({short(error)})")
        stats: dict[str, Any] = {}
        if "_stats.json" in parts:
            try:
                stats = json.loads(storage.read_bytes(storage.join(self.folder, parts["_stats.json"])))
            except ValueError as error:
                wrong.append(f"{parts['_stats.json']}: cannot be read ({short(error)})")
        if samples is not None and successes is not None and samples != successes:
            wrong.append(
                f"the tar has {len(samples):,} samples, the parquet {len(successes):,} successes"
                + ("" if len(samples) != len(successes) else " of other keys")
            )
        if samples is not None and stats.get("successes", len(samples)) != len(samples):
            wrong.append(f"the tar has {len(samples):,} samples, the stats say {stats['successes']}")
        if rows is not None and stats.get("count", rows) != rows:
            wrong.append(f"the parquet has {rows:,} rows, the stats say {stats['count']}")
        return wrong, sum(self.sizes[name] for name in parts.values())

    def folder_as_a_whole(self, report: Report) -> None:
        report.notes.append("no manifests: checked as far as tar, parquet and stats can be compared")
