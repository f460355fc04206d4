"""What each stage comes to for so many pairs: units, objects, requests, bytes, hours. Plain sums.

Every unit is committed by the same requests (`unit_writes` and its parts); a file that is read in part costs
`open_gets` and some processor time, one that is read or written whole a request for each `chunk`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """units; objects: files that are written, manifests included. reads, writes: requests. taken, given:
    bytes read and written. cores, gpus: hours. memory: bytes of the largest worker."""

    name: str
    units: float
    objects: float
    reads: float
    writes: float
    taken: float
    given: float
    cores: float
    gpus: float = 0.0
    memory: float

    def dollars(self, a: SimpleNamespace) -> float:
        requests = self.reads * a.read_price + self.writes * a.write_price
        return requests + self.cores * a.core_hour + self.gpus * a.gpu_hour


def stages(values: dict[str, float]) -> list[Cost]:
    """All stages of the chain, in their order."""
    a = SimpleNamespace(**values)
    asked = a.pairs / a.fetched
    candidates = asked / a.selected
    files = math.ceil(candidates / a.pairs_per_wat)
    shards = math.ceil(a.pairs / a.shard_rows)
    shard_tar = a.shard_rows * a.picture_bytes
    return [
        _stage(
            a, "discover", units=files, rows=candidates, us=a.discover_us,
            whole=a.wat_bytes, written=[candidates / files * a.candidate_bytes],
        ),
        *_exchange(
            a, "dedup of candidates", shards=files, rows=candidates, us=a.candidates_dedup_us,
            row_bytes=a.candidate_bytes, entries=1, entry_bytes=a.entry_bytes, entry_memory=a.exact_memory,
        ),
        _stage(
            a, "language", units=files, rows=candidates, us=a.language_us,
            whole=candidates / files * a.candidate_bytes, written=[candidates / files * 4],
        ),
        _stage(
            a, "crawl", units=shards, rows=a.pairs, us=a.crawl_us, whole=0,
            written=[shard_tar, a.shard_rows / a.fetched * a.row_bytes, 300],
            extra_taken=a.pairs * a.body_bytes,  # from the web, not from the store
        ),
        *(
            _stage(
                a, f"score {kind}", units=shards, rows=a.pairs, us=a.decode_us, whole=shard_tar,
                written=[a.shard_rows * size], gpus=a.pairs / a.gpu_images / HOUR,
            )
            for kind, size in (("clip", 4), ("embedding", 2 * a.dimensions))
        ),
        _stage(
            a, "score hash", units=shards, rows=a.pairs, us=a.hash_us, whole=shard_tar,
            written=[a.shard_rows * 200],
        ),
        *_exchange(
            a, "dedup exact", shards=shards, rows=a.pairs, us=a.exact_us, row_bytes=a.row_bytes, entries=2,
            entry_bytes=a.entry_bytes, entry_memory=a.exact_memory,
        ),
        *_exchange(
            a, "dedup near", shards=shards, rows=a.pairs, us=a.near_us, row_bytes=200, entries=a.near_entries,
            entry_bytes=a.near_entry_bytes, entry_memory=a.near_memory,
        ),
        *_semantic(a, shards),
        _stage(a, "pack --dry_run", units=0, rows=a.pairs, us=a.dry_run_us, whole=0, written=[],
               opened=6 * shards, extra_taken=6 * shards * a.shard_rows * 20),
        _stage(
            a, "pack", units=math.ceil(shards / a.pack_group), rows=a.kept * a.pairs, us=a.pack_us,
            whole=a.pack_group * shard_tar, written=[a.kept * a.pack_group * shard_tar, 1e6, 300],
            opened=6 * a.pack_group,
        ),
    ]  # fmt: skip


def buckets_for(a: SimpleNamespace, entries: float, entry_memory: float) -> int:
    """The fewest buckets that fit into `bucket_memory`."""
    return max(16, math.ceil(entries * entry_memory / a.bucket_memory))


def _stage(
    a: SimpleNamespace,
    name: str,
    *,
    units: float,
    rows: float,
    us: float,
    whole: float,
    written: list[float],
    opened: float = 0.0,
    piece: float = 0.0,
    flops: float = 0.0,
    gpus: float = 0.0,
    memory: float = 0.0,
    extra_taken: float = 0.0,
) -> Cost:
    """One stage.

    Args:
        us: processor time of a row.
        whole: bytes of what a unit reads whole. written: bytes of each part of a unit.
        opened: files of which a unit (of a stage without units: all of it) reads a range of `piece` bytes.
        extra_taken: bytes read that none of these is.
    """
    times = units or 1
    reads = times * (opened * a.open_gets + (1 + math.ceil(whole / a.chunk) if whole else 0))
    parts = sum(_puts(a, size) for size in written)
    cores = (rows * us + times * opened * a.open_us) / 1e6 / HOUR + flops / a.core_flops / HOUR
    return Cost(
        name=name,
        units=units,
        objects=units * (len(written) + 1),
        reads=reads,
        writes=units * (parts + a.unit_writes),
        taken=times * (whole + opened * piece) + extra_taken,
        given=units * sum(written),
        cores=cores,
        gpus=gpus,
        memory=a.base_memory + memory,
    )


def _puts(a: SimpleNamespace, size: float) -> int:
    """One request, or those of a multipart upload."""
    return 1 if size <= 2 * a.chunk else 2 + math.ceil(size / a.chunk)


def _exchange(
    a: SimpleNamespace,
    name: str,
    *,
    shards: int,
    rows: float,
    us: float,
    row_bytes: float,
    entries: float,
    entry_bytes: float,
    entry_memory: float,
) -> list[Cost]:
    """Sketch, resolve and mark: the last two open every shard once a bucket. The processor time of the rows
    is sketch's here; what is opened comes to the stage that opens it."""
    buckets = buckets_for(a, rows * entries, entry_memory)
    sketch = rows / shards * entries * entry_bytes
    losers = 0.2 * rows / buckets * 30
    # a row group has 8192 rows: less is not read
    group = min(sketch, 8192 * entry_bytes)
    group_of_losers = min(losers, 8192 * 30)
    return [
        _stage(a, f"{name}: sketch", units=shards, rows=rows, us=us, whole=rows / shards * row_bytes,
               written=[sketch, rows / shards * 8]),
        _stage(a, f"{name}: resolve, {buckets} buckets", units=buckets, rows=0, us=0, whole=0,
               written=[losers], opened=shards, piece=max(group, sketch / buckets),
               memory=rows * entries / buckets * entry_memory),
        _stage(a, f"{name}: mark", units=shards, rows=0, us=0, whole=rows / shards * 8,
               written=[rows / shards * 10], opened=buckets, piece=group_of_losers),
    ]  # fmt: skip


def _semantic(a: SimpleNamespace, shards: int) -> list[Cost]:
    """The clusters are as many as make assigning as dear as comparing; so are the products of both."""
    clusters = round(math.sqrt(a.pairs / 2))
    sample = 64 * clusters
    vector = 2 * a.dimensions
    row = vector + 30
    buckets = buckets_for(a, a.pairs, vector + 100)
    groups = math.ceil(shards / a.group)
    group_rows = a.group * a.shard_rows
    sampled = math.ceil(4 * sample / a.shard_rows)
    resolved = a.pairs / buckets * 30
    return [
        _stage(a, f"dedup semantic: centroids, {clusters:,}", units=1, rows=0, us=0,
               whole=sampled * a.shard_rows * vector, written=[clusters * vector],
               flops=20 * 2.0 * sample * clusters * a.dimensions,
               memory=sample * a.dimensions * 10),
        _stage(a, f"dedup semantic: assign, groups of {a.group:.0f}", units=groups, rows=a.pairs,
               us=a.semantic_us, whole=group_rows * vector, written=[group_rows * row],
               flops=2 * a.pairs * clusters * a.dimensions, memory=3 * group_rows * row),
        _stage(a, f"dedup semantic: resolve, {buckets} buckets", units=buckets, rows=0, us=0, whole=0,
               written=[resolved], opened=groups, piece=group_rows * row / buckets + 256 * row,
               flops=a.pairs**2 / clusters * a.dimensions, memory=a.pairs / buckets * (vector + 100)),
        _stage(a, "dedup semantic: collect", units=groups, rows=0, us=0, whole=0, written=[group_rows * 25],
               opened=buckets, piece=min(resolved, 2 * 8192 * 30), memory=group_rows * 200),
        _stage(a, "dedup semantic: mark", units=shards, rows=0, us=0, whole=a.shard_rows * 8,
               written=[a.shard_rows * 20], opened=1, piece=2 * 8192 * 25),
    ]  # fmt: skip
