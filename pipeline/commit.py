"""Commits one unit: parts first, each written atomically, the manifest last.

Runs in the worker. Whatever happens before the manifest stands, the unit counts as not done and is redone.
A unit that stands already is replaced through `_pairmill/pending/`: the new parts are whole there before an
old one goes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tempfile
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import manifest, storage
from pipeline.settings import semantic_config
from pipeline.shards.format import shard_name
from pipeline.stage import Output, Payload, Stage, Unit

#: what a replacement under way will come to; it is written when the new parts are whole
INTENT = "intent.json"


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
    """Publishes what one unit became; returns its manifest."""
    record = {
        "stage": stage.name,
        "version": stage.version,
        "unit": unit.number,
        "digest": unit.digest(stage),
        "config": semantic_config(stage.config),
        "source": dict(unit.source),
        "inputs": [{"name": storage.basename(i.url), "fingerprint": i.fingerprint} for i in unit.inputs],
        "counts": result.counts.to_json(),
        "notes": result.notes,
        "seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
    }
    stem = f"{stage.prefix}{shard_name(unit.number)}"
    parts = {f"{stem}{suffix}": result.parts[suffix] for suffix in stage.suffixes}
    volatile = {f"{stem}{suffix}" for suffix in result.volatile}
    if stale:
        return replace(output, record, parts, stale=stale, volatile=volatile)
    record["files"] = _write_parts(output, parts, volatile)
    manifest.write(output, record)
    return record


def replace(
    output: str,
    record: dict[str, Any],
    parts: Mapping[str, Payload],
    *,
    stale: Sequence[str],
    volatile: Collection[str] = (),
) -> dict[str, Any]:
    """Publishes new parts and a new manifest in the place of a committed unit's; returns the manifest.

    The old parts may be all there is of pictures that the web has lost since. So the new ones are written
    whole beside them first, and only then take their place; `roll_forward` finishes that after a crash.

    Args:
        record: the manifest, `files` excepted, which is filled in here.
        parts: file name -> payload; parts of the unit that are not named stay as they are, and `files` of
            the record must then list them.
        stale: locations of the unit's manifests so far.
        volatile: names of parts with no share in the content mark.
    """
    pending = storage.join(pending_folder(output), f"{shard_name(record['unit'])}-{uuid.uuid4().hex}")
    files = {**record.get("files", {}), **_write_parts(pending, parts, volatile)}
    record = {**record, "files": files}
    intent = {"manifest": record, "stale": [storage.basename(url) for url in stale]}
    storage.write_bytes(storage.join(pending, INTENT), json.dumps(intent).encode())
    _complete(output, pending)
    return record


def roll_forward(output: str) -> int:
    """Finishes the replacements of units that a crash interrupted; returns how many there were. Those whose
    new parts were not yet whole are forgotten after an hour: the old parts still stand."""
    finished = 0
    for pending in storage.list_folders(pending_folder(output)):
        if storage.exists(storage.join(pending, INTENT)):
            _complete(output, pending)
            finished += 1
        else:
            storage.sweep_folder(pending)
    return finished


def pending_folder(output: str) -> str:
    return storage.join(output, manifest.BOOKS, "pending")


def _complete(output: str, pending: str) -> None:
    """Puts new parts into place; may be begun any number of times."""
    intent = json.loads(storage.read_bytes(storage.join(pending, INTENT)))
    for name in intent["stale"]:
        # Until the new manifest stands the unit counts as not done: never an old one over new parts.
        storage.remove(storage.join(manifest.manifest_folder(output), name), missing_ok=True)
    for info in storage.list_files(pending):
        if storage.basename(info.url) != INTENT:
            storage.move(info.url, storage.join(output, storage.basename(info.url)))
    manifest.write(output, intent["manifest"])
    storage.remove(storage.join(pending, INTENT), missing_ok=True)
    storage.remove_folder(pending)


def _write_parts(folder: str, parts: Mapping[str, Payload], volatile: Collection[str]) -> dict[str, Any]:
    files = {}
    for name, payload in parts.items():
        files[name] = _write_part(storage.join(folder, name), payload)
        if name in volatile:
            files[name]["volatile"] = True
    return files


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
