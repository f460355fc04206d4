"""What `pairmill bench plan` reckons with: one name, value, unit and source for each figure.

`measured` figures stand in docs/benchmarks.md or docs/scale.md with their commands. Everything else is
somebody else's figure, a list price, or a guess, and says so.
"""

from __future__ import annotations

from typing import NamedTuple


class Assumption(NamedTuple):
    value: float
    unit: str
    source: str


ASSUMPTIONS: dict[str, Assumption] = {
    # how much there is
    "pairs": Assumption(5e9, "pictures fetched", "the goal"),
    "fetched": Assumption(0.7, "of the addresses asked give a picture", "assumed"),
    "selected": Assumption(0.8, "of the candidates are asked for, after dedup and language", "assumed"),
    "pairs_per_wat": Assumption(250e3, "candidates in a WAT file", "assumed: 33,000 pages of 7.5 pairs"),
    "wat_bytes": Assumption(220e6, "bytes of a WAT file", "assumed: 20 TB of WAT in 90,000 files a crawl"),
    "kept": Assumption(0.3, "of the pictures satisfy the rule of pack", "assumed"),
    # how it is cut
    "shard_rows": Assumption(10_000, "rows of a shard", "setting (the most a key can number)"),
    "group": Assumption(64, "shards of a unit of semantic's assign and collect", "setting (default 16)"),
    "pack_group": Assumption(4, "image shards in a packed one", "setting (default)"),
    "bucket_memory": Assumption(4e9, "bytes that a bucket may take in a worker", "setting, by --buckets"),
    "dimensions": Assumption(512, "dimensions of an embedding", "ViT-B/32"),
    # bytes of a row
    "candidate_bytes": Assumption(120, "bytes of a candidate, compressed", "assumed"),
    "row_bytes": Assumption(100, "bytes of a picture's row in images/N.parquet", "measured: a million rows"),
    "body_bytes": Assumption(101e3, "bytes of a picture on the web", "the mix of bench crawl"),
    "picture_bytes": Assumption(35e3, "bytes of a picture in the tar, shorter side 256", "assumed"),
    "entry_bytes": Assumption(23, "bytes of an entry of exact, compressed", "measured: a million rows"),
    "near_entries": Assumption(
        20, "entries of a picture in near: 4 bands of 5 hashes", "at most, by default"
    ),
    "near_entry_bytes": Assumption(
        41, "bytes of an entry of near, compressed", "measured: 178 MB for 4.4 million"
    ),
    # processor time, of one core
    "discover_us": Assumption(15.4, "us a candidate", "measured: bench discover, 38.3 ms for 2,492"),
    "candidates_dedup_us": Assumption(7.0, "us a candidate", "measured: 28 s for 4 million"),
    "language_us": Assumption(50.0, "us a caption", "measured: 19,000-22,000 a second"),
    "crawl_us": Assumption(5000.0, "us a picture", "measured: bench crawl, to 256"),
    "decode_us": Assumption(1100.0, "us a picture that is scored", "measured: bench loader, 1.06-1.68 ms"),
    "hash_us": Assumption(7000.0, "us a picture", "measured: of 640x480; those of a shard may be smaller"),
    "exact_us": Assumption(8.0, "us a picture of sketch", "measured: a million rows"),
    "near_us": Assumption(55.0, "us a picture", "measured: 13 s of sketch and resolve, 250,000 rows"),
    "semantic_us": Assumption(16.0, "us a picture", "measured: a million rows of 64 dimensions"),
    "pack_us": Assumption(300.0, "us a picture that is copied", "assumed"),
    "dry_run_us": Assumption(3.5, "us a row", "measured: 3.5 s for a million, start included"),
    "core_flops": Assumption(28e9, "float32 operations a second and core", "measured: 28-37e9, busy machine"),
    "open_us": Assumption(2700.0, "us to open a file and read a range", "measured: local files"),
    # a GPU
    "gpu_images": Assumption(2500, "pictures a second and GPU, ViT-B/32", "published: clip-retrieval, A100"),
    # memory
    "exact_memory": Assumption(250, "bytes of an entry in resolve", "measured: docs/duplicates.md"),
    "near_memory": Assumption(590, "bytes of an entry in resolve", "measured: 650 MB for 1.1 million"),
    "base_memory": Assumption(280e6, "bytes of a worker that does little", "measured: a million rows"),
    "unit_memory": Assumption(3200, "bytes of a unit in the driver's plan", "measured: 306 MiB for 100,000"),
    "plan_unit_us": Assumption(27.0, "us to plan a unit that stands", "measured: 2.7 s for 100,000"),
    # an object store
    "unit_writes": Assumption(5, "PUT and LIST of a unit beside its parts", "measured: moto's S3, counted"),
    "open_gets": Assumption(4, "HEAD and GET of a file of which a range is read", "measured: moto's S3"),
    "chunk": Assumption(50e6, "bytes of a request when a whole file is read or written", "s3fs"),
    # prices; put in your own
    "core_hour": Assumption(0.0425, "$ a core and hour", "list price: a vCPU of c6i, us-east-1"),
    "gpu_hour": Assumption(3.0, "$ a GPU and hour", "assumed: A100, on demand"),
    "write_price": Assumption(5e-6, "$ a PUT or LIST", "list price: S3 standard, us-east-1"),
    "read_price": Assumption(4e-7, "$ a GET or HEAD", "list price: S3 standard, us-east-1"),
    "month_price": Assumption(0.021e-9, "$ a byte and month", "list price: S3 standard above 500 TB"),
}


def with_values(changes: dict[str, float]) -> dict[str, float]:
    """Every value by its name, some of them changed."""
    return {**{name: a.value for name, a in ASSUMPTIONS.items()}, **changes}
