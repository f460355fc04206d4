"""What `bench near` makes of photographs: copies that should be found, and pictures that should not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image, ImageOps

Change = Callable[[Image.Image], Image.Image]


def encoded(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _scaled(factor: float) -> Change:
    return lambda i: i.resize((round(i.width * factor), round(i.height * factor)), Image.Resampling.BICUBIC)


def _cropped(share: float, left: float = 0.5, top: float = 0.5) -> Change:
    """Without `share` of width and of height, of which `left` and `top` are cut off there."""

    def crop(image: Image.Image) -> Image.Image:
        width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
        x, y = round((image.width - width) * left), round((image.height - height) * top)
        return image.crop((x, y, x + width, y + height))

    return crop


def _brighter(image: Image.Image) -> Image.Image:
    return image.point([min(255, round(v * 1.2 + 10)) for v in range(256)] * 3)


def _same(image: Image.Image) -> Image.Image:
    return image


#: name -> (what is done, JPEG quality of the result)
COPIES: dict[str, tuple[Change, int]] = {
    "resized to 50 %": (_scaled(0.5), 95),
    "resized to 25 %, JPEG 50": (_scaled(0.25), 50),
    "squeezed to 224x224": (lambda i: i.resize((224, 224), Image.Resampling.BICUBIC), 95),
    "JPEG 50": (_same, 50),
    "JPEG 20": (_same, 20),
    "centre crop 2.5 %": (_cropped(0.025), 95),
    "centre crop 5 %": (_cropped(0.05), 95),
    "centre crop 5 %, 50 %, JPEG 50": (lambda i: _scaled(0.5)(_cropped(0.05)(i)), 50),
    "centre crop 8 %": (_cropped(0.08), 95),
    "centre crop 10 %": (_cropped(0.1), 95),
    "centre crop 15 %": (_cropped(0.15), 95),
    "brighter by a fifth": (_brighter, 95),
    "corner crop 5 %": (_cropped(0.05, 0, 0), 95),
    "bottom 5 % cut off": (lambda i: i.crop((0, 0, i.width, round(i.height * 0.95))), 95),
    "mirrored": (ImageOps.mirror, 95),
}


def views(photographs: list[Image.Image], number: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
    """(place of the photograph, a part of it with 16 to 64 % of its area) of each, so many times."""
    random = np.random.default_rng(seed)
    for at, image in enumerate(photographs):
        for _ in range(number):
            yield at, _view(image, random)


def _view(image: Image.Image, random: np.random.Generator) -> Image.Image:
    width, height = (int(side * random.uniform(0.4, 0.8)) for side in image.size)
    x, y = int(random.integers(0, image.width - width)), int(random.integers(0, image.height - height))
    return image.crop((x, y, x + width, y + height))


def products(photographs: list[Image.Image], number: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
    """The same in an oval or a rectangle in the middle of a white square, as shops show what they sell."""
    random = np.random.default_rng(seed)
    for at, image in enumerate(photographs):
        for _ in range(number):
            size = (int(random.integers(90, 200)), int(random.integers(90, 200)))
            part = _view(image, random).resize(size)
            mask = np.full(size[::-1], 255, np.uint8)
            if random.random() < 0.5:
                mask[:] = 0
                half = (size[0] // 2, size[1] // 2)
                cv2.ellipse(mask, half, (half[0] - 1, half[1] - 1), 0, 0, 360, 255, -1)
            square = Image.new("RGB", (256, 256), (255, 255, 255))
            square.paste(part, ((256 - size[0]) // 2, (256 - size[1]) // 2), Image.fromarray(mask))
            yield at, square


def pages(number: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
    """Black text on white, page by page another."""
    random = np.random.default_rng(seed)
    for at in range(number):
        page = np.full((256, 256, 3), 255, np.uint8)
        size = random.uniform(0.3, 0.6)
        for line in range(20, 250, int(size * 40)):
            _write(page, _letters(random, int(random.integers(10, 60)), " "), (8, line), 0, size, 1)
        yield at, Image.fromarray(page)


def logos(number: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
    """A word of 3 to 7 letters in the middle of a white square: little that tells one from another."""
    random = np.random.default_rng(seed)
    for at in range(number):
        square = np.full((256, 256, 3), 255, np.uint8)
        word = _letters(random, int(random.integers(3, 8)))
        font, bold = int(random.integers(0, 5)), int(random.integers(2, 8))
        _write(square, word, (20, 140), font, 10 / len(word), bold)
        yield at, Image.fromarray(square)


def _letters(random: np.random.Generator, length: int, others: str = "") -> str:
    return "".join(
        random.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" + others), length)
    )


def _write(image: np.ndarray, text: str, at: tuple[int, int], font: int, size: float, bold: int) -> None:
    cv2.putText(image, text, at, font, size, (0, 0, 0), bold, cv2.LINE_AA)
