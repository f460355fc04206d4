"""RandAugment's operations against Pillow's; the draws of what is done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from models import augment
from models.augment import NAMES, apply, rand_augment
from models.draws import Draws
from tests.models.test_images import photograph

PICTURE = photograph(96, 80)
#: Pillow's six numbers at a level: where a pixel comes from, counted from the corner
GEOMETRY: dict[str, Callable[[float], tuple[float, ...]]] = {
    "shear_x": lambda level: (1, -0.3 * level, 0.15 * level, 0, 1, 0),
    "shear_y": lambda level: (1, 0, 0, -0.3 * level, 1, 0.15 * level),
    "translate_x": lambda level: (1, 0, 10 * level, 0, 1, 0),
    "translate_y": lambda level: (1, 0, 0, 0, 1, 10 * level),
}


def off(ours: np.ndarray, theirs: Image.Image) -> np.ndarray:
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))


def flat(image: Image.Image) -> Image.Image:
    """Little contrast, and one channel of a single value."""
    pixels = np.asarray(image) // 4 + 60
    pixels[..., 1] = 77
    return Image.fromarray(pixels)


@pytest.mark.parametrize("picture", [PICTURE, flat(PICTURE)])
@pytest.mark.parametrize("magnitude", [0, 5, 7, 10])
def test_tones_are_those_of_pillow(picture: Image.Image, magnitude: int) -> None:
    factor = 0.1 + 1.8 * magnitude / 10
    theirs = {
        "identity": picture,
        "auto_contrast": ImageOps.autocontrast(picture),
        "equalize": ImageOps.equalize(picture),
        "brightness": ImageEnhance.Brightness(picture).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(picture).enhance(factor),
    }
    for name, expected in theirs.items():
        ours = apply(name, np.array(picture), magnitude=magnitude)
        bound = {"identity": 0, "equalize": 0}.get(name, 1)
        assert off(ours, expected).max() <= bound, name
        assert apply(name, np.array(picture), magnitude=magnitude, negative=True).tolist() == ours.tolist()


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("magnitude", [5, 7, 10])
def test_shears_and_shifts_are_those_of_pillow(name: str, negative: bool, magnitude: int) -> None:
    """OpenCV weighs neighbours in steps of 1/32 pixel."""
    level = magnitude / 10 * (-1 if negative else 1)
    ours = apply(name, np.array(PICTURE), magnitude=magnitude, negative=negative)
    theirs = PICTURE.transform(
        PICTURE.size, Image.Transform.AFFINE, GEOMETRY[name](level), Image.Resampling.BILINEAR,
        fillcolor=(128, 128, 128),
    )  # fmt: skip
    # the two blend the outermost line of pixels with the border in their own ways
    mask = Image.new("L", PICTURE.size, 255).transform(
        PICTURE.size, Image.Transform.AFFINE, GEOMETRY[name](level), Image.Resampling.NEAREST
    )
    core = erode(np.asarray(mask) == 255)
    assert off(ours, theirs)[core].max() <= 4
    outside = erode(np.asarray(mask) == 0)
    assert (ours[outside] == 128).all()
    assert 0.5 < core.mean() < 1


def erode(mask: np.ndarray) -> np.ndarray:
    """Without the two outermost pixels of each part."""
    out = mask.copy()
    for shift in (-2, -1, 1, 2):
        for axis in (0, 1):
            out &= np.roll(mask, shift, axis)
    out[:2], out[-2:], out[:, :2], out[:, -2:] = False, False, False, False
    return out


@pytest.mark.parametrize("negative", [False, True])
def test_turns_are_those_of_pillow(negative: bool) -> None:
    angle = 30 * 0.7 * (-1 if negative else 1)
    ours = apply("rotate", np.array(PICTURE), magnitude=7, negative=negative)
    # about (W/2, H/2) counted in pixel centres, half a pixel from Pillow's middle
    centre = (PICTURE.width / 2 + 0.5, PICTURE.height / 2 + 0.5)
    theirs = PICTURE.rotate(angle, Image.Resampling.BILINEAR, center=centre, fillcolor=(128, 128, 128))
    full = Image.new("L", PICTURE.size, 255).rotate(angle, center=centre)
    assert off(ours, theirs)[erode(np.asarray(full) == 255)].max() <= 6
    assert (ours[erode(np.asarray(full) == 0)] == 128).all()
    assert math.isclose(full.getpixel((2, 2)), 0)  # type: ignore[arg-type]


def test_draws_decide_alone_and_half_of_the_operations_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.array(PICTURE)
    before = image.copy()
    results = [rand_augment(image, Draws(3, n), ops=2, magnitude=7) for n in range(20)]
    again = [rand_augment(image, Draws(3, n), ops=2, magnitude=7) for n in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True))
    assert np.array_equal(image, before)
    assert any(not np.array_equal(r, image) for r in results)
    done: Counter[tuple[str, bool]] = Counter()

    def note(name: str, image_HWC: np.ndarray, *, magnitude: int, negative: bool) -> np.ndarray:
        assert magnitude == 5
        done[name, negative] += 1
        return image_HWC

    monkeypatch.setattr(augment, "apply", note)
    for n in range(2000):
        rand_augment(image, Draws(4, n), ops=2, magnitude=5)
    assert 1850 < done.total() < 2150
    assert {name for name, _ in done} == set(NAMES)
    assert len(done) == 2 * len(NAMES)
    assert min(done.values()) > 60
    rand_augment(image, Draws(0), ops=0, magnitude=5)
