"""Indexes over a folder of finished shards: `sizes.json` for open_clip, `wids.json` for wids.

Both say how many samples each tar holds; wids also wants its size and md5. The stage that wrote
the tars knows these facts, so none is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage

SIZES, WIDS = "sizes.json", "wids.json"


def md5_file(path: Path) -> str:
    """Hex md5 of a local file; wids compares it, nothing here trusts it."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What an index says of one tar: its file name, samples, size in bytes and hex md5."""

    name: str
    samples: int
    size: int
    md5: str


def write_indexes(output: str, shards: Sequence[ShardFacts]) -> None:
    """Writes both indexes of a folder; leaves them alone where they say the same already."""
    sizes = {s.name: s.samples for s in shards}
    shardlist = [{"url": s.name, "md5sum": s.md5, "nsamples": s.samples, "filesize": s.size} for s in shards]
    wids = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": storage.basename(output),
        "base": "",
        "shardlist": shardlist,
    }
    write_if_new(storage.join(output, SIZES), sizes)
    write_if_new(storage.join(output, WIDS), wids)


def write_if_new(url: str, value: dict[str, Any]) -> None:
    """Writes an index, unless it says the same already."""
    data = (json.dumps(value, indent=1) + "\n").encode()
    if not storage.exists(url) or storage.read_bytes(url) != data:
        storage.write_bytes(url, data)
