"""A small world for the proofs, and the four stages over it with options that keep a run to seconds.

Every stage has `UNITS` units. Pages and pictures are the same in every run; some pictures are missing, broken
or slow, so that reasons for drops are part of what is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.stage import Stage
from pipeline.stages.crawl.stage import CrawlConfig, CrawlStage, FetchConfig
from pipeline.stages.discover import DiscoverConfig, DiscoverStage
from pipeline.stages.pack import Pack, PackConfig
from pipeline.stages.score import ScoreConfig, ScoreStage
from tests.pipeline.web_archives import warc

UNITS = 6
PICTURES = 24  # of one archive, and so of one shard
STAGES = ("discover", "crawl", "score", "pack")
WHERE = "clip_score > -2 AND width >= 32"


@dataclass(frozen=True, kw_only=True)
class World:
    """Where a chain lies (`root` may be an S3 prefix), and where its web answers."""

    root: str
    port: int
    model: str

    def place(self, name: str) -> str:
        return storage.join(self.root, *{"score": ("columns", "clip")}.get(name, (name,)))

    def at(self, root: str) -> World:
        return replace(self, root=root)

    def stage(self, name: str) -> Stage:
        """A stage that reads what the stages before it wrote into this world."""
        return _STAGES[name](self)

    def options(self, name: str) -> list[str]:
        """The same stage as options of its command, but for the output."""
        return _OPTIONS[name](self)


def write_archives(world: World) -> None:
    for number in range(UNITS):
        pages = {
            f"http://site.example/{number}/{page}.html": _page(world.port, number, page).encode()
            for page in range(PICTURES // 4)
        }
        storage.write_bytes(storage.join(world.root, "web", f"{number}.warc.gz"), warc(pages))


def _page(port: int, archive: int, page: int) -> str:
    tags = []
    for position in range(4):
        seed = archive * PICTURES + page * 4 + position
        path = f"/picture/{seed}.jpg"
        if position == 3:  # what a web has beside good pictures
            path = ("/status/404", "/bytes/html.jpg", "/bytes/small.jpg", "/noai/noai")[(archive + page) % 4]
        text = f"a picture of thing {seed}"
        tags.append(f'<img src="http://127.0.0.1:{port}{path}?n={seed}" alt="{text}">')
    words = "<p>" + "words between the pictures " * 2000
    return f"<html><body>{words.join(tags)}</body></html>"


def _fetch(port: int) -> FetchConfig:
    return FetchConfig(
        allow_private=[f"127.0.0.1:{port}"], max_per_host=8, total_timeout=20.0, retries=3, backoff=0.1
    )


_STAGES: dict[str, Callable[[World], Stage]] = {
    "discover": lambda w: DiscoverStage(
        DiscoverConfig(input=storage.join(w.root, "web", "*.warc.gz"), rules="none")
    ),
    "crawl": lambda w: CrawlStage(
        CrawlConfig(input=w.place("discover"), image_size=64, shard_size=PICTURES, fetch=_fetch(w.port))
    ),
    "score": lambda w: ScoreStage(
        ScoreConfig(input=w.place("crawl"), model=w.model, batch_size=8, decode_threads=1)
    ),
    "pack": lambda w: Pack(
        PackConfig(input=w.place("crawl"), columns=(w.place("score"),), where=WHERE, group=1)
    ),
}

_OPTIONS: dict[str, Callable[[World], list[str]]] = {
    "discover": lambda w: [f"--input={w.root}/web/*.warc.gz", "--rules=none"],
    "crawl": lambda w: [
        f"--input={w.place('discover')}",
        "--image_size=64",
        f"--shard_size={PICTURES}",
        f'--fetch.allow_private=["127.0.0.1:{w.port}"]',
        "--fetch.max_per_host=8",
        "--fetch.total_timeout=20",
        "--fetch.retries=3",
        "--fetch.backoff=0.1",
    ],
    "score": lambda w: [
        f"--input={w.place('crawl')}",
        f"--model={w.model}",
        "--batch_size=8",
        "--decode_threads=1",
    ],
    "pack": lambda w: [
        f"--input={w.place('crawl')}",
        f'--columns=["{w.place("score")}"]',
        f"--where={WHERE}",
        "--group=1",
    ],
}


def chain_yaml(world: World) -> dict[str, Any]:
    """The chain as `pairmill run` takes it."""
    steps: dict[str, dict[str, Any]] = {
        "discover": {"input": "{root}/web/*.warc.gz", "rules": "none", "output": "{root}/discover"},
        "crawl": {
            "input": "{root}/discover",
            "output": "{root}/crawl",
            "image_size": 64,
            "shard_size": PICTURES,
            "fetch": {"allow_private": [f"127.0.0.1:{world.port}"], "max_per_host": 8, "total_timeout": 20},
        },
        "score": {
            "input": "{root}/crawl",
            "model": world.model,
            "batch_size": 8,
            "decode_threads": 1,
            "output": "{root}/columns/clip",
        },
        "dedup": {"input": "{root}/crawl", "output": "{root}/columns/dedup", "buckets": 2},
        "pack": {
            "input": "{root}/crawl",
            "columns": ["{root}/columns/clip", "{root}/columns/dedup"],
            "where": f"{WHERE} AND duplicate_of IS NULL",
            "group": 2,
            "output": "{root}/shards",
        },
    }
    return {"root": world.root, "steps": steps}


def make_model(folder: Path) -> str:
    """A tiny CLIP of random weights, as training exports it."""
    from tests.pipeline.test_score import write_model

    return str(write_model(folder / "model"))
