"""Manifests: what is done. A unit is done when its manifest stands and its files are there.

Layout inside every output folder:

    00000003.tar, 00000003.parquet ...            the parts
    _pairmill/units.jsonl                         every planned unit: number, source, marks of its inputs
    _pairmill/manifests/00000003.<digest>-<content>.json
    _pairmill/manifests/00000000-<mark>.parquet   manifests by the thousand (`pipeline.compacted`)
    _pairmill/pending/00000003-<random>/    new parts of a unit being replaced (`pipeline.commit`)
    _pairmill/locks/00000003.<random>.json        who works on what just now (`pipeline.locks`)
    _pairmill/running/HOST-PID-<random>.json      how far a run under way is (`pipeline.pulse`)
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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline import compacted, storage
from pipeline.shards.format import shard_name
from pipeline.stage import Counts, Input, Unit

BOOKS = "_pairmill"
#: `00000003.void` beside the manifests: what a compacted object says of unit 3 does not count any more
VOID = "void"
#: how often the folder is listed anew when a compaction moves manifests meanwhile
LISTINGS = 5


@dataclass(frozen=True, kw_only=True)
class Done:
    """A committed unit as its manifest's name tells it.

    url: where the manifest lies, or would lie were it not `compacted` into another object, given there.
    """

    number: int
    digest: str
    content: str
    url: str
    compacted: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The folder of manifests as one listing shows it.

    loose: the manifests that are files of their own, by number. void: units whose compacted manifests do not
    count any more. compacted: locations of the objects with a thousand manifests each, by thousand.
    lone_copies: copies of such objects that a crash has left without them.
    """

    loose: list[Done]
    void: set[int]
    compacted: dict[int, list[str]]
    lone_copies: list[str] = field(default_factory=list)


def manifest_folder(output: str) -> str:
    return storage.join(output, BOOKS, "manifests")


def quarantine_url(output: str, number: int) -> str:
    return storage.join(output, BOOKS, "quarantine", f"{shard_name(number)}.json")


def list_quarantined(output: str) -> set[int]:
    """The numbers of the quarantined units, from one listing."""
    names = storage.list_names(storage.join(output, BOOKS, "quarantine"))
    return {int(name.removesuffix(".json")) for name in names}


def is_output(folder: str) -> bool:
    """Whether a folder was written by a stage (it has manifests), as against a foreign one."""
    return storage.isdir(manifest_folder(folder))


def list_folder(output: str) -> Listing:
    """What lies in the folder of manifests."""
    folder = manifest_folder(output)
    return _told_by(folder, storage.list_names(folder))


def _told_by(folder: str, names: Iterable[str]) -> Listing:
    loose, void, compacted_ = [], set(), defaultdict(list)
    copies = set()
    for name in names:
        stem, _, rest = name.partition(".")
        thousand = compacted.thousand_of(name)
        if thousand is not None:
            compacted_[thousand].append(storage.join(folder, name))
        elif name.endswith(compacted.COPY):
            copies.add(f"{folder}/{name}")
        elif stem.isdigit() and rest == VOID:
            void.add(int(stem))
        elif stem.isdigit() and rest.endswith(".json") and "-" in rest:
            digest, _, content = rest.removesuffix(".json").partition("-")
            url = f"{folder}/{name}"
            loose.append(Done(number=int(stem), digest=digest, content=content, url=url))
    loose.sort(key=lambda d: d.number)
    copies -= {compacted.copy_url(url) for urls in compacted_.values() for url in urls}
    return Listing(loose=loose, void=void, compacted=dict(compacted_), lone_copies=sorted(copies))


def list_manifests(output: str) -> list[Done]:
    """All manifests of an output folder, by number: from one listing, and one object for each thousand units
    that `compact` has merged.

    A unit has two only while a run replaces it, or when two runs raced on one output.
    """
    for attempt in range(LISTINGS):
        listing = list_folder(output)
        if not listing.compacted:
            return listing.loose
        try:
            return sorted([*listing.loose, *standing_rows(output, listing)], key=lambda d: d.number)
        except FileNotFoundError:  # a compaction has merged it into another object since
            if attempt == LISTINGS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def list_unit(output: str, number: int) -> list[Done]:
    """The manifests of one unit, from two small listings however many units the folder has."""
    folder = manifest_folder(output)
    listing = _told_by(folder, storage.list_prefixed(folder, f"{shard_name(number)}."))
    if listing.loose or listing.void:
        return listing.loose
    names = storage.list_prefixed(folder, f"{shard_name(number // compacted.THOUSAND)}-")
    merged = Listing(loose=[], void=set(), compacted=_told_by(folder, names).compacted)
    try:
        return [done for done in standing_rows(output, merged) if done.number == number]
    except FileNotFoundError:  # a compaction has merged it into another object since
        return [done for done in list_manifests(output) if done.number == number]


def standing_rows(output: str, listing: Listing) -> list[Done]:
    """The compacted manifests that count: those of units that have neither a loose one nor a mark."""
    hidden = listing.void | {d.number for d in listing.loose}
    folder = manifest_folder(output)
    rows = compacted.read_rows([url for urls in listing.compacted.values() for url in urls])
    return [
        Done(
            number=row.number,
            digest=row.digest,
            content=row.content,
            url=f"{folder}/{shard_name(row.number)}.{row.digest}-{row.content}.json",
            compacted=row.url,
        )
        for row in rows
        if row.number not in hidden
    ]


def list_done(output: str) -> dict[int, Done]:
    """Every committed unit of an output folder by number."""
    return {d.number: d for d in list_manifests(output)}


def read(done: Done) -> dict[str, Any]:
    """The manifest of a committed unit, also when a compaction has moved it since it was listed.

    Raises:
        FileNotFoundError: it is not there any more.
    """
    mark = (done.number, done.digest, done.content)
    try:
        if done.compacted is not None:
            return compacted.read_manifests_cached(done.compacted)[mark]
        return json.loads(storage.read_bytes(done.url))
    except FileNotFoundError:
        folder = done.url.rpartition("/")[0]
        for name in storage.list_names(folder):
            if compacted.thousand_of(name) == done.number // compacted.THOUSAND:
                found = compacted.read_manifests(f"{folder}/{name}").get(mark)
                if found is not None:
                    return found
        raise


def iter_all(output: str) -> Iterator[dict[str, Any]]:
    """The manifests of all committed units, by number; at most some thousands are in memory."""
    done = sorted(list_done(output).values(), key=lambda d: d.number)
    with ThreadPoolExecutor(compacted.THREADS) as pool:
        for start in range(0, len(done), compacted.THOUSAND):
            piece = done[start : start + compacted.THOUSAND]
            for url in {d.compacted for d in piece if d.compacted}:
                compacted.read_manifests_cached(url)
            yield from pool.map(read, piece)


def read_all(output: str) -> list[dict[str, Any]]:
    """All manifests of an output folder, by number."""
    return list(iter_all(output))


def void_url(output: str, number: int) -> str:
    return storage.join(manifest_folder(output), f"{shard_name(number)}.{VOID}")


def withdraw(output: str, name: str) -> None:
    """Makes a unit count as not done: its manifest of this name goes, and a mark says that what a compacted
    object may say of the unit does not count. Once a new manifest stands `unmark` may follow."""
    storage.write_bytes(void_url(output, int(name.partition(".")[0])), b"")
    storage.remove(storage.join(manifest_folder(output), name), missing_ok=True)


def unmark(output: str, number: int) -> None:
    """Takes the mark of `withdraw` away: the unit has a loose manifest again, which always wins."""
    storage.remove(void_url(output, number), missing_ok=True)


def total_counts(manifests: Iterable[Mapping[str, Any]]) -> Counts:
    total = Counts()
    for manifest in manifests:
        total.add(Counts.from_json(manifest["counts"]))
    return total


def content_mark(files: Mapping[str, Mapping[str, Any]]) -> str:
    """12 hex digits over the checksums of the parts that are not volatile."""
    stable = sorted((name, f["sha256"]) for name, f in files.items() if not f.get("volatile"))
    return hashlib.sha256(json.dumps(stable).encode()).hexdigest()[:12]


def matches(done: Done, record: Any) -> bool:
    """Whether a manifest says what its name says: unit, digest, and the checksums of its files."""
    try:
        return (record["unit"], record["digest"], content_mark(record["files"])) == (
            done.number,
            done.digest,
            done.content,
        )
    except (KeyError, TypeError, AttributeError):
        return False


def file_name(manifest: Mapping[str, Any]) -> str:
    """The name of a unit's manifest, which says what it was made from and what it became."""
    return f"{shard_name(manifest['unit'])}.{manifest['digest']}-{content_mark(manifest['files'])}.json"


def write(output: str, manifest: Mapping[str, Any]) -> Done:
    """Publishes a manifest."""
    number, digest, content = manifest["unit"], manifest["digest"], content_mark(manifest["files"])
    url = storage.join(manifest_folder(output), file_name(manifest))
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
    """The units that earlier runs planned: number, source, and the fingerprints of their inputs at that time;
    where these lie is not known."""
    url = storage.join(output, BOOKS, "units.jsonl")
    if not storage.exists(url):
        return []
    units = []
    lines = storage.read_bytes(url).decode().rstrip("\n")
    # one call of the parser for all lines: a line break stands between them and nowhere else
    for row in json.loads("[" + lines.replace("\n", ",") + "]"):
        marks = tuple(Input(url="", fingerprint=mark) for mark in row.get("inputs", ()))
        units.append(Unit(number=row["number"], source=row["source"], inputs=marks))
    return units


def write_units(output: str, units: Sequence[Unit], *, before: Sequence[Unit] = ()) -> None:
    """Saves what was planned, unless `before`, as `read_units` gave it, says the same."""
    if len(before) == len(units) and all(map(_is_same, before, units)):
        return
    lines = [
        json.dumps(
            {"inputs": [i.fingerprint for i in u.inputs], "number": u.number, "source": u.source},
            sort_keys=True,
        )
        for u in units
    ]
    storage.write_bytes(storage.join(output, BOOKS, "units.jsonl"), "".join(f"{x}\n" for x in lines).encode())


def _is_same(one: Unit, other: Unit) -> bool:
    if one.number != other.number or one.source != other.source or len(one.inputs) != len(other.inputs):
        return False
    return all(i.fingerprint == j.fingerprint for i, j in zip(one.inputs, other.inputs, strict=True))
