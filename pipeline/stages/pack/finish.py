"""The indexes over a folder of packed shards, from what each manifest notes of its tar.

Pack writes them when all of its units stand, and takedown when it took samples out of some.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import manifest, storage
from pipeline.shards import index, view
from pipeline.shards.format import shard_name


def shard_facts(tar: Path, samples: int) -> dict[str, Any]:
    """The notes of a unit: number of samples, size in bytes and md5 of its tar."""
    return {"samples": samples, "size": tar.stat().st_size, "md5": index.md5_file(tar)}


def write_indexes(output: str) -> None:
    """Writes `sizes.json` and `wids.json`; leaves them alone where they say the same already."""
    shards = []
    for record in manifest.read_all(output):
        notes = record["notes"]
        name = f"{shard_name(record['unit'])}.tar"
        facts = {fact: notes[fact] for fact in ("samples", "size", "md5")}
        shards.append(index.ShardFacts(name=name, **facts))
    index.write_indexes(output, shards)


def view_facts(samples: int) -> dict[str, Any]:
    """The notes of a unit of a view: number of samples."""
    return {"samples": samples}


def write_view_index(output: str, images: str) -> None:
    """Writes `view.json`; leaves it alone where it says the same already. images: where the pictures lie."""
    records = manifest.read_all(output)
    shards = {f"{shard_name(r['unit'])}.parquet": r["notes"]["samples"] for r in records}
    index.write_if_new(storage.join(output, view.INDEX), view.index_of(output, images, shards))
