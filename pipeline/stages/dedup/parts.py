"""What the stages of all methods share: many files read at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.inputs import Shard
from pipeline.ranges import READERS


def read_all(shards: Sequence[Shard], read: Callable[[str], pa.Table]) -> list[pa.Table]:
    """What `read` takes from the main file of each shard, in their order; several are read at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda shard: read(shard.input.url), shards))
