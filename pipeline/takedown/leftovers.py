"""What killed runs left in a folder: it is no part of any finished unit, and may hold what was taken down.

Files of a unit without a manifest are made anew by its stage in any case, so those that hold such a row go.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import commit, locks, storage
from pipeline.errors import InputError
from pipeline.shards.reader import iter_samples
from pipeline.takedown.parts import rows_with
from pipeline.tombstones import Tombstones

_PART = re.compile(r"(?:part-)?(\d{8})(?:[._].*)?")


@dataclass(kw_only=True)
class Leftovers:
    """unfinished: numbers of the units whose files were removed. young: temporary files that stay."""

    unfinished: list[int] = field(default_factory=list)
    young: int = 0


def remove_leftovers(
    folder: str,
    committed: Collection[int],
    stones: Tombstones,
    *,
    keys: Collection[str] = (),
    older_than: float,
) -> Leftovers:
    """Removes files of unfinished units with a row that tombstones name, or that has one of the keys; and
    temporary files of killed writes. `committed` are the units with a manifest."""
    found = Leftovers()
    files = defaultdict(list)
    for name in storage.list_names(folder):
        match = _PART.fullmatch(name)
        if match and int(match[1]) not in committed:
            files[int(match[1])].append(storage.join(folder, name))
    for number, urls in sorted(files.items()):
        # a run that is at work may be committing just this unit
        idle = not locks.is_busy(folder, number) and not commit.manifests_of(folder, number)
        if idle and any(_holds(url, stones, keys) for url in urls):
            for url in urls:
                storage.remove(url, missing_ok=True)
            found.unfinished.append(number)
    storage.sweep_temporary(folder, older_than=older_than)
    pending = storage.list_folders(commit.pending_folder(folder))
    for place in pending:
        storage.sweep_folder(place, older_than=older_than)
    found.young = count_temporary(folder) + len(storage.list_folders(commit.pending_folder(folder)))
    return found


def count_temporary(folder: str) -> int:
    """Temporary files in a local folder; object stores show none."""
    if not storage.is_local(folder):
        return 0
    return sum(storage.TEMP_MARK in path.name for path in storage.local_path(folder).iterdir())


def _holds(url: str, stones: Tombstones, keys: Collection[str]) -> bool:
    """Whether a file of an unfinished unit holds such a row; one that cannot be read may."""
    try:
        if url.endswith(".parquet"):
            with storage.open_read(url) as stream:
                return _has(pq.read_table(stream), stones, keys)
        if url.endswith(".tar"):
            return any(_has(_as_table(s.key, s.members), stones, keys) for s in iter_samples(url))
    except (InputError, pa.ArrowException, ValueError):
        return True
    except FileNotFoundError:
        pass
    return False


def _has(table: pa.Table, stones: Tombstones, keys: Collection[str]) -> bool:
    if pc.any(stones.mask(table)).as_py():
        return True
    return bool(keys) and "key" in table.column_names and bool(pc.any(rows_with(table, keys)).as_py())


def _as_table(key: str, members: dict[str, bytes]) -> pa.Table:
    fields: dict[str, Any] = json.loads(members.get("json", b"{}"))
    known = {name: fields.get(name) for name in ("url", "page_url", "uid", "sha256")}
    return pa.table({name: pa.array([value], pa.string()) for name, value in {**known, "key": key}.items()})
