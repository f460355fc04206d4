"""Decoding takes what is whole and of bounded size, with Pillow's pixels; resizing agrees with Pillow."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from models import images
from models.draws import Draws
from models.images import CorruptImageError, ImageTransform, decode, decode_array, random_crop, resize
from models.jpeg import plain_jpeg
from models.training.config import CLIP_MEAN, CLIP_STD
from tests.models.toy_shards import draw_scene


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Large shapes and fine texture."""
    rng = np.random.default_rng(width * 1000 + height)
    shapes = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), 3)
    texture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(shapes, texture.filter(ImageFilter.GaussianBlur(1)), 0.3).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


JPEGS = {
    "colour": encode(photograph(97, 61), quality=90),
    "progressive": encode(photograph(200, 130), quality=75, progressive=True),
    "grey": encode(photograph(64, 65, "L")),
    "no subsampling": encode(photograph(33, 40), subsampling=0, optimize=True),
    "restarts": encode(photograph(80, 80), restart_marker_blocks=2),
    "thumbnail": encode(photograph(80, 60), exif=b"Exif\0\0" + encode(photograph(16, 16))),
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("least_side", [0, 12, 30])
def test_the_fast_way_gives_the_pixels_of_pillow(name: str, least_side: int) -> None:
    data = JPEGS[name]
    assert plain_jpeg(data) is not None
    assert np.array_equal(decode_array(data, least_side=least_side), decode(data, least_side=least_side))


def test_orientation_is_left_alone_and_other_kinds_go_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(photograph(50, 30), exif=exif)
    assert decode_array(turned).shape == (30, 50, 3)
    slow = {
        "cmyk": encode(photograph(20, 20, "CMYK")),
        "png": encode(photograph(20, 20, "RGBA"), "PNG"),
        "webp": encode(photograph(20, 20), "WEBP"),
        "trailing": JPEGS["colour"] + b"\0",
    }
    monkeypatch.setattr(images.cv2, "imdecode", None)
    for name, data in slow.items():
        assert plain_jpeg(data) is None, name
        assert np.array_equal(decode_array(data), decode(data)), name


@pytest.mark.parametrize("name", ["colour", "progressive", "thumbnail"])
def test_a_file_cut_off_anywhere_is_refused(name: str) -> None:
    """OpenCV would make the rest grey; in the one with a thumbnail there is an end mark to be cut after."""
    data = JPEGS[name]
    ends = [at + 2 for at in range(len(data) - 2) if data[at : at + 2] == b"\xff\xd9"]
    for cut in [*range(2, len(data) - 2, 37), *ends]:
        assert plain_jpeg(data[:cut]) is None, cut
        with pytest.raises(CorruptImageError):
            decode_array(data[:cut])


def test_what_is_no_picture_or_too_large_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, _ = draw_scene(np.random.default_rng(0), 64)
    for bad in (b"", b"<html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, encode(photograph(9, 9), "GIF")):
        for function in (decode, decode_array):
            with pytest.raises(CorruptImageError):
                function(bad)
    frame = image.index(b"\xff\xc0")
    bomb = image[: frame + 5] + struct.pack(">HH", 60000, 60000) + image[frame + 9 :]
    monkeypatch.setattr(images.cv2, "imdecode", None)
    for function in (decode, decode_array):
        with pytest.raises(CorruptImageError, match=r"60000x60000|DecompressionBomb"):
            function(bomb)


def test_damaged_bytes_give_pillows_answer_or_none() -> None:
    """Bytes changed anywhere: what the fast way takes, Pillow takes too, to the same pixels."""
    rng = np.random.default_rng(0)
    taken = 0
    for turn in range(600):
        changed = bytearray(JPEGS[["colour", "progressive", "restarts"][turn % 3]])
        changed[rng.integers(len(changed))] = rng.choice([0xFF, rng.integers(256)])
        try:
            fast = decode_array(bytes(changed))
        except CorruptImageError:
            continue
        assert np.array_equal(fast, decode(bytes(changed)))
        taken += 1
    assert taken > 200


@pytest.mark.parametrize(("width", "height"), [(300, 200), (97, 161), (640, 480), (20, 17)])
def test_resizing_agrees_with_pillow_within_two_levels(width: int, height: int) -> None:
    image = photograph(width, height)
    ours = resize(np.array(image), 64).permute(1, 2, 0).numpy().astype(int)
    off = np.abs(ours - np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(int))
    assert off.max() <= 2
    assert off.mean() < 0.3


def test_the_transform_normalises_and_flips_and_the_crop_stays_inside() -> None:
    image = decode(draw_scene(np.random.default_rng(0), 64)[0])
    plain = ImageTransform(size=16, mean=CLIP_MEAN, std=CLIP_STD)
    pixels = plain(image)
    assert torch.equal(pixels, plain(image))
    restored = pixels * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    assert torch.allclose(restored * 255, plain.pixels(np.array(image)).float(), atol=1e-3)
    flips = ImageTransform(size=16, mean=CLIP_MEAN, std=CLIP_STD, flip=True)
    seen = [flips.pixels(np.array(image), Draws(1, n)) for n in range(40)]
    as_is, mirrored = flips.pixels(np.array(image)), flips.pixels(np.array(image)).flip(2)
    assert {torch.equal(s, mirrored) for s in seen} == {True, False}
    assert all(torch.equal(s, as_is) or torch.equal(s, mirrored) for s in seen)
    shares = []
    for n in range(300):
        left, top, right, bottom = random_crop(80, 50, (0.2, 1.0), Draws(n))
        assert 0 <= left < right <= 80
        assert 0 <= top < bottom <= 50
        shares.append((right - left) * (bottom - top) / 4000)
        assert 0.7 < (right - left) / (bottom - top) < 1.4
    assert min(shares) < 0.25
    assert max(shares) > 0.8
    assert random_crop(100, 10, (0.9, 1.0), Draws(0)) == (43, 0, 56, 10)  # none fits: the middle, at 4:3
