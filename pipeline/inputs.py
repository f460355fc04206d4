"""What a stage reads: output folders of earlier stages, foreign shard folders, lists of files.

An own output folder is planned from its manifests (content marks as fingerprints). A foreign one, such as
img2dataset's, from a listing (size and change mark).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import shard_name
from pipeline.stage import Input


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard of a folder: `number` names what is made of it, `input` is its main file."""

    number: int
    input: Input
    rows: int | None = None  # as its manifest says; None for foreign folders

    @property
    def stem(self) -> str:
        """The file name without its suffix, such as `00000003` (or `00003` in a foreign folder)."""
        return storage.basename(self.input.url).rsplit(".", 1)[0]

    def sibling(self, suffix: str) -> str:
        """The location of another part of the same shard, such as `.parquet`."""
        return sibling(self.input.url, suffix)


def sibling(url: str, suffix: str) -> str:
    """The location of another part of the same shard: that of `.../00000003.tar`, with another suffix."""
    return url.rsplit(".", 1)[0] + suffix


def file_fingerprint(info: storage.FileInfo) -> str:
    """A mark of a foreign file's content: size and change mark, without reading it."""
    return hashlib.sha256(f"{info.size}:{info.mark}".encode()).hexdigest()[:12]


def shards(folder: str, suffix: str, *, prefix: str = "") -> list[Shard]:
    """The committed shards of an output folder, or the shards of a foreign folder, by number.

    Raises:
        ConfigError: the folder does not exist or holds no shard.
    """
    if not storage.isdir(folder):
        raise ConfigError(f"input {folder!r} does not exist; run the stage that writes it, or mend --input")
    place = storage.absolute(folder)  # workers may have another current folder
    found = _own(place, suffix, prefix) if manifest.is_output(place) else _foreign(place, suffix, prefix)
    if not found:
        raise ConfigError(f"input {folder!r} holds no finished {prefix}*{suffix}; run its stage first")
    return found


def whole_folder(folder: str, shards: Sequence[Shard]) -> Input:
    """A folder as one input, marked by the content of all its shards: units that see all of them would
    otherwise each carry a list."""
    marks = "\n".join(f"{s.number}:{s.input.fingerprint}" for s in shards)
    return Input(url=folder, fingerprint=hashlib.sha256(marks.encode()).hexdigest()[:12])


def _own(folder: str, suffix: str, prefix: str) -> list[Shard]:
    found = []
    for number, done in sorted(manifest.list_done(folder).items()):
        url = storage.join(folder, f"{prefix}{shard_name(number)}{suffix}")
        found.append(Shard(number=number, input=Input(url=url, fingerprint=done.content)))
    return found


def _foreign(folder: str, suffix: str, prefix: str) -> list[Shard]:
    found: dict[int, Shard] = {}
    for info in storage.list_files(folder):
        name = storage.basename(info.url)
        stem = name.removesuffix(suffix).removeprefix(prefix)
        if name != f"{prefix}{stem}{suffix}" or not stem.isdigit():
            continue
        if int(stem) in found:
            raise ConfigError(f"{folder}: two shards have the number {int(stem)}; keep one of them")
        shard = Shard(number=int(stem), input=Input(url=info.url, fingerprint=file_fingerprint(info)))
        found[int(stem)] = shard
    return [found[number] for number in sorted(found)]


@contextmanager
def checked(folder: str, name: str, record: Mapping[str, Any]) -> Iterator[Path]:
    """A part of a committed unit as a local path, once its bytes are those that its manifest (`record`)
    lists: what is made from a damaged part must not pass for good.

    Raises:
        InputError: it is missing, or has other bytes.
    """
    url, facts = storage.join(folder, name), record["files"][name]
    try:
        with storage.local_copy(url) as path:
            if path.stat().st_size != facts["size"] or storage.sha256_file(path) != facts["sha256"]:
                raise InputError(
                    f"{url}: its bytes are not those of its manifest; run `pairmill verify --fix` first"
                )
            yield path
    except FileNotFoundError as error:
        raise InputError(f"{url}: the file is missing; run `pairmill verify --fix` first") from error


def files(patterns: str | Sequence[str]) -> list[tuple[str, storage.FileInfo]]:
    """The files that paths, globs and URLs name, each with a name that does not tell where the inputs lie:
    the path below the fixed part of its pattern. So a moved folder keeps its units.

    Raises:
        ConfigError: a pattern names no file, or two files have the same name.
    """
    named: dict[str, storage.FileInfo] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = storage.find(pattern)
        if not found:
            raise ConfigError(f"input {pattern!r} names no file; check the path, the glob or the URL")
        base = _fixed_folder(storage.resolve(pattern)[1])
        for info in found:
            name = storage.resolve(info.url)[1].removeprefix(base).lstrip("/")
            if name in named and named[name].url != info.url:
                raise ConfigError(
                    f"inputs {named[name].url!r} and {info.url!r} have the same name {name!r}; "
                    "give one glob from a common folder instead"
                )
            named[name] = info
    return list(named.items())


def _fixed_folder(path: str) -> str:
    """The part of a path before the last slash that stands before any wildcard."""
    fixed = path
    for position, character in enumerate(path):
        if character in "*?[":
            fixed = path[:position]
            break
    return fixed.rpartition("/")[0]
