"""One shard's sidecars as the report sees them, and the walk over all of them in bounded memory.

Read is what some section needs and no more: never pictures, never embeddings. Each section is a `Section`:
`collect` looks at one shard in a worker thread, `add` takes what it found, in the order of the shards. A few
shards are in memory at a time, however many there are.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reporting.judge import Judge
from jobs.reporting.truth import Truth
from pipeline import columns, inputs
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import Shard

KEPT, SEEN = "kept", "seen"
THREADS = 4
#: image shards whose tars are opened for pictures, but for what only others have: a tar is read to its end to
#: find one picture in it
PICTURED = 48
#: what a card tells of a row
SHOWN = ("key", "caption", "url", "page_url", "width", "height", "original_width", "original_height")
#: columns of the images' parquet that sections read
OF_IMAGES = frozenset({*SHOWN, "status", "reason", "error_message", "language"})

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row that may be shown: its values as they are stored, unclean."""

    priority: float
    shard: str
    row: dict[str, Any]
    score: float | None
    wrong: bool | None
    judgement: str = ""


@dataclass(frozen=True, kw_only=True)
class View:
    """A joined shard, whose rows are every URL that the crawl tried.

    rank: a number of 0..1 for each row, given by seed and shard.
    far: whether the pictures of this shard are better not read: those of other shards are chosen first.
    verdict: `kept`, a drop reason, or `seen` where nothing judges.
    answers: 1 wrong, 0 right, -1 unknown.
    """

    table: pa.Table
    shard: Shard
    judge: Judge | None
    rank: np.ndarray
    far: bool
    has_picture: np.ndarray
    verdict: np.ndarray
    scores: np.ndarray
    answers: np.ndarray

    @cached_property
    def priority(self) -> np.ndarray:
        """What is shown is chosen by the smallest of these."""
        return self.rank + 1.0 if self.far else self.rank

    @cached_property
    def kept(self) -> np.ndarray:
        return self.verdict == (KEPT if self.judge else SEEN)

    @cached_property
    def basis(self) -> np.ndarray:
        return self.judge.basis(self.table) if self.judge else self.has_picture

    def choose(self, rows: np.ndarray, most: int) -> list[Sample]:
        """A seeded choice among the rows of these positions."""
        if len(rows) > most:
            rows = rows[np.argpartition(self.priority[rows], most)[:most]]
        return self.samples(rows[np.argsort(self.priority[rows], kind="stable")])

    def samples(self, rows: np.ndarray) -> list[Sample]:
        """The rows of these positions."""
        names = [name for name in SHOWN if name in self.table.column_names]
        values = self.table.select(names).take(pa.array(rows, pa.int64())).to_pylist() if len(rows) else []
        return [
            Sample(
                priority=float(self.priority[i]),
                shard=self.shard.sibling(".tar"),
                row=row,
                score=None if np.isnan(self.scores[i]) else float(self.scores[i]),
                wrong=None if self.answers[i] < 0 else bool(self.answers[i]),
                judgement=str(self.verdict[i]),
            )
            for i, row in zip(rows.tolist(), values, strict=True)
        ]

    def has(self, name: str) -> bool:
        return name in self.table.column_names


class Section(Protocol):
    """A part of the page that looks at rows."""

    def collect(self, view: View) -> Any:
        """What one shard tells; called in any thread."""

    def add(self, found: Any) -> None:
        """Takes what `collect` found, in the order of the shards."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The sidecars of an image folder.

    every: all image shards. chosen: those that are read. names: the columns that are read (lower case).
    """

    folders: tuple[columns.ColumnFolder, ...]
    every: tuple[Shard, ...]
    chosen: tuple[Shard, ...]
    names: frozenset[str] = frozenset()

    def schema(self) -> pa.Schema:
        """Of the joined table, by the footers of the first chosen shard whose sidecars can be read; empty
        where there is none."""
        for shard in self.chosen:
            try:
                return columns.joined_schema(shard.sibling(".parquet"), self._sidecars(shard))
            except (ConfigError, InputError):
                continue
        return pa.schema([])

    def column_names(self) -> list[str]:
        """The columns that the folders add, the images' own aside."""
        found: list[str] = []
        for folder in self.folders:
            for shard in self.chosen:
                try:
                    found += [
                        n for n in columns.read_schema(folder.shard(shard.number).url).names if n != "key"
                    ]
                except (ConfigError, InputError):
                    continue
                break
        return found

    def _sidecars(self, shard: Shard) -> list[str]:
        return [folder.shard(shard.number).url for folder in self.folders]

    def read(self, shard: Shard) -> pa.Table:
        """The joined table of a shard, of the columns in `names`.

        Raises:
            ConfigError, InputError: a sidecar is missing, damaged, or of other images.
        """
        images = columns.read_parquet(shard.sibling(".parquet"), self.names | OF_IMAGES)
        for name in ("key", "url", "caption", "status"):
            if name not in images.column_names:
                raise InputError(f"{shard.sibling('.parquet')}: no column {name!r}")
        if "reason" not in images.column_names or ("uid" in self.names and "uid" not in images.column_names):
            images = columns.complete_images(images)
        return columns.join(
            images, ((url, columns.read_column(url, self.names)) for url in self._sidecars(shard))
        )

    @cached_property
    def near(self) -> frozenset[int]:
        """The shards whose pictures are shown rather than those of others: chosen evenly."""
        step = max(1, len(self.chosen) // PICTURED)
        return frozenset(s.number for s in self.chosen[::step][:PICTURED])

    def by_key(self, key: str) -> Shard | None:
        """The shard that a key belongs to, by the way that keys are made: the shard's name comes first."""
        return self._stems.get(key[: self._digits])

    @cached_property
    def _digits(self) -> int:
        return len(self.every[0].stem) if self.every else 0

    @cached_property
    def _stems(self) -> dict[str, Shard]:
        return {shard.stem: shard for shard in self.every}


def open_source(images: str, folders: Sequence[str], *, seed: int, max_shards: int) -> Source:
    """Lists the folders; of more than `max_shards` shards a seeded choice is read."""
    every = inputs.shards(images, ".parquet")
    chosen = every
    if len(every) > max_shards:
        chosen = sorted(random.Random(seed).sample(every, max_shards), key=lambda s: s.number)
    opened = tuple(columns.open_folder(folder) for folder in folders)
    return Source(folders=opened, every=tuple(every), chosen=tuple(chosen))


def look(
    table: pa.Table,
    shard: Shard,
    *,
    judge: Judge | None,
    truth: Truth | None,
    score: str,
    seed: int,
    far: bool = False,
    limits: str | None = None,
) -> View:
    """A joined table with what is known of its rows.

    limits: what pack decided on this shard by looking at all samples together, where it did.
    """
    reasons = _reasons(judge, table, limits)
    kept = KEPT if judge else SEEN
    return View(
        table=table,
        shard=shard,
        judge=judge,
        rank=np.random.default_rng([seed, shard.number]).random(len(table)),
        far=far,
        has_picture=np.asarray(pc.fill_null(pc.equal(table["status"], columns.SUCCESS), False)),
        verdict=np.array([reason or kept for reason in reasons], dtype=object),
        scores=floats(table, score),
        answers=truth.of(table) if truth else np.full(len(table), -1),
    )


def _reasons(judge: Judge | None, table: pa.Table, limits: str | None) -> list[str]:
    """Why each row is dropped; empty where it is kept, or where nothing judges."""
    if judge is None:
        return [""] * len(table)
    found = judge.explain(table)
    if limits is not None:
        decided = columns.read_parquet(limits, {"key", "reason"})
        place = pc.index_in(table["key"].combine_chunks(), value_set=decided["key"].combine_chunks())
        found = pc.coalesce(found, decided["reason"].combine_chunks().take(place))
    return pc.fill_null(found, "").to_pylist()


def walk(source: Source, see: Callable[[pa.Table, Shard], View], sections: Sequence[Section]) -> list[str]:
    """Shows every chosen shard to every section; returns which could not be read, and why."""

    def work(shard: Shard) -> list[Any] | str:
        try:
            view = see(source.read(shard), shard)
            return [section.collect(view) for section in sections]
        except (ConfigError, InputError) as error:
            # A report about a broken chain has to tell which shard is broken, not to break itself.
            return f"shard {shard.stem}: {error}"

    problems = []
    for found in ahead(source.chosen, work):
        if isinstance(found, str):
            problems.append(found)
            continue
        for section, one in zip(sections, found, strict=True):
            section.add(one)
    return problems


def ahead(shards: Sequence[Shard], work: Callable[[Shard], Found]) -> Iterator[Found]:
    """Results in the order of the shards; a few are worked on at a time, none is kept."""
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for shard in shards:
            waiting.append(pool.submit(work, shard))
            if len(waiting) > 2 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def floats(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN where it is null or does not stand."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    kind = table[name].type
    if not pa.types.is_floating(kind) and not pa.types.is_integer(kind):
        return np.full(len(table), np.nan)
    return table[name].cast(pa.float64()).to_numpy()


def look_up(source: Source, keys: Sequence[str]) -> dict[str, tuple[Shard, dict[str, Any]]]:
    """The rows of some keys, wherever they lie; those that cannot be read are left out."""
    by_shard: dict[int, tuple[Shard, set[str]]] = {}
    for key in keys:
        shard = source.by_key(key)
        if shard is not None:
            by_shard.setdefault(shard.number, (shard, set()))[1].add(key)
    found = {}
    for shard, wanted in by_shard.values():
        try:
            table = columns.read_parquet(shard.sibling(".parquet"), set(SHOWN))
        except InputError:
            continue
        rows = table.filter(pc.is_in(table["key"], pa.array(sorted(wanted), pa.string())))
        found.update({row["key"]: (shard, row) for row in rows.to_pylist()})
    return found
