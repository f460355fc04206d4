"""Captions before and after bootstrapping: the web's text, the model's, the scores, what was packed."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reporting.view import KEPT, SEEN, Sample, View
from pipeline import columns, manifest, storage
from pipeline.errors import ConfigError, InputError
from pipeline.shards.format import shard_name

TEXTS = "synthetic_captions"
LISTS = ("synthetic_itm", "synthetic_clip", "synthetic_clip2")
SINGLE = ("web_itm", "web_clip")
COLUMNS = frozenset({TEXTS, *LISTS, *SINGLE})
#: pictures shown, synthetic captions shown of each
SHOWN, TEXTS_SHOWN = 8, 5
#: columns of a packed shard that tell what a policy chose
PACKED = frozenset({"key", "caption", "caption_source", "web_caption"})


@dataclass(frozen=True, kw_only=True)
class Written:
    """A synthetic caption with its scores, where it has them."""

    text: str
    itm: float | None = None
    clip: float | None = None
    clip2: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A picture with its captions before and after. texts: the best first. packed: what pack chose of them,
    and its source; None where it was not packed."""

    sample: Sample
    web_itm: float | None
    web_clip: float | None
    texts: tuple[Written, ...]
    more: int = 0
    packed: tuple[str, str] | None = None


@dataclass(kw_only=True)
class Bootstrapped:
    """The section of the captions.

    Attributes:
        present: whether the columns stand.
        worked: pictures with synthetic captions. texts: synthetic captions of all.
        better: pictures whose best synthetic caption has a higher ITM than the web's, of `compared`.
        pairs: pictures that may be shown.
    """

    present: bool = False
    worked: int = 0
    texts: int = 0
    better: int = 0
    compared: int = 0
    pairs: list[Pair] = field(default_factory=list)

    def collect(self, view: View) -> Bootstrapped:
        found = Bootstrapped()
        if not view.has(TEXTS) or not _is_list(view.table[TEXTS].type):
            return found
        found.present = True
        lengths = np.asarray(pc.fill_null(pc.list_value_length(view.table[TEXTS]), 0))
        rows = np.flatnonzero((lengths > 0) & view.has_picture)
        found.worked, found.texts = len(rows), int(lengths[rows].sum())
        self._compare(view, found)
        # what was kept is what became of them
        samples = (view.choose(rows[view.kept[rows]], SHOWN) + view.choose(rows[~view.kept[rows]], SHOWN))[
            :SHOWN
        ]
        at = {key: i for i, key in enumerate(view.table["key"].to_pylist())} if samples else {}
        found.pairs = [_pair(view, sample, at[sample.row["key"]]) for sample in samples]
        return found

    def _compare(self, view: View, found: Bootstrapped) -> None:
        if not (
            view.has("web_itm") and view.has("synthetic_itm") and _is_list(view.table["synthetic_itm"].type)
        ):
            return
        web = view.table["web_itm"].to_pylist()
        for mine, theirs in zip(web, view.table["synthetic_itm"].to_pylist(), strict=True):
            known = [value for value in theirs or [] if value is not None]
            if mine is not None and known:
                found.compared += 1
                found.better += max(known) > mine

    def add(self, other: Bootstrapped) -> None:
        self.present |= other.present
        self.worked += other.worked
        self.texts += other.texts
        self.better += other.better
        self.compared += other.compared
        self.pairs = heapq.nsmallest(SHOWN, self.pairs + other.pairs, key=_rank)


def _rank(pair: Pair) -> tuple[bool, float, str]:
    dropped = pair.sample.judgement not in (KEPT, SEEN)
    return dropped, pair.sample.priority, pair.sample.row["key"]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _pair(view: View, sample: Sample, at: int) -> Pair:
    def single(name: str) -> float | None:
        return _number(view.table[name][at].as_py()) if view.has(name) else None

    texts = view.table[TEXTS][at].as_py() or []
    scores = [_list(view, name, at, len(texts)) for name in LISTS]
    written = [
        Written(text=str(text or ""), itm=itm, clip=clip, clip2=clip2)
        for text, itm, clip, clip2 in zip(texts, *scores, strict=True)
    ]
    written.sort(key=_best_first)
    return Pair(
        sample=sample,
        web_itm=single("web_itm"),
        web_clip=single("web_clip"),
        texts=tuple(written[:TEXTS_SHOWN]),
        more=max(0, len(written) - TEXTS_SHOWN),
    )


def _best_first(one: Written) -> tuple[float, ...]:
    return tuple(math.inf if v is None else -v for v in (one.clip2, one.clip, one.itm))


def _list(view: View, name: str, at: int, length: int) -> list[float | None]:
    values = view.table[name][at].as_py() if view.has(name) else None
    if not isinstance(values, list) or len(values) != length:
        return [None] * length
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def chosen_by_pack(shards: str, keys: Sequence[str], shard_of: dict[str, int]) -> dict[str, tuple[str, str]]:
    """What pack wrote for some keys: key -> (caption, its source).

    Args:
        shards: pack's output folder.
        shard_of: the number of the image shard of each key.
    """
    places: dict[int, set[str]] = {}
    packed_in = {n: u.number for u in manifest.read_units(shards) for n in u.source.get("shards", ())}
    for key in keys:
        if shard_of.get(key) in packed_in:
            places.setdefault(packed_in[shard_of[key]], set()).add(key)
    found = {}
    for number, wanted in places.items():
        try:
            url = storage.join(shards, f"{shard_name(number)}.parquet")
            table = columns.read_parquet(url, PACKED)
        except (InputError, ConfigError):
            continue
        if "key" not in table.column_names or "caption" not in table.column_names:
            continue
        for row in table.filter(pc.is_in(table["key"], pa.array(sorted(wanted)))).to_pylist():
            found[row["key"]] = (str(row["caption"] or ""), str(row.get("caption_source") or "web"))
    return found
