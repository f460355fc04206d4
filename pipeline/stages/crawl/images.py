"""Pictures: the header is judged before anything is decoded, then img2dataset's `Resizer` does the work.

A few kilobytes can decode to gigabytes, so format and size are read from the header with our own few lines,
and only allowed formats under the pixel cap reach a decoder. Everything here is thread-safe; OpenCV gives up
the interpreter lock while it decodes, resizes and encodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import threading
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError

#: pictures above this many pixels are decoded one at a time in a worker, so that memory stays bounded
LARGE_PIXELS = 16 << 20
#: JPEG markers that start a frame and so hold the size: all C0..CF but DHT, JPG and DAC
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: what the Resizer says -> our reason
_RESIZER_REASONS = {
    "image too small": "too_small",
    "image area too large": "too_many_pixels",
    "aspect ratio too large": "aspect_ratio",
}


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What a downloaded picture must be, and what it becomes.

    Attributes:
        image_size: side in pixels that resize_mode aims at.
        resize_mode: img2dataset's modes: keep_ratio (shorter side), keep_ratio_largest (longer side),
            center_crop, border (longer side, padded white to a square), no.
        resize_only_if_bigger: leave pictures as they are that are not bigger than image_size.
        encode_format: format of the stored pictures, and suffix of their members.
        encode_quality: JPEG and WebP quality up to 100, or PNG compression up to 9; null takes 95, and 6
            for PNG.
        min_image_size: shorter side in pixels below which a picture is dropped as `too_small`.
        max_aspect_ratio: longer side over shorter side above which it is dropped as `aspect_ratio`; null for
            no limit.
        max_pixels: pixels above which it is dropped as `too_many_pixels`, before decoding.
        min_bytes: file size below which it is dropped as `small_file` (LAION and COYO: 5000).
    """

    image_size: int = 256
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int | None = None
    min_image_size: int = 0
    max_aspect_ratio: float | None = None
    max_pixels: int = 89_478_484
    min_bytes: int = 0

    @property
    def quality(self) -> int:
        if self.encode_quality is not None:
            return self.encode_quality
        return 6 if self.encode_format == "png" else 95

    def check(self) -> None:
        """Raises ConfigError where a value makes no sense."""
        if self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size}; it must be at least 1")
        most = 9 if self.encode_format == "png" else 100
        if not 0 <= self.quality <= most:
            raise ConfigError(
                f"encode_quality {self.quality} must be in 0..{most} for encode_format {self.encode_format}"
            )


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the first bytes of a picture say; width and height in pixels, as stored; bits a channel."""

    format: Literal["jpeg", "png", "webp"]
    width: int
    height: int
    bits: int = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a body became: the encoded picture and its sizes, or the reason why not."""

    data: bytes | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    reason: str | None = None
    message: str | None = None


def read_header(data: bytes) -> Header | None:
    """Format and size from the header of a JPEG, PNG or WebP; None for everything else."""
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            width, height, bits = struct.unpack_from(">IIB", data, 16)
            return _header("png", width, height, bits)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except struct.error:  # the header is cut off
        pass
    return None


def _header(kind: Literal["jpeg", "png", "webp"], width: int, height: int, bits: int = 8) -> Header | None:
    if width < 1 or height < 1:
        return None
    return Header(format=kind, width=width, height=height, bits=bits)


def _jpeg(data: bytes) -> Header | None:
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no length follows
            position += 2
        elif marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return _header("jpeg", width, height)
        elif marker in (0xD9, 0xDA):  # end of image, or its data, without a frame
            return None
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _webp(data: bytes) -> Header | None:
    chunk = data[12:16]
    if chunk == b"VP8X":  # canvas size minus one, 24 bits each
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return _header("webp", width, height) if len(data) >= 30 else None
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return _header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return _header("webp", width & 0x3FFF, height & 0x3FFF)
    return None


class Processor:
    """Turns bodies into stored pictures; one for a worker, used by all its threads."""

    def __init__(self, options: ImageOptions) -> None:
        self.options = options
        self._resizer = _make_resizer(options)
        self._large = threading.Lock()

    def __call__(self, body: bytes) -> Picture:
        """Judges and resizes one downloaded body."""
        refused, header = self._judge(body)
        if refused is not None or header is None:
            return refused or Picture(reason="not_an_image", message="not an image")
        large = header.width * header.height > LARGE_PIXELS
        with self._large if large else contextlib.nullcontext():
            data, width, height, original_width, original_height, error = self._resizer(
                io.BytesIO(_eight_bits(body) if header.bits == 16 else body)
            )
        if error is not None:
            reason = _RESIZER_REASONS.get(error, "damaged")
            return Picture(reason=reason, message=error if reason != "damaged" else "cannot be decoded")
        return Picture(
            data=data,
            width=width,
            height=height,
            original_width=original_width,
            original_height=original_height,
            sha256=hashlib.sha256(body).hexdigest(),
        )

    def _judge(self, body: bytes) -> tuple[Picture | None, Header | None]:
        """(the refusal or None, the header), from the header alone."""
        options = self.options
        header = read_header(body)
        if header is None:
            return Picture(reason="not_an_image", message="neither JPEG nor PNG nor WebP"), None
        longer, shorter = max(header.width, header.height), min(header.width, header.height)
        if len(body) < options.min_bytes:
            return Picture(reason="small_file", message=f"fewer than {options.min_bytes} bytes"), header
        if header.width * header.height > options.max_pixels:
            return Picture(reason="too_many_pixels", message="image area too large"), header
        if shorter < options.min_image_size:
            return Picture(reason="too_small", message="image too small"), header
        if options.max_aspect_ratio is not None and longer / shorter > options.max_aspect_ratio:
            return Picture(reason="aspect_ratio", message="aspect ratio too large"), header
        return None, header


def _eight_bits(body: bytes) -> bytes:
    """A 16-bit picture in 8 bits: the Resizer would cut it off at 255 of 65,535, to plain white."""
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        return body  # damaged: the Resizer says so
    return cv2.imencode(".png", np.right_shift(image, 8).astype(np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 1])[
        1
    ].tobytes()


def _make_resizer(options: ImageOptions) -> Any:
    """img2dataset's Resizer, fit for threads. Imported here: it takes seconds, and only workers need it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version
    # The decoder's own cap, should a file's header and its data disagree; read when cv2 is first loaded.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
    import cv2
    from img2dataset import resizer

    cv2.setNumThreads(1)
    # It points the process's stdout and stderr at /dev/null around each picture; with several threads the
    # last one to finish puts /dev/null back for good.
    resizer.SuppressStdoutStderr = contextlib.nullcontext
    return resizer.Resizer(
        image_size=options.image_size,
        resize_mode=options.resize_mode,
        resize_only_if_bigger=options.resize_only_if_bigger,
        encode_quality=options.quality,
        encode_format=options.encode_format,
        min_image_size=options.min_image_size,
        max_image_area=options.max_pixels,
        max_aspect_ratio=options.max_aspect_ratio if options.max_aspect_ratio is not None else float("inf"),
    )
