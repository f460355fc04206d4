"""From the bytes of a picture to a normalised tensor: the same code trains, evaluates and scores.

Decoding is defensive, because shards come from the web: a list of formats, a cap on the pixels that is
checked before decoding, and no tolerance for truncated files. Pictures stay uint8 until they are a batch:
that is a quarter of the bytes to move between processes and to the device.

Resizing is torch's antialiased bicubic on uint8, which computes what Pillow's does (differences of 1, in
rare places 2 levels) in a quarter of the time.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.augment import rand_augment
from models.draws import Draws
from models.jpeg import plain_jpeg

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
#: libjpeg's own halvings, and OpenCV's names for them
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


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
        _check_pixels(width, height)
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


def decode_array(data: bytes, *, least_side: int = 0) -> np.ndarray:
    """As `decode`, as uint8 [H, W, 3]; the same pixels, faster for usual JPEGs."""
    header = plain_jpeg(data)
    if header is None:
        return np.array(decode(data, least_side=least_side))
    _check_pixels(header.width, header.height)
    divisor = _divisor(header.width, header.height, least_side)
    # the orientation of EXIF is left alone, as Pillow does
    flags = _REDUCED.get(divisor, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise CorruptImageError(f"damaged JPEG: {error.err}") from error
    sides = (-(-header.height // divisor), -(-header.width // divisor), 3)
    if image_HWC is None or image_HWC.shape != sides:
        raise CorruptImageError("damaged JPEG")
    return cv2.cvtColor(image_HWC, cv2.COLOR_BGR2RGB, dst=image_HWC)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise CorruptImageError(f"{width}x{height} pixels, more than {MAX_PIXELS}")


def _divisor(width: int, height: int, least_side: int) -> int:
    """By how much libjpeg may reduce (1, 2, 4 or 8), as Pillow's `draft` finds it."""
    if not least_side:
        return 1
    scale = least_side / min(width, height)
    most = min(width // math.ceil(width * scale), height // math.ceil(height * scale))
    return next((n for n in (8, 4, 2) if most >= n), 1)


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
    """Resizes to a square and normalises; given draws, crops, flips and augments before that.

    Attributes:
        size: pixels of a side.
        mean: subtracted, per colour, from values in 0..1.
        std: divided by, per colour.
        crop_scale: smallest and largest share of the area that a random crop keeps.
        flip: mirror half of the pictures.
        rand_ops: operations of RandAugment on each picture; 0: none.
        rand_magnitude: their strength, of 10.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    rand_ops: int = 0
    rand_magnitude: int = 0

    @property
    def least_side(self) -> int:
        """How small a decoded picture may be for the smallest crop to need no enlarging."""
        return math.ceil(self.size / math.sqrt(self.crop_scale[0]))

    def __call__(self, image: Image.Image) -> Tensor:
        """float32 [3, size, size] of the whole picture, squeezed into the square as ALBEF does in evaluation:
        nothing at the border is lost."""
        return self.normalise(self.pixels(np.array(to_rgb(image))))

    def pixels(self, image_HWC: np.ndarray, draws: Draws | None = None) -> Tensor:
        """uint8 [3, size, size]; without draws, of the whole picture and as it is."""
        flip = False
        if draws is not None:
            if self.crop_scale != (1.0, 1.0):
                left, top, right, bottom = random_crop(
                    image_HWC.shape[1], image_HWC.shape[0], self.crop_scale, draws
                )
                image_HWC = image_HWC[top:bottom, left:right]
            flip = self.flip and draws.random() < 0.5
        small_CHW = resize(image_HWC, self.size)
        if flip:
            small_CHW = small_CHW.flip(2)
        if draws is not None and self.rand_ops:
            small_HWC = np.ascontiguousarray(small_CHW.permute(1, 2, 0).numpy())
            small_HWC = rand_augment(small_HWC, draws, ops=self.rand_ops, magnitude=self.rand_magnitude)
            small_CHW = torch.from_numpy(small_HWC).permute(2, 0, 1)
        return small_CHW

    def normalise(self, pixels_CHW: Tensor) -> Tensor:
        """float32 of uint8 pixels [..., 3, H, W], on their device."""
        mean, std = (
            torch.tensor(v, device=pixels_CHW.device).mul_(255).view(3, 1, 1) for v in (self.mean, self.std)
        )
        return pixels_CHW.float().sub_(mean).div_(std)


def resize(image_HWC: np.ndarray, size: int) -> Tensor:
    """uint8 RGB of any size to uint8 [3, size, size]: bicubic, antialiased, clipped to 0..255."""
    image_1CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None]
    if image_1CHW.shape[2:] == (size, size):
        return image_1CHW[0]
    return torch.nn.functional.interpolate(image_1CHW, (size, size), mode="bicubic", antialias=True)[0]


def random_crop(
    width: int, height: int, scale: tuple[float, float], draws: Draws
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a crop with a random share of the area and an aspect ratio of 3/4 to
    4/3 (Inception's crop, as ALBEF uses it). When none of ten draws fits: the largest crop in the middle
    with such a ratio."""
    for _ in range(10):
        area = width * height * draws.uniform(*scale)
        ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draws.below(width - w + 1), draws.below(height - h + 1)
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
