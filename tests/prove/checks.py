"""What a proof counts: samples lost and duplicated, shards that cannot be read, bytes that differ."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline import manifest, storage
from pipeline.commit import pending_folder


@dataclass(kw_only=True)
class Damage:
    """What a disturbed output lacks, has twice, or has otherwise than an undisturbed one.

    left: temporary files, pending replacements, locks, pulses, quarantined units that nobody took away.
    """

    lost: int = 0
    duplicated: int = 0
    unreadable: int = 0
    differing: int = 0
    left: int = 0

    def add(self, other: Damage) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __bool__(self) -> bool:
        return any(vars(self).values())


def compare(undisturbed: str, disturbed: str) -> Damage:
    """What became of an output, compared with one that was made in peace."""
    expected, found = samples(undisturbed), samples(disturbed)
    return Damage(
        lost=(expected - found).total(),
        duplicated=sum(n - 1 for n in found.values() if n > 1) + len(found.keys() - expected.keys()),
        unreadable=unreadable(disturbed),
        differing=len(checksums(undisturbed).items() ^ checksums(disturbed).items()),
        left=len(leftovers(disturbed)),
    )


def samples(output: str) -> Counter[str]:
    """How often each row is there, by its key (or place on its page): in the parquet, and in the tars."""
    found: Counter[str] = Counter()
    for info in storage.list_files(output):
        name = storage.basename(info.url)
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(storage.read_bytes(info.url)))
            columns = ["key"] if "key" in table.column_names else ["page_url", "position"]
            rows = zip(*(table[c].to_pylist() for c in columns), strict=True)
            found.update(f"row {row}" for row in rows)
        if name.endswith(".tar"):
            found.update(f"picture {key}" for key in _keys(storage.read_bytes(info.url)))
    return found


def _keys(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        return [member.name for member in tar]


def checksums(output: str) -> dict[str, str]:
    """sha256 of every part that is not volatile, as it lies there, and of every manifest's content mark."""
    found = {}
    for record in manifest.read_all(output):
        for name, facts in record["files"].items():
            if not facts.get("volatile"):
                data = storage.read_bytes(storage.join(output, name))
                found[name] = hashlib.sha256(data).hexdigest()
    times: Counter[int] = Counter()
    for done in manifest.list_manifests(output):  # by number: the digest marks where foreign inputs lie
        times[done.number] += 1
        found[f"manifest {times[done.number]} of {done.number}"] = done.content
    for info in storage.list_files(output):  # nothing that no manifest names
        found.setdefault(storage.basename(info.url).replace("_stats.json", "_stats"), "")
    return found


def unreadable(output: str) -> int:
    """Visible shards that are not what their manifest says, or, without one, that are not whole."""
    bad = 0
    named = {}
    for record in manifest.read_all(output):
        named.update(record["files"])
    for info in storage.list_files(output):
        name = storage.basename(info.url)
        data = storage.read_bytes(info.url)
        if name in named and not named[name].get("volatile"):
            bad += hashlib.sha256(data).hexdigest() != named[name]["sha256"]
        elif name.endswith(".tar"):
            # the end of a tar is two empty blocks: without them it was cut off
            bad += len(data) % 512 != 0 or data[-1024:] != bytes(1024)
        elif name.endswith(".parquet"):
            bad += data[:4] != b"PAR1" or data[-4:] != b"PAR1"
    present = {storage.basename(i.url) for i in storage.list_files(output)}
    return bad + len(named.keys() - present)


def leftovers(output: str) -> list[str]:
    """What is there that a finished output does not have."""
    books = storage.join(output, manifest.BOOKS)
    found = [f"quarantined {n}" for n in manifest.list_quarantined(output)]
    found += storage.list_folders(pending_folder(output))
    for name in ("locks", "running"):
        found += [i.url for i in storage.list_files(storage.join(books, name))]
    if storage.is_local(output):
        found += [str(p) for p in storage.local_path(output).rglob(f"*{storage.TEMP_MARK}*")]
    return found
