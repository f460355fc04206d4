"""Every kind of picture decoded right, with Pillow as the independent witness.

Lossless kinds must be equal to the last bit but for alpha (one level of rounding); JPEG and WebP are decoded
by the same libraries in both and must be equal too, CMYK within 45 dB (two formulas for the same inks).
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from pipeline.stages.crawl.decode import RefusedError, decode, prove_whole
from pipeline.stages.crawl.exif import exif_block, orientation, tags_json
from pipeline.stages.crawl.header import read_header
from pipeline.stages.crawl.images import ImageOptions, Picture, Processor
from tests.pipeline.photographs import pixels, psnr, textured

SIZE = (93, 70)


@cache
def colour() -> Image.Image:
    return Image.fromarray(textured(3, *SIZE))


def see_through() -> Image.Image:
    image = colour().copy()
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    return image


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def seen_by_pillow(body: bytes) -> np.ndarray:
    """On white, upright, 8 bits; BGR, or one channel where there is no colour."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    grey = image.mode in ("L", "1") and "transparency" not in image.info
    if not grey:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return np.asarray(white.convert("RGB"))[..., ::-1]
    return np.asarray(image.convert("L"))


def seen_by_us(body: bytes, **options: Any) -> np.ndarray:
    made = Processor(ImageOptions(encode_format="png", resize_mode="no", skip_reencode=False, **options))(
        body
    )
    assert made.reason is None, made.message
    return pixels(made.data)


def with_chunk(png: bytes, kind: bytes, payload: bytes, *, before: bytes = b"IDAT") -> bytes:
    """A PNG with one more chunk."""
    at = png.index(before) - 4
    chunk = struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))
    return png[:at] + chunk + png[at:]


def palette() -> Image.Image:
    return colour().quantize(64)


def grey() -> Image.Image:
    return colour().convert("L")


def turned(kind: str, turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    return save(colour(), kind, exif=exif, **options)


def interlaced() -> bytes:
    """Adam7 by hand: Pillow does not write it."""
    rows, data = np.asarray(colour()), b""
    for top, left, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
    ):  # fmt: skip
        data += b"".join(b"\0" + row.tobytes() for row in rows[top::down, left::right])
    png = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 1)
    for kind, payload in ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        png += struct.pack(">I", len(payload)) + kind + payload
        png += struct.pack(">I", zlib.crc32(kind + payload))
    return png


EQUAL = {
    "jpeg": lambda: save(colour(), "JPEG"),
    "jpeg progressive": lambda: save(colour(), "JPEG", progressive=True),
    "jpeg 4:4:4": lambda: save(colour(), "JPEG", subsampling=0),
    "jpeg 4:2:2": lambda: save(colour(), "JPEG", subsampling=1),
    "jpeg of RGB": lambda: save(colour(), "JPEG", keep_rgb=True),
    "jpeg grey": lambda: save(grey(), "JPEG"),
    "jpeg and junk": lambda: save(colour(), "JPEG") + b"<html>" * 1000,
    "jpeg and jpeg": lambda: save(colour(), "JPEG") + save(grey(), "JPEG"),
    "jpeg with fill bytes": lambda: save(colour(), "JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "jpeg restarts": lambda: cv2.imencode(".jpg", np.asarray(colour()), [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[
        1
    ].tobytes(),
    "png": lambda: save(colour(), "PNG"),
    "png interlaced": interlaced,
    "png and junk": lambda: save(colour(), "PNG") + b"junk" * 100,
    "png grey": lambda: save(grey(), "PNG"),
    "png of 1 bit": lambda: save(colour().convert("1"), "PNG"),
    "png of 2 bits": lambda: save(colour().quantize(4), "PNG", bits=2),
    "png palette": lambda: save(palette(), "PNG"),
    "png palette, see-through": lambda: save(palette(), "PNG", transparency=bytes(range(0, 256, 4))),
    "png palette, one colour left out": lambda: save(palette(), "PNG", transparency=3),
    "png colour, one left out": lambda: save(
        palette().convert("RGB"), "PNG", transparency=palette().convert("RGB").getpixel((9, 9))
    ),
    "png grey, one left out": lambda: save(grey(), "PNG", transparency=grey().getpixel((9, 9))),
    "png see-through": lambda: save(see_through(), "PNG"),
    "png opaque alpha": lambda: save(colour().convert("RGBA"), "PNG"),
    "png grey see-through": lambda: save(see_through().convert("LA"), "PNG"),
    "png animated": lambda: save(
        colour(), "PNG", save_all=True, append_images=[colour().rotate(180), colour().rotate(90)]
    ),
    "png with a broken text": lambda: with_chunk(save(colour(), "PNG"), b"zTXt", b"a\0\0broken"),
    "webp": lambda: save(colour(), "WEBP"),
    "webp lossless": lambda: save(colour(), "WEBP", lossless=True),
    "webp see-through": lambda: save(see_through(), "WEBP", lossless=True),
    "webp animated": lambda: save(
        colour(), "WEBP", lossless=True, save_all=True, append_images=[colour().rotate(180)]
    ),
    "webp animated, see-through": lambda: save(
        see_through(), "WEBP", lossless=True, save_all=True, append_images=[see_through().rotate(180)]
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_as_pillow_sees_it(name: str) -> None:
    body = EQUAL[name]()
    ours, other = seen_by_us(body), seen_by_pillow(body)
    if "left out" in name and ours.ndim == 2:
        other = other[..., 0]  # white is a shade of grey too
    assert ours.shape == other.shape
    assert np.abs(ours.astype(int) - other).max() <= ("see-through" in name)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_come_out_upright(kind: str, turn: int) -> None:
    body = turned(kind, turn)
    assert orientation(exif_block(body, kind.lower())) == turn  # type: ignore[arg-type]
    assert np.array_equal(seen_by_us(body), seen_by_pillow(body))
    made = Processor(ImageOptions(image_size=35))(body)
    upright = SIZE if turn < 5 else SIZE[::-1]
    assert (made.original_width, made.original_height) == upright
    assert (made.width, made.height) == tuple(round(s / 2) for s in upright)


@pytest.mark.parametrize("turn", range(1, 9))
def test_reduced_pictures_come_out_upright(turn: int) -> None:
    for size in ((640, 480), (641, 483)):
        exif = Image.Exif()
        exif[0x0112] = turn
        body = save(Image.fromarray(textured(4, *size)), "JPEG", exif=exif, quality=95)
        small = pixels(Processor(ImageOptions(image_size=100, encode_format="png"))(body).data)
        whole = cv2.resize(seen_by_pillow(body), small.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert psnr(small, whole) > 36


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_is_none(value: int) -> None:
    assert np.array_equal(seen_by_us(turned("JPEG", value)), seen_by_us(turned("JPEG", 1)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_broken_exif_is_upright(order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)
    good = mark + struct.pack(order + "IH", 8, 1) + entry + bytes(4)
    assert orientation(good) == 6
    assert orientation(good[:-4]) == 6
    for broken in (b"", mark, good[:10], good[:12], mark + b"\xff" * 100, good.replace(mark, b"XX*\0")):
        assert orientation(broken) == 1


@pytest.mark.parametrize("shape", [(70, 93), (70, 93, 3), (70, 93, 4)])
def test_sixteen_bits_are_scaled(shape: tuple[int, ...]) -> None:
    deep = np.random.default_rng(1).integers(0, 65_536, shape, dtype=np.uint16)
    if shape[2:] == (4,):
        deep[..., 3] = 65_535
    found = seen_by_us(cv2.imencode(".png", deep)[1].tobytes())
    wanted = np.rint(deep / 257)[..., :3] if len(shape) == 3 else np.rint(deep / 257)
    assert np.abs(found - wanted).max() <= 1
    assert {0, 255} <= set(np.unique(found))


@pytest.mark.parametrize("bits", [8, 16])
def test_large_pictures_are_blended_like_small_ones(bits: int) -> None:
    """They are, some rows at a time."""
    image = np.random.default_rng(2).integers(0, 256, (1001, 1500, 4), dtype=np.uint8)
    alpha = image[..., 3:] / 255
    wanted = image[..., :3] * alpha + 255 * (1 - alpha)
    stored = image if bits == 8 else image.astype(np.uint16) * 257
    body = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    assert np.abs(seen_by_us(body, encode_quality=1) - wanted).max() <= 1


def test_cmyk_is_no_negative() -> None:
    cmyk = colour().convert("CMYK")
    body = save(cmyk, "JPEG", quality=95)  # Adobe's marker, inverted
    assert b"Adobe" in body[:40]
    assert psnr(seen_by_us(body), seen_by_pillow(body)) > 45
    ycck = body.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")  # the same numbers as YCCK
    assert psnr(seen_by_us(ycck), seen_by_pillow(ycck)) > 45
    kept = Processor(ImageOptions())(body)
    assert kept.data != body, "few readers know CMYK"
    assert pixels(kept.data).shape == (70, 93, 3)


@pytest.mark.parametrize("name", ["png see-through", "png animated", "webp see-through", "webp animated"])
def test_what_is_no_plain_picture_is_not_kept(name: str) -> None:
    body = EQUAL[name]()
    made = Processor(ImageOptions(encode_format=name.split()[0]))(body)  # type: ignore[arg-type]
    assert made.data is not None
    header = read_header(made.data)
    assert made.data != body
    assert header is not None
    assert (header.channels, header.animated) == (3, False)


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_and_finished_off(quality: int, progressive: bool) -> None:
    """As caches do. A progressive one has its whole picture early, only coarser: that is not found out."""
    image = Image.fromarray(textured(5, 400, 300))
    body = save(image, "JPEG", quality=quality, progressive=progressive)
    for share in (0.3, 0.6, 0.9):
        made = Processor(ImageOptions(image_size=128))(body[: int(len(body) * share)] + b"\xff\xd9")
        assert made.reason == (None if progressive else "damaged"), share


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"optimize": True}, {"quality": 20}])
@pytest.mark.parametrize("corner", [0, 50])
def test_mid_grey_pictures_are_whole(mode: str, options: dict[str, Any], corner: int) -> None:
    """What a decoder fills up with may be the picture's own."""
    image = np.full((300, 400, 3), 128, np.uint8)
    image[:corner, :corner] = textured(6, 50, 50)[:corner, :corner]
    body = save(Image.fromarray(image).convert(mode), "JPEG", **options)
    for size in (128, 30):
        assert Processor(ImageOptions(image_size=size))(body).reason is None


def frame(marker: int, bits: int = 8, channels: int = 3) -> bytes:
    body = bytearray(save(colour(), "JPEG"))
    at = body.index(b"\xff\xc0")
    body[at + 1], body[at + 4], body[at + 9] = marker, bits, channels
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (frame(0xC1, bits=12), "12 bits"),
        (frame(0xC3), "lossless"),
        (frame(0xC7), "hierarchical"),
        (frame(0xC0, channels=2), "components"),
    ],
)
def test_what_no_decoder_takes_has_a_reason(body: bytes, message: str) -> None:
    made = Processor(ImageOptions())(body)
    assert made.reason == "unsupported"
    assert message in (made.message or "")


def test_each_part_of_the_decoder_is_asked_alone() -> None:
    body = save(see_through(), "PNG")
    header = read_header(body)
    assert header is not None
    assert (header.width, header.height, header.bits, header.channels) == (*SIZE, 8, 4)
    texted = with_chunk(body, b"tEXt", b"a\0b")
    assert prove_whole(texted, header) == body, "only the chunks that pictures are made of"
    assert decode(body, header).shape == (70, 93, 3)
    wrong = bytearray(body)
    wrong[body.index(b"IDAT") + 20] ^= 1
    with pytest.raises(RefusedError, match="checksum"):
        prove_whole(bytes(wrong), header)


def test_exif_tags_are_img2datasets() -> None:
    import exifread

    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A maker", 6
    exif.get_ifd(0x8769)[0x829A] = IFDRational(1, 125)
    for kind in ("JPEG", "WEBP", "PNG"):
        body = save(colour(), kind, exif=exif)
        made = Processor(ImageOptions(extract_exif=True))(body)
        found = json.loads(made.exif or "")
        assert found["Image Make"] == "A maker"
        assert found["EXIF ExposureTime"] == "1/125"
        if kind == "JPEG":  # as img2dataset's Downloader calls it
            tags = exifread.process_file(io.BytesIO(body), details=False)
            assert found == {k: str(v).strip() for k, v in tags.items()}
    assert Processor(ImageOptions())(body).exif is None
    assert Processor(ImageOptions(extract_exif=True))(save(colour(), "JPEG")) == Picture(
        **{**vars(Processor(ImageOptions())(save(colour(), "JPEG"))), "exif": None}
    )


def test_exif_tags_that_would_grow_are_left_out() -> None:
    """5,000 tags of the same 60 KB: 300 MB of text."""
    count, text = 400, 60_000
    entries = b"".join(struct.pack("<HHII", 0xC000 + i, 2, text, 5000) for i in range(count))
    block = b"II*\0" + struct.pack("<IH", 8, count) + entries
    block = block.ljust(5000 + text, b"a")
    assert tags_json(block) is None
    loop = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    assert orientation(loop) == 1
    tags_json(loop)
