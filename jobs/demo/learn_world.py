"""The shards that `make learn` trains and evaluates on: the demo's scenes, painted and packed without a web.

    shards/train, shards/heldout   0000000N.tar: .jpg, .txt, .json (sha256 of the picture)
    WORLD.json                     settings and counts; written last: where it stands, the world is complete

Training pictures come from the combinations of the parts `trusted` and `web`, held-out ones from `heldout`:
the same objects, but no two together that were together in training. Each picture has two English captions,
one from each side (`two owls above one panda` and `one panda below two owls`, in a wording that is drawn), as
two samples of one sha256: positives of each other, and the references of a caption test.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from jobs.demo.captions import ENGLISH_NUMBERS, TEMPLATES, caption, telling_words
from jobs.demo.objects import Thing, load_things
from jobs.demo.painting import Painter, encode_jpeg, render_bitmaps
from jobs.demo.scenes import OPPOSITE, Scene, draw_scenes
from pipeline.errors import ConfigError
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter

MARKER = "WORLD.json"
#: raise it when the same settings begin to give other shards
WORLD_VERSION = 1
#: side of the stored pictures, in pixels; the models read 72
SIDE = 96
SHARD_PICTURES = 500


@dataclass(frozen=True, kw_only=True)
class LearnWorld:
    """Where the shards lie, and the words that masked-word tests ask for."""

    train: Path
    heldout: Path
    words: dict[str, list[str]]


def build_learn_world(folder: Path, *, seed: int, pictures: int, heldout: int) -> LearnWorld:
    """The world of these settings in `folder`: built now, or found there.

    Args:
        pictures: training pictures, with two captions each.
        heldout: held-out pictures, with two captions each.

    Raises:
        ConfigError: the folder holds a world of other settings.
    """
    settings = {"version": WORLD_VERSION, "seed": seed, "pictures": pictures, "heldout": heldout}
    things = load_things()
    world = LearnWorld(
        train=folder / "shards/train", heldout=folder / "shards/heldout", words=content_words(things)
    )
    marker = folder / MARKER
    if marker.is_file():
        found = json.loads(marker.read_text())
        if found != settings:
            raise ConfigError(
                f"{folder} holds shards of {found}, asked for were {settings}; "
                "choose another --folder or remove it"
            )
        return world
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "shards", ignore_errors=True)  # left by a build that was stopped
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        painter = Painter(Path(scratch) / "bitmaps.npy", seed)
        render_bitmaps(painter.bitmaps)
        halves = [("trusted", pictures - pictures // 2), ("web", pictures // 2)]
        shown = [s for part, n in halves for s in draw_scenes(part, n, kinds=len(things), seed=seed)]
        random.Random(f"{seed}:order").shuffle(shown)
        write_shards(world.train, shown, painter, things)
        unseen = draw_scenes("heldout", heldout, kinds=len(things), seed=seed)
        write_shards(world.heldout, unseen, painter, things)
    marker.write_text(json.dumps(settings) + "\n")
    return world


def write_shards(folder: Path, scenes: list[Scene], painter: Painter, things: tuple[Thing, ...]) -> None:
    """Paints scenes and packs them, `SHARD_PICTURES` pictures to a shard."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(scenes), SHARD_PICTURES)):
        part = scenes[start : start + SHARD_PICTURES]
        with ShardWriter(folder / f"{number:08d}.tar") as shard:
            for position, sample in enumerate(_samples(part, painter, things)):
                shard.write(Sample(f"{number:08d}{position:04d}", sample))


def _samples(
    scenes: Iterable[Scene], painter: Painter, things: tuple[Thing, ...]
) -> Iterable[dict[str, bytes]]:
    for scene in scenes:
        picture = painter.paint(scene).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        jpeg = encode_jpeg(picture)
        meta = json.dumps({"sha256": hashlib.sha256(jpeg).hexdigest(), "scene": scene.name}).encode()
        for text in two_captions(scene, things, seed=painter.seed):
            yield {"jpg": jpeg, "txt": text.encode(), "json": meta}


def two_captions(scene: Scene, things: tuple[Thing, ...], *, seed: int) -> tuple[str, str]:
    """The scene from both sides, each in a wording that the scene's own seed draws."""
    rng = random.Random(f"{seed}:{scene.name}:two captions")
    other = replace(
        scene, kind_a=scene.kind_b, count_a=scene.count_b, kind_b=scene.kind_a, count_b=scene.count_a,
        relation=OPPOSITE[scene.relation],
    )  # fmt: skip
    first, second = (
        caption(side, things, language="en", style=rng.randrange(len(TEMPLATES["en"])))
        for side in (scene, other)
    )
    return first, second


def content_words(things: tuple[Thing, ...]) -> dict[str, list[str]]:
    """Objects, colours, relations and numbers: the words of a caption that only its picture can tell."""
    return {**telling_words(things), "number": list(ENGLISH_NUMBERS[1:])}
