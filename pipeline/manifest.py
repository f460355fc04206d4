"""Manifests: what is done. A unit is done when its manifest stands and its files are there.

Layout inside every output folder:

    00000003.tar, 00000003.parquet ...            the parts
    _pairmill/units.jsonl                         number and source of every planned unit, append-only
    _pairmill/manifests/00000003.<digest>-<content>.json
    _pairmill/pending/00000003-<random>/    new parts of a unit being replaced (`pipeline.commit`)
    _pairmill/quarantine/00000003.json            units that failed three times, with the error
    _pairmill/config.yaml                         the resolved configuration of the last run

The file name of a manifest says everything that planning needs, so one listing plans a stage: `digest`
covers what the unit is made from (semantic config, content of the inputs, stage version), `content` what
it became (sha256 of its parts). Later stages take `content` as the fingerprint of their input: redoing a
unit to the same bytes redoes nothing behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.shards.format import shard_name
from pipeline.stage import Counts, Unit

BOOKS = "_pairmill"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A committed unit as its manifest's name tells it."""

    number: int
    digest: str
    content: str
    url: str


def manifest_folder(output: str) -> str:
    return storage.join(output, BOOKS, "manifests")


def quarantine_url(output: str, number: int) -> str:
    return storage.join(output, BOOKS, "quarantine", f"{shard_name(number)}.json")


def list_quarantined(output: str) -> set[int]:
    """The numbers of the quarantined units, from one listing."""
    files = storage.list_files(storage.join(output, BOOKS, "quarantine"))
    return {int(storage.basename(f.url).removesuffix(".json")) for f in files}


def is_output(folder: str) -> bool:
    """Whether a folder was written by a stage (it has manifests), as against a foreign one."""
    return storage.isdir(manifest_folder(folder))


def list_manifests(output: str) -> list[Done]:
    """All manifests of an output folder, by number, from one listing.

    A unit has two only while a run replaces it, or when two runs raced on one output.
    """
    found = []
    for info in storage.list_files(manifest_folder(output)):
        parts = storage.basename(info.url).removesuffix(".json").split(".")
        if len(parts) != 2 or not parts[0].isdigit() or "-" not in parts[1]:
            continue
        digest, _, content = parts[1].partition("-")
        found.append(Done(number=int(parts[0]), digest=digest, content=content, url=info.url))
    return sorted(found, key=lambda d: d.number)


def list_done(output: str) -> dict[int, Done]:
    """Every committed unit of an output folder by number."""
    return {d.number: d for d in list_manifests(output)}


def read(done: Done) -> dict[str, Any]:
    return json.loads(storage.read_bytes(done.url))


def read_all(output: str) -> list[dict[str, Any]]:
    """All manifests of an output folder, by number."""
    done = sorted(list_done(output).values(), key=lambda d: d.number)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(read, done))


def total_counts(manifests: Iterable[Mapping[str, Any]]) -> Counts:
    total = Counts()
    for manifest in manifests:
        total.add(Counts.from_json(manifest["counts"]))
    return total


def content_mark(files: Mapping[str, Mapping[str, Any]]) -> str:
    """12 hex digits over the checksums of the parts that are not volatile."""
    stable = sorted((name, f["sha256"]) for name, f in files.items() if not f.get("volatile"))
    return hashlib.sha256(json.dumps(stable).encode()).hexdigest()[:12]


def write(output: str, manifest: Mapping[str, Any]) -> Done:
    """Publishes a manifest."""
    number, digest, content = manifest["unit"], manifest["digest"], content_mark(manifest["files"])
    name = f"{shard_name(number)}.{digest}-{content}.json"
    url = storage.join(manifest_folder(output), name)
    storage.write_bytes(url, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return Done(number=number, digest=digest, content=content, url=url)


def config_url(output: str) -> str:
    return storage.join(output, BOOKS, "config.yaml")


def write_config(output: str, resolved: str) -> None:
    """Saves the resolved configuration of a run; leaves it alone where it says the same already."""
    url = config_url(output)
    if not storage.exists(url) or storage.read_bytes(url) != resolved.encode():
        storage.write_bytes(url, resolved.encode())


def read_units(output: str) -> list[Unit]:
    """The units that earlier runs planned: number and source."""
    url = storage.join(output, BOOKS, "units.jsonl")
    if not storage.exists(url):
        return []
    rows = [json.loads(line) for line in storage.read_bytes(url).decode().splitlines()]
    return [Unit(number=r["number"], source=r["source"], inputs=()) for r in rows]


def write_units(output: str, units: Sequence[Unit]) -> None:
    lines = [json.dumps({"number": u.number, "source": u.source}, sort_keys=True) for u in units]
    storage.write_bytes(storage.join(output, BOOKS, "units.jsonl"), "".join(f"{x}\n" for x in lines).encode())
