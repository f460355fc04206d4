"""Photographs that come with installed packages, and pictures like photographs of any size."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import cv2
import numpy as np

#: package, path in it: 640x427, 640x427 and 512x600 pixels, detailed to smooth
_FILES = {
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}


@cache
def photographs() -> dict[str, bytes]:
    """JPEG files by name; at least one of each size in `textured` where no package brings any."""
    found = {}
    for name, (package, path) in _FILES.items():
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and (file := Path(spec.origin).parent / path).exists():
            found[name] = file.read_bytes()
    # large pictures: a web photograph has the detail of these at twice their size
    for name, (width, height) in {"wide": (1600, 1067), "tall": (1203, 1605)}.items():
        found[name] = cv2.imencode(".jpg", textured(1, width, height))[1].tobytes()
    return found


def textured(seed: int, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3): detail of every size, the finer the weaker, and edges, as in photographs."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for side, strength in ((4, 60), (16, 30), (64, 15), (256, 6), (1024, 2)):
        noise = random.normal(0, strength, (side, side, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    image += 128
    for _ in range(12):
        points = random.integers(0, max(width, height), (5, 1, 2)).astype(np.int32)
        cv2.fillPoly(image, [points], random.uniform(0, 255, 3).tolist(), lineType=cv2.LINE_AA)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.8), 0, 255).astype(np.uint8)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of the same shape; 99 where they are equal."""
    assert one.shape == other.shape, (one.shape, other.shape)
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def pixels(body: bytes | None) -> np.ndarray:
    """What OpenCV decodes, unchanged."""
    image = cv2.imdecode(np.frombuffer(body or b"", np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image
