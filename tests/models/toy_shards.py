"""Small shards of drawn scenes for tests: one coloured shape, left or right, and a caption that says so."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SHAPES = ("circle", "square")
SIDES = ("left", "right")


def write_shards(folder: Path, *, shards: int = 2, samples: int = 24, seed: int = 0, size: int = 48) -> Path:
    """Writes 0000000N.tar files in WebDataset layout; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:08d}.tar", "w") as tar:
            for index in range(samples):
                key = f"{shard:08d}{index:04d}"
                image, caption = draw_scene(rng, size)
                meta = {"key": key, "sha256": hashlib.sha256(image).hexdigest()}
                add(tar, f"{key}.jpg", image)
                add(tar, f"{key}.json", json.dumps(meta).encode())
                add(tar, f"{key}.txt", caption.encode())
    return folder


def draw_scene(rng: np.random.Generator, size: int) -> tuple[bytes, str]:
    """A JPEG and its caption."""
    colour, shape, side = rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(SIDES)
    image = Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(150, 255, 3)))
    radius = size // 6
    x, y = size // 4 if side == "left" else 3 * size // 4, int(rng.integers(radius, size - radius))
    draw = ImageDraw.Draw(image)
    outline = draw.ellipse if shape == "circle" else draw.rectangle
    outline([x - radius, y - radius, x + radius, y + radius], fill=COLOURS[str(colour)])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), f"a {colour} {shape} on the {side}"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
