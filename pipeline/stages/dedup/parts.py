"""What the stages of all methods share: many files read at a time, and folders read as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.inputs import Shard
from pipeline.ranges import READERS
from pipeline.stage import Input


def folder_input(folder: str, shards: Sequence[Shard]) -> Input:
    """A whole folder as one input, marked by the content of all its shards: units that see all shards would
    otherwise each carry a list of them."""
    marks = "\n".join(f"{s.number}:{s.input.fingerprint}" for s in shards)
    return Input(url=folder, fingerprint=hashlib.sha256(marks.encode()).hexdigest()[:12])


def read_all(shards: Sequence[Shard], read: Callable[[str], pa.Table]) -> list[pa.Table]:
    """What `read` takes from the main file of each shard, in their order; several are read at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda shard: read(shard.input.url), shards))
