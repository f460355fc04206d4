"""Commits one unit: parts first, each written atomically, the manifest last.

Runs in the worker. Whatever happens before the manifest stands, the unit counts as not done and is redone;
the parts of a redo replace what was left.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import manifest, storage
from pipeline.settings import semantic_config
from pipeline.shards.format import shard_name
from pipeline.stage import Output, Payload, Stage, Unit


def run_and_commit(stage: Stage, unit: Unit, output: str, *, stale: Sequence[str] = ()) -> dict[str, Any]:
    """Runs one unit and publishes it; returns its manifest.

    stale: locations of older manifests of this unit, which the new one replaces.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pairmill-", ignore_cleanup_errors=True) as scratch:
        result = stage.run(unit, Path(scratch))
        result.counts.check()
        if set(result.parts) != set(stage.suffixes):
            raise AssertionError(f"stage {stage.name} declares {stage.suffixes}, gave {tuple(result.parts)}")
        return commit(stage, unit, result, output, stale=stale, seconds=time.monotonic() - began)


def commit(
    stage: Stage, unit: Unit, result: Output, output: str, *, stale: Sequence[str] = (), seconds: float = 0.0
) -> dict[str, Any]:
    for url in stale:
        # A crash from here to the end leaves the unit undone, never an old manifest over new parts.
        if storage.exists(url):
            storage.remove(url)
    files = {}
    for suffix in stage.suffixes:
        name = f"{stage.prefix}{shard_name(unit.number)}{suffix}"
        files[name] = _write_part(storage.join(output, name), result.parts[suffix])
        if suffix in result.volatile:
            files[name]["volatile"] = True
    record = {
        "stage": stage.name,
        "version": stage.version,
        "unit": unit.number,
        "digest": unit.digest(stage),
        "config": semantic_config(stage.config),
        "source": dict(unit.source),
        "inputs": [{"name": storage.basename(i.url), "fingerprint": i.fingerprint} for i in unit.inputs],
        "counts": result.counts.to_json(),
        "files": files,
        "notes": result.notes,
        "seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
    }
    manifest.write(output, record)
    return record


def _write_part(url: str, payload: Payload) -> dict[str, Any]:
    if isinstance(payload, Path):
        facts = {"sha256": storage.sha256_file(payload), "size": payload.stat().st_size}
        storage.put_file(payload, url)
        return facts
    data = encode(payload)
    storage.write_bytes(url, data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def encode(payload: pa.Table | bytes | dict) -> bytes:
    """The bytes of a part: parquet for a table, JSON for a dict; the same bytes for the same value."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, pa.Table):
        sink = io.BytesIO()
        pq.write_table(payload, sink, compression="zstd")
        return sink.getvalue()
    return (json.dumps(payload, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
