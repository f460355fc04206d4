"""Packed shards without pictures: where each lies in the image tars, and what a packed tar would say of it.

The captions and json are the bytes that pack would write into a tar, so a reader of the view gives the same
samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import InputError
from pipeline.shards.format import is_image
from pipeline.shards.reader import index_tar
from pipeline.shards.view import MEMBERS, MEMBERS_TYPE, TAR, TarFacts, with_tars
from pipeline.stage import Input
from pipeline.stages.pack.samples import make_sample

Span = tuple[int, int]


@dataclass(frozen=True)
class Places:
    """Where the pictures of some image shards lie: key -> (name of the tar, suffix -> (offset, size)).

    facts: of each tar. Samples without a picture are not among them.
    """

    found: Mapping[str, tuple[str, dict[str, Span]]]
    facts: Mapping[str, TarFacts]


def find_places(tars: Sequence[Input]) -> Places:
    """Reads the headers of image tars.

    Raises:
        InputError: one is missing or damaged, or two share a key.
    """
    found: dict[str, tuple[str, dict[str, Span]]] = {}
    facts = {}
    for tar in tars:
        name = storage.basename(tar.url)
        try:
            with storage.local_copy(tar.url) as path:
                samples, size = index_tar(str(path)), path.stat().st_size
        except FileNotFoundError as error:
            raise InputError(f"{tar.url}: the file is missing; rerun the stage that writes it") from error
        except InputError as error:
            raise InputError(str(error).replace(str(path), tar.url)) from error
        facts[name] = TarFacts(size, tar.fingerprint)
        for sample in samples:
            if sample.key in found:
                raise InputError(f"{tar.url}: key {sample.key!r} also stands in another shard of the group")
            members = {s: place for s, place in sample.members.items() if is_image(s) or s == "npz"}
            if any(is_image(suffix) for suffix in members):
                found[sample.key] = (name, members)
    return Places(found, facts)


def write_view(
    kept: pa.Table, rows: Iterable[Mapping[str, Any]], places: Places, texts: Path
) -> tuple[pa.Table, list[bool]]:
    """The table of a view's shard, and for each row whether there is a picture; those without are left out.

    Args:
        kept: the rows that are packed, in their order; rows: the same as Python values.
        texts: the file that gets captions and json.
    """
    there, names, members = [], [], []
    at = 0
    with texts.open("wb") as file:
        for row in rows:
            place = places.found.get(row["key"])
            there.append(place is not None)
            if place is None:
                continue
            spans = dict(place[1])
            for suffix, data in make_sample(row, {}).members.items():
                spans[suffix] = (at, len(data))
                at += file.write(data)
            names.append(place[0])
            members.append(spans)
    return with_places(kept.filter(pa.array(there, pa.bool_())), names, members, places.facts), there


def with_places(
    table: pa.Table, tars: Sequence[str], members: Sequence[Mapping[str, Span]], facts: Mapping[str, TarFacts]
) -> pa.Table:
    """The rows of a shard with where their members lie."""
    listed = [
        [{"suffix": s, "offset": offset, "size": size} for s, (offset, size) in sorted(spans.items())]
        for spans in members
    ]
    table = table.drop_columns([name for name in (TAR, MEMBERS) if name in table.column_names])
    table = table.append_column(TAR, pa.array(tars, pa.string()))
    return with_tars(table.append_column(MEMBERS, pa.array(listed, MEMBERS_TYPE)), facts)


def without(
    table: pa.Table, keys: Collection[str], places: Places, old: bytes, texts: Path
) -> tuple[pa.Table, list[str]]:
    """A view's shard without some keys, its pictures where they are now; and the keys that have none now.

    Args:
        old: the captions and json so far; texts: the file that gets those that stay.
    """
    names, members, stay, lost = [], [], [], []
    at = 0
    with texts.open("wb") as file:
        for key, spans in zip(table["key"].to_pylist(), table[MEMBERS].to_pylist(), strict=True):
            place = places.found.get(key)
            stay.append(key not in keys and place is not None)
            if key not in keys and place is None:
                lost.append(key)
            if not stay[-1]:
                continue
            assert place is not None
            found = dict(place[1])
            for span in sorted(spans, key=lambda span: span["offset"]):
                if span["suffix"] in found or span["suffix"] not in ("txt", "json"):
                    continue
                data = old[span["offset"] : span["offset"] + span["size"]]
                found[span["suffix"]] = (at, len(data))
                at += file.write(data)
            names.append(place[0])
            members.append(found)
    return with_places(table.filter(pa.array(stay, pa.bool_())), names, members, places.facts), lost
