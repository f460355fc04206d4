"""Commits one unit: parts first, each written atomically, the manifest last.

Runs in the worker. Whatever happens before the manifest stands, the unit counts as not done and is redone.
A unit that stands already is replaced through `_pairmill/pending/`: the new parts are whole there before an
old one goes.

Only one process at a time puts parts of a unit in place (`pipeline.locks`). When two runs make the same
unit, the first to commit wins, and the other one drops its own parts: pictures of the web may differ from one
minute to the next, and the parts of a unit must be of one make.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import locks, manifest, scratch, storage
from pipeline.errors import ConfigError, InputError
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
    with scratch.folder() as folder, storage.naming_full_disks(folder):
        result = stage.run(unit, folder)
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
        result.before_manifest()
        return replace(output, record, parts, stale=stale, volatile=volatile)
    with locks.unit(output, unit.number):
        standing = _committed_meanwhile(output, record)
        if standing is not None:
            return standing
        record["files"] = _write_parts(output, parts, volatile)
        result.before_manifest()
        manifest.write(output, record)
    return record


def _committed_meanwhile(output: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest that another run has given the unit since this one planned it.

    Raises:
        ConfigError: that run made it from something else.
    """
    for done in manifest.list_unit(output, record["unit"]):
        if done.digest != record["digest"]:
            raise ConfigError(
                f"{output}: another run committed unit {shard_name(record['unit'])} meanwhile, made from "
                "other options or inputs; choose another --output, or pass --overwrite once it has ended"
            )
        return manifest.read(done)
    return None


def manifests_of(output: str, number: int) -> list[str]:
    """The names of the manifests of one unit."""
    return [storage.basename(done.url) for done in manifest.list_unit(output, number)]


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
    whole beside them first, and only then take their place; `roll_forward` finishes that after a crash. On an
    object store, where parts take their places one by one, a reader may meet some old and some new ones for
    the seconds that this takes; no manifest of the unit stands meanwhile.

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
    with locks.unit(output, record["unit"]):
        if not _complete(output, pending):
            raise InputError(
                f"{output}: unit {shard_name(record['unit'])} was replaced by another run meanwhile, and "
                "stays as that left it; run the command again"
            )
    return record


def roll_forward(output: str) -> int:
    """Finishes the replacements of units that a crash interrupted; returns how many there were. Those whose
    new parts were not yet whole are forgotten after an hour: the old parts still stand. Those that a living
    process is about to finish are left to it."""
    finished = 0
    for pending in storage.list_folders(pending_folder(output)):
        number = int(storage.basename(pending).partition("-")[0])
        if not storage.exists(storage.join(pending, INTENT)):
            storage.sweep_folder(pending)
        elif not locks.is_busy(output, number):
            with locks.unit(output, number):
                finished += _complete(output, pending)
    return finished


def pending_folder(output: str) -> str:
    return storage.join(output, manifest.BOOKS, "pending")


def _complete(output: str, pending: str) -> bool:
    """Puts new parts into place; may be begun any number of times. False when the unit was replaced by
    somebody else since, and nothing was done."""
    try:
        intent = json.loads(storage.read_bytes(storage.join(pending, INTENT)))
    except FileNotFoundError:  # another run found it and has finished it
        return True
    record = intent["manifest"]
    expected = {*intent["stale"], manifest.file_name(record)}
    current = set(manifests_of(output, record["unit"])) <= expected
    if current:
        for name in intent["stale"]:
            # Until the new manifest stands the unit counts as not done: never an old one over new parts.
            manifest.withdraw(output, name)
        for info in storage.list_files(pending):
            if storage.basename(info.url) != INTENT:
                storage.move(info.url, storage.join(output, storage.basename(info.url)))
        manifest.write(output, record)
        manifest.unmark(output, record["unit"])
    storage.remove(storage.join(pending, INTENT), missing_ok=True)
    for info in storage.list_files(pending):  # of a replacement that came too late
        storage.remove(info.url, missing_ok=True)
    storage.remove_folder(pending)
    return current


def _write_parts(folder: str, parts: Mapping[str, Payload], volatile: Collection[str]) -> dict[str, Any]:
    files = {}
    for name, payload in parts.items():
        files[name] = _write_part(storage.join(folder, name), payload)
        if name in volatile:
            files[name]["volatile"] = True
    return files


def checksum(payload: Payload) -> str:
    """The sha256 of a part, as hex digits, before it is written."""
    if isinstance(payload, Path):
        return storage.sha256_file(payload)
    return hashlib.sha256(encode(payload)).hexdigest()


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
