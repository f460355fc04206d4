"""The benchmark sets that the user names, cut into units: `--against '[flickr=list.txt, coco=val2017]'`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline import columns, inputs, storage
from pipeline.errors import ConfigError
from pipeline.shards.format import is_image
from pipeline.shards.reader import iter_samples
from pipeline.stage import Input, Piece
from pipeline.stages.dedup.contamination.entries import check_parquet, of_text

#: pictures of a folder that are hashed as one unit
GROUP = 1000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Set:
    """name: as the user calls it. place: a folder or a file, anywhere."""

    name: str
    place: str


def parse_sets(against: Sequence[str] | str) -> list[Set]:
    """Raises ConfigError for anything but NAME=PLACE, or two of one name."""
    found = []
    for item in columns.listed(against):
        name, equals, place = item.partition("=")
        name, place = name.strip(), place.strip()
        if not equals or not place or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise ConfigError(f"against {item!r} must be NAME=PLACE, such as coco=/data/val2017")
        found.append(Set(name, storage.absolute(place)))
    names = [s.name for s in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ConfigError(f"against: two sets have the name {twice!r}; give each a name of its own")
    if not found:
        raise ConfigError(
            "method contamination compares with benchmarks: give --against '[NAME=PLACE, ...]'; a place is a "
            "folder of pictures or of shards, an output of `score --kind hash`, or a list of hashes"
        )
    return found


def pieces(benchmark: Set) -> list[Piece]:
    """What a set is read in: shards, files of hashes, or so many pictures.

    Raises:
        ConfigError: nothing is there, or it is nothing that can be compared with.
    """
    if not storage.isdir(benchmark.place):
        return [_file(benchmark)]
    names = storage.list_names(benchmark.place)
    for suffix, kind in ((".tar", "shard"), (".parquet", "hashes")):
        if any(name.endswith(suffix) for name in names):
            shards = inputs.shards(benchmark.place, suffix)
            if kind == "hashes":
                check_parquet(shards[0].input.url)
            return [({"set": benchmark.name, kind: s.number}, (s.input,)) for s in shards]
    return _groups(benchmark)


def _file(benchmark: Set) -> Piece:
    found = storage.find(benchmark.place)
    if len(found) != 1:
        raise ConfigError(
            f"against {benchmark.name}={benchmark.place}: {len(found)} files have this name, and no folder; "
            "give a folder of pictures or of shards, or one list of hashes"
        )
    kind = "parquet" if found[0].url.endswith(".parquet") else "text"
    if kind == "parquet":
        check_parquet(found[0].url)
    else:
        of_text(benchmark.name, found[0].url)
    mark = inputs.file_fingerprint(found[0])
    return {"set": benchmark.name, kind: 0}, (Input(url=found[0].url, fingerprint=mark),)


def _groups(benchmark: Set) -> list[Piece]:
    files = list_pictures(benchmark.place)
    if not files:
        raise ConfigError(
            f"against {benchmark.name}={benchmark.place}: the folder has no shards, no hashes and "
            f"no pictures ({', '.join(SUFFIXES)})"
        )
    found: list[Piece] = []
    for start in range(0, len(files), GROUP):
        group = files[start : start + GROUP]
        told = "\n".join(f"{name} {inputs.file_fingerprint(info)}" for name, info in group)
        mark = hashlib.sha256(told.encode()).hexdigest()[:12]
        source = {"set": benchmark.name, "pictures": [start, start + len(group)]}
        found.append((source, (Input(url=benchmark.place, fingerprint=mark),)))
    return found


def list_pictures(folder: str) -> list[tuple[str, storage.FileInfo]]:
    """The pictures in a folder and in those below it, with their path inside it, by that path."""
    base = storage.resolve(folder)[1].rstrip("/") + "/"
    found = [
        (storage.resolve(info.url)[1].removeprefix(base), info)
        for info in storage.find(storage.join(folder, "**"))
    ]
    pictures = [item for item in found if item[0].lower().endswith(SUFFIXES)]
    return sorted(pictures, key=lambda item: item[0])


def shard_pictures(tar: str) -> Iterator[tuple[str, bytes]]:
    """The pictures of a shard with their keys; a further one of a sample with its suffix as well."""
    for sample in iter_samples(tar):
        pictures = [(suffix, data) for suffix, data in sorted(sample.members.items()) if is_image(suffix)]
        for at, (suffix, data) in enumerate(pictures):
            yield f"{sample.key}.{suffix}" if at else sample.key, data
