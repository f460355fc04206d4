"""The folders of `pairmill bench rows`: images without pictures, and columns over them, as crawl and score
commit them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.bench.rows_world import FILE, PAIR, ROWS_PER_SHARD, SITES, WORDS, Places, World
from pipeline.commit import run_and_commit
from pipeline.planning import make_plan
from pipeline.shards.format import sample_key, sample_uid
from pipeline.stage import Counts, Output, Stage, Unit
from pipeline.storage import join

#: a tar without members
EMPTY_TAR = bytes(10240)
IMAGES, CRAWL = "images", "crawl"
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


@dataclass(frozen=True, kw_only=True)
class MadeConfig:
    """rows, seed: of the world. dimensions: of an embedding."""

    rows: int
    seed: int
    dimensions: int


class Made(Stage):
    """Shards of a made-up world: one function makes the parts of one."""

    def __init__(
        self, name: str, world: World, dimensions: int, make: Callable[[World, int, int], dict[str, Any]]
    ) -> None:
        self.name = name
        if name == CRAWL:
            self.suffixes = (".tar", ".parquet")
        self.config = MadeConfig(rows=world.rows, seed=world.seed, dimensions=dimensions)
        self._world, self._make = world, make

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        return [Unit(number=n, source={"shard": n}, inputs=()) for n in range(self._world.shards)]

    def run(self, unit: Unit, scratch: Path) -> Output:
        parts = self._make(self._world, unit.number, self.config.dimensions)
        rows = len(parts[".parquet"])
        return Output(parts=parts, counts=Counts(rows, rows))


def make_folders(folder: str, world: World, dimensions: int) -> dict[str, str]:
    """Makes what is not there yet; name of a folder -> its place."""
    places = {}
    for name, (stage, make) in FOLDERS.items():
        places[name] = join(folder, name if name == IMAGES else f"columns/{name}")
        made = Made(stage, world, dimensions, make)
        plan = make_plan(made, places[name])
        for unit in plan.todo:
            run_and_commit(made, unit, places[name], stale=[])
    return places


def _images(world: World, shard: int, dimensions: int) -> dict[str, Any]:
    rows = world.numbers(shard)
    kinds, roots, fetched = world.kinds(rows), world.roots(rows), world.fetched(rows)
    pairs = np.where(kinds == PAIR, roots, rows)
    files = np.where((kinds == PAIR) | (kinds == FILE), roots, rows)
    urls, captions = _urls(world, pairs), _captions(world, pairs)
    digests = [hashlib.sha256(f"{world.seed} {n}".encode()).hexdigest() for n in files.tolist()]
    sides = [(200 + 1800 * world.uniform(what, files)).astype(np.int32) for what in ("width", "height")]
    failed = ~fetched
    table = {
        "caption": pa.array(captions),
        "url": pa.array(urls),
        "key": _keys(shard, rows),
        "status": pc.if_else(pa.array(fetched), "success", "failed_to_download"),
        "error_message": _filled("http status 404", failed),
        "width": pa.array(np.full(len(rows), 256, np.int32), mask=failed),
        "height": pa.array(np.full(len(rows), 256, np.int32), mask=failed),
        "original_width": pa.array(sides[0], mask=failed),
        "original_height": pa.array(sides[1], mask=failed),
        "exif": _filled("{}", fetched),
        "sha256": pa.array(digests, mask=failed),
        "reason": _filled("http_status", failed),
        "http_status": pa.array(np.where(fetched, 200, 404), pa.int32()),
        "uid": pa.array([sample_uid(c, u) for c, u in zip(captions, urls, strict=True)]),
        "bytes": pa.array((5000 + 95_000 * world.uniform("bytes", files)).astype(np.int64), mask=failed),
    }
    return {".tar": EMPTY_TAR, ".parquet": pa.table(table)}


def _filled(text: str, there: npt.NDArray[np.bool_]) -> pa.Array:
    """A text where it belongs, else null."""
    return pc.if_else(pa.array(there), text, pa.scalar(None, pa.string()))


def _urls(world: World, pairs: Places) -> list[str]:
    """A few sites have most of the pictures."""
    sites = _skewed(world, "site", pairs, SITES)
    names = world.bits("url", pairs).tolist()
    return [f"https://cdn.site{s}.example/media/{n:016x}.jpg" for s, n in zip(sites, names, strict=True)]


def _captions(world: World, pairs: Places) -> list[str]:
    """3 to 22 words, a few of them most of the time."""
    lengths = 3 + (20 * world.uniform("length", pairs) ** 2).astype(np.int64)
    ends = np.cumsum(lengths)
    places = np.repeat(pairs * 64, lengths) + np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    words = [_word(rank) for rank in _skewed(world, "word", places, WORDS)]
    return [" ".join(words[e - n : e]) for e, n in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _skewed(world: World, what: str, rows: Places, kinds: int) -> list[int]:
    """Ranks whose frequency falls as their inverse (Zipf)."""
    return np.exp(world.uniform(what, rows) * np.log(kinds)).astype(np.int64).tolist()


def _word(rank: int) -> str:
    word = ""
    while rank:
        rank, at = divmod(rank, len(_SYLLABLES))
        word += _SYLLABLES[at]
    return word


def _successes(world: World, shard: int) -> tuple[Places, pa.Array]:
    rows = world.numbers(shard)
    rows = rows[world.fetched(rows)]
    return rows, _keys(shard, rows)


def _keys(shard: int, rows: Places) -> pa.Array:
    return pa.array([sample_key(shard, n % ROWS_PER_SHARD) for n in rows.tolist()], pa.string())


def _clip(world: World, shard: int, dimensions: int) -> dict[str, Any]:
    rows, keys = _successes(world, shard)
    score = 0.26 + 0.1 * sum(world.uniform(f"clip{n}", rows) - 0.5 for n in range(4))
    return {".parquet": pa.table({"key": keys, "clip_score": pa.array(score, pa.float32())})}


def _language(world: World, shard: int, dimensions: int) -> dict[str, Any]:
    rows, keys = _successes(world, shard)
    codes = np.array(["en", "en", "en", "en", "de", "fr", "ru", "zh", None], object)
    language = codes[(world.uniform("language", rows) * len(codes)).astype(np.int64)]
    known = pa.array(language, pa.string())
    probability = pc.if_else(known.is_valid(), pa.scalar(0.99, pa.float32()), None)
    return {".parquet": pa.table({"key": keys, "language": known, "language_probability": probability})}


def _hash(world: World, shard: int, dimensions: int) -> dict[str, Any]:
    rows, keys = _successes(world, shard)
    names = {"phash": 1, "phash_long": 4, "phash_inner": 16}
    found = {name: _hex(world.hashes(name, rows, words)) for name, words in names.items()}
    # smaller pictures are encoded anew: two of the same file have the same bytes, others their own
    kinds, roots = world.kinds(rows), world.roots(rows)
    files = np.where((kinds == PAIR) | (kinds == FILE), roots, rows)
    found["picture_sha256"] = _hex(world.bits("picture", files[:, None] * 4 + np.arange(4)))
    return {".parquet": pa.table({"key": keys, **found})}


def _hex(words: npt.NDArray[np.uint64]) -> pa.Array:
    return pa.array([row.tobytes().hex() for row in words.astype(">u8")], pa.string())


def _embedding(world: World, shard: int, dimensions: int) -> dict[str, Any]:
    rows, keys = _successes(world, shard)
    flat = pa.array(world.embeddings(rows, dimensions).astype(np.float16).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, dimensions)
    return {".parquet": pa.table({"key": keys, "image_embedding": vectors})}


#: folder -> (the stage that it passes for, what makes the parts of a shard)
FOLDERS: dict[str, tuple[str, Callable[[World, int, int], dict[str, Any]]]] = {
    IMAGES: (CRAWL, _images),
    "clip": ("score", _clip),
    "language": ("score", _language),
    "hash": ("score", _hash),
    "embedding": ("score", _embedding),
}
