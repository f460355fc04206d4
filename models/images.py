"""From the bytes of a picture to a normalised tensor: the same code trains, evaluates and scores.

Decoding is defensive, because shards come from the web: a list of formats, a cap on the pixels that is
checked before decoding, and no tolerance for truncated files.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000


class CorruptImageError(ValueError):
    """The bytes are no picture that we accept; the message says why."""


def decode(data: bytes, *, least_side: int = 0) -> Image.Image:
    """The picture as RGB; transparent parts become white.

    Args:
        least_side: a JPEG may be decoded at a reduced size (faster by its scale squared) as long as its
            shorter side keeps this many pixels; 0 decodes all of it.

    Raises:
        CorruptImageError: another format, too many pixels, truncated or damaged.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise CorruptImageError(f"{width}x{height} pixels, more than {MAX_PIXELS}")
        if least_side and image.format == "JPEG":
            scale = least_side / min(width, height)
            image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
        image.load()
    except CorruptImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for damaged PNG and TIFF-like headers
        raise CorruptImageError(f"{type(error).__name__}: {error}") from error
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparency is laid over white, where Pillow's own conversion would make it black."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resizes to a square and normalises; given a random generator, crops and flips before that.

    Attributes:
        size: pixels of a side.
        mean: subtracted, per colour, from values in 0..1.
        std: divided by, per colour.
        crop_scale: smallest and largest share of the area that a random crop keeps.
        flip: mirror half of the pictures.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False

    @property
    def least_side(self) -> int:
        """How small a decoded picture may be for the smallest crop to need no enlarging."""
        return math.ceil(self.size / math.sqrt(self.crop_scale[0]))

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """float32 [3, size, size]. Without `rng` the whole picture is squeezed into the square, as ALBEF
        does in evaluation: nothing at the border is lost."""
        box, flip = (0.0, 0.0, float(image.width), float(image.height)), False
        if rng is not None:
            if self.crop_scale != (1.0, 1.0):
                box = random_crop(image.width, image.height, self.crop_scale, rng)
            flip = self.flip and rng.random() < 0.5
        small = to_rgb(image).resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0
        )
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float().div_(255)
        if flip:
            pixels = pixels.flip(2)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)


def random_crop(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop with a random share of the area and an aspect ratio of 3/4 to
    4/3 (Inception's crop, as ALBEF uses it); the whole picture when none of ten draws fits."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return 0.0, 0.0, float(width), float(height)
