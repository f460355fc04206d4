"""The fast path beside img2dataset's own Resizer: the same sizes always, the same pixels or nearly.

Thresholds in dB, before encoding: equal where the same OpenCV call is made; 40 for any photograph and 45 by
median in two steps; 36 and 40 where a JPEG was decoded at reduced scale.
"""

from __future__ import annotations

import contextlib
import io
import os
from functools import cache
from statistics import median
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.crawl.images import ImageOptions, Processor
from pipeline.stages.crawl.resize import final_size, reduction, resize, scaled_size
from tests.pipeline.photographs import photographs, pixels, psnr, textured

MODES = ("no", "keep_ratio", "keep_ratio_largest", "center_crop", "border")
INTERPOLATIONS = ("nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4")


@cache
def img2dataset() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset import resizer

    resizer.SuppressStdoutStderr = contextlib.nullcontext  # it would redirect pytest's output
    return resizer


def theirs(body: bytes, options: ImageOptions) -> tuple[np.ndarray, int, int]:
    """(pixels, original width, original height) as the Resizer of these options has them."""
    made = img2dataset().Resizer(
        options.image_size,
        options.resize_mode,
        options.resize_only_if_bigger,
        upscale_interpolation=options.upscale_interpolation,
        downscale_interpolation=options.downscale_interpolation,
        encode_quality=options.quality,
        encode_format=options.encode_format,
    )(io.BytesIO(body))
    assert made[5] is None, made[5]
    image = pixels(made[0])
    assert image.shape[:2] == (made[2], made[1])
    return image, made[3], made[4]


def both(body: bytes, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """(our pixels, theirs), losslessly stored."""
    options = ImageOptions(
        **{"encode_format": "png", "encode_quality": 1, "skip_reencode": False, **settings}
    )
    ours = Processor(options)(body)
    assert ours.reason is None, ours.message
    image, original_width, original_height = theirs(body, options)
    assert (ours.original_width, ours.original_height) == (original_width, original_height)
    assert (ours.height, ours.width) == image.shape[:2]
    return pixels(ours.data), image


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.integers(1, 300),
    mode=st.sampled_from(MODES),
    only_if_bigger=st.booleans(),
    grey=st.booleans(),
    kind=st.sampled_from(["png", "jpg", "webp"]),
)
def test_sizes_agree_in_every_mode(
    width: int, height: int, size: int, mode: Any, only_if_bigger: bool, grey: bool, kind: str
) -> None:
    if max(width, height) * size / min(width, height) > 4000:
        width = height  # an enlarged line would be gigabytes, in their way and in ours
    image = np.full((height, width) if grey else (height, width, 3), 77, np.uint8)
    body = cv2.imencode(f".{kind}", image)[1].tobytes()
    ours, other = both(body, image_size=size, resize_mode=mode, resize_only_if_bigger=only_if_bigger)
    assert ours.shape == other.shape
    assert np.abs(ours.astype(int) - other).max() <= 1, "and a plain picture stays plain"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_same_call_gives_the_same_pixels(mode: str, interpolation: str) -> None:
    """Enlarging, shrinking by anything but area, and by area where it is little."""
    body = cv2.imencode(".png", textured(2, 150, 101))[1].tobytes()
    asked = {"resize_mode": mode, "resize_only_if_bigger": False}
    ways = [
        {"image_size": 230, "upscale_interpolation": interpolation},
        {"image_size": 40, "downscale_interpolation": interpolation},
        {"image_size": 95, "downscale_interpolation": interpolation},
    ]
    for way in ways:
        if interpolation == "area" and way["image_size"] == 40:
            continue  # the case of the next test
        ours, other = both(body, **asked, **way)
        assert np.array_equal(ours, other), way


@pytest.mark.parametrize("mode", MODES[1:])
def test_two_steps_agree(mode: str) -> None:
    """Full decoding, and the area mean in two steps."""
    found = []
    for body in photographs().values():
        whole = cv2.imencode(".png", pixels(body), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        for size in (256, 180, 100, 50):
            found.append(psnr(*both(whole, image_size=size, resize_mode=mode)))
    assert min(found) >= 40, found
    assert median(found) >= 45, found


@pytest.mark.parametrize("mode", MODES[1:])
def test_reduced_decoding_agrees(mode: str) -> None:
    found = []
    for body in photographs().values():
        height, width = pixels(body).shape[:2]
        for size in (256, 128, 100, 64, 40):
            options = ImageOptions(image_size=size, resize_mode=mode)  # type: ignore[arg-type]
            if reduction(options, width, height) > 1:
                found.append(psnr(*both(body, image_size=size, resize_mode=mode)))
    assert len(found) >= 6
    assert min(found) >= 36, found
    assert median(found) >= 40, found


def test_encoded_pictures_agree() -> None:
    """After JPEG at quality 95, which makes more of a difference than the resizing."""
    found = []
    for body in photographs().values():
        for size in (256, 128):
            found.append(psnr(*both(body, image_size=size, encode_format="jpg", encode_quality=95)))
    assert min(found) >= 36, found
    assert median(found) >= 40, found


@pytest.mark.parametrize(("width", "height"), [(641, 427), (643, 431), (647, 433), (1999, 1201)])
def test_reduced_decoding_keeps_the_picture_in_place(width: int, height: int) -> None:
    """Sizes that do not divide by eight end in the middle of a reduced pixel."""
    ramp = np.linspace(0, 255, width, dtype=np.float32)[None] * np.ones((height, 1), np.float32)
    image = cv2.merge(
        [ramp, ramp, np.linspace(255, 0, height, dtype=np.float32)[:, None] * np.ones_like(ramp)]
    )
    body = cv2.imencode(".jpg", image.round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    for size in (20, 40, 80):
        options = ImageOptions(image_size=size)
        assert reduction(options, width, height) > 1
        ours, other = both(body, image_size=size)
        # a pixel of the result is 255 / size of the ramp: less than a quarter of it
        assert np.abs(ours.astype(int) - other).max() <= max(2, 64 / size)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    size=st.integers(1, 1024),
    mode=st.sampled_from(MODES),
    turned=st.booleans(),
)
def test_reduced_pictures_are_never_enlarged(
    width: int, height: int, size: int, mode: Any, turned: bool
) -> None:
    options = ImageOptions(image_size=size, resize_mode=mode)
    part = reduction(options, width, height, turned=turned)
    scaled = scaled_size(options, width, height)
    if part > 1:
        assert scaled is not None
        assert width / part >= 2 * scaled[0]
        assert height / part >= 2 * scaled[1]
        assert not turned or (width % part, height % part) == (0, 0)


@pytest.mark.parametrize("shape", [(1, 65_535), (65_535, 1), (2, 9_999), (3, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_lines(shape: tuple[int, int], mode: str) -> None:
    options = ImageOptions(image_size=256, resize_mode=mode)  # type: ignore[arg-type]
    size = (shape[1], shape[0])
    made = resize(np.zeros((*shape, 3), np.uint8), options, size)
    assert (made.shape[1], made.shape[0]) == final_size(options, *size)
