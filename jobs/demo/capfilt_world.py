"""The small world of the CapFilt experiment: scenes with captions, of which the web's are partly wrong.

    web/       images/, captions.json   one caption a picture; those of `wrong` of the pictures are shuffled
    clean/     captions.json            the same pictures, each with its own caption
    human/     images/, captions.json   few pictures, two right captions each, as COCO is to BLIP
    heldout/   images/, captions.json   two right captions each, to evaluate on
    truth.json                          the scene of each picture of the web, and whether its caption is wrong
    WORLD.json                          settings; written last: where it stands, the world is complete

The three kinds of pictures show the same objects, but no two together that another kind has together
(`jobs.demo.scenes`): captioner and filter judge combinations that no person captioned for them, and
evaluation asks for combinations that nobody saw.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from jobs.demo.learn_world import SIDE, two_captions
from jobs.demo.objects import load_things
from jobs.demo.painting import Painter, encode_jpeg, render_bitmaps
from jobs.demo.scenes import Scene, draw_scenes
from pipeline.errors import ConfigError

MARKER = "WORLD.json"
#: raise it when the same settings begin to give another world
WORLD_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """How many pictures of each kind, and which share of the web's captions is shuffled."""

    web: int = 3000
    human: int = 400
    heldout: int = 500
    wrong: float = 0.4


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Of one picture of the web: what it shows, the caption it came with, and whether that is another's."""

    scene: Scene
    caption: str
    wrong: bool


def build_capfilt_world(folder: Path, *, seed: int, size: WorldSize) -> dict[str, Truth]:
    """The world of these settings in `folder`, built now or found there; the truth by file name.

    Raises:
        ConfigError: the folder holds a world of other settings.
    """
    settings = {"version": WORLD_VERSION, "seed": seed, **asdict(size)}
    marker = folder / MARKER
    if not marker.is_file():
        _build(folder, seed, size)
        marker.write_text(json.dumps(settings) + "\n")
    elif (found := json.loads(marker.read_text())) != settings:
        raise ConfigError(
            f"{folder} holds a world of {found}, asked for were {settings}; "
            "choose another --folder or remove it"
        )
    return read_truth(folder)


def read_truth(folder: Path) -> dict[str, Truth]:
    """What `build_capfilt_world` says of the web's pictures, by file name."""
    rows = json.loads((folder / "truth.json").read_text())
    return {
        row["file_name"]: Truth(scene=Scene(**row["scene"]), caption=row["caption"], wrong=row["wrong"])
        for row in rows
    }


def _build(folder: Path, seed: int, size: WorldSize) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left by a build that was stopped
    folder.mkdir(parents=True)
    things = load_things()
    painter = Painter(folder / "bitmaps.npy", seed)
    render_bitmaps(painter.bitmaps)
    parts = {"web": ("web", size.web), "human": ("trusted", size.human), "heldout": ("heldout", size.heldout)}
    scenes = {k: draw_scenes(part, n, kinds=len(things), seed=seed) for k, (part, n) in parts.items()}
    for kind, shown in scenes.items():
        _paint(folder / kind / "images", shown, painter)
    for kind in ("human", "heldout"):
        pairs = [(s, text) for s in scenes[kind] for text in two_captions(s, things, seed=seed)]
        _write_captions(folder / kind, pairs)
    rng = random.Random(f"{seed}:which side")
    right = [rng.choice(two_captions(scene, things, seed=seed)) for scene in scenes["web"]]
    given = shuffle_some(right, size.wrong, seed=seed)
    _write_captions(folder / "web", list(zip(scenes["web"], given, strict=True)))
    _write_captions(folder / "clean", list(zip(scenes["web"], right, strict=True)))
    truth = [
        {"file_name": f"{scene.name}.jpg", "scene": asdict(scene), "caption": text, "wrong": text != own}
        for scene, text, own in zip(scenes["web"], given, right, strict=True)
    ]
    (folder / "truth.json").write_text(json.dumps(truth) + "\n")


def shuffle_some(texts: list[str], share: float, *, seed: int) -> list[str]:
    """The texts, of which `share`, drawn at random, are handed on in a circle: each gets another's."""
    chosen = random.Random(f"{seed}:wrong").sample(range(len(texts)), round(share * len(texts)))
    given = list(texts)
    for place, giver in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        given[place] = texts[giver]
    return given


def _paint(folder: Path, scenes: list[Scene], painter: Painter) -> None:
    folder.mkdir(parents=True)
    for scene in scenes:
        picture = painter.paint(scene).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        (folder / f"{scene.name}.jpg").write_bytes(encode_jpeg(picture))


def _write_captions(folder: Path, pairs: list[tuple[Scene, str]]) -> None:
    """A list of objects, in the format that `pairmill crawl` reads."""
    folder.mkdir(exist_ok=True)
    rows = [{"file_name": f"{scene.name}.jpg", "caption": text} for scene, text in pairs]
    (folder / "captions.json").write_text(json.dumps(rows) + "\n")
