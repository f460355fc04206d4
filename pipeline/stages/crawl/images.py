"""What becomes of a picture: judged by its header, proven whole, decoded right, resized, encoded.

A few kilobytes can decode to gigabytes, so format and size are read from the header first (`header`), and
only allowed formats under the pixel cap reach a decoder (`decode`). Sizes, modes and pixels are those of
img2dataset's `Resizer`, by a faster way (`resize`) or by itself (`exact`). A picture in which nothing changes
keeps its bytes. Everything here is thread-safe; OpenCV gives up the interpreter lock while it decodes,
resizes and encodes. The same body gives the same bytes on every run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.stages.crawl.decode import RefusedError, decode, has_alpha, is_cmyk, prove_whole
from pipeline.stages.crawl.exact import ExactResizer
from pipeline.stages.crawl.exif import exif_block, orientation, tags_json
from pipeline.stages.crawl.header import Header, name_format, read_header
from pipeline.stages.crawl.resize import encode, final_size, reduction, resize

__all__ = ["Header", "ImageOptions", "Picture", "Processor", "read_header"]

Interpolation = Literal["nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4"]

#: pictures above this many pixels are decoded one at a time in a worker, so that memory stays bounded
LARGE_PIXELS = 16 << 20
HASHES = ("md5", "sha256", "sha512")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What a downloaded picture must be, and what it becomes. The names are img2dataset's where it has one.

    Attributes:
        image_size: side in pixels that resize_mode aims at.
        resize_mode: img2dataset's modes: keep_ratio (shorter side), keep_ratio_largest (longer side),
            center_crop, border (longer side, padded white to a square), no.
        resize_only_if_bigger: leave pictures as they are that are not bigger than image_size.
        upscale_interpolation: how pictures are enlarged.
        downscale_interpolation: how they are made smaller; anything but area is slower.
        encode_format: format of the stored pictures, and suffix of their members.
        encode_quality: JPEG and WebP quality up to 100, or PNG compression up to 9; null takes 95, and 6
            for PNG.
        skip_reencode: keep the bytes of a picture that is in encode_format already and in which nothing
            changes: no resizing, turning, alpha, frames, 16 bits or CMYK.
        disable_all_reencoding: keep the bytes of every picture, whatever its format and size.
        resizer: fast, or img2dataset for that package's own bytes: slower to start, and it leaves pictures
            turned as they are stored.
        min_image_size: shorter side in pixels below which a picture is dropped as `too_small`.
        max_aspect_ratio: longer side over shorter side above which it is dropped as `aspect_ratio`; null for
            no limit.
        max_pixels: pixels above which it is dropped as `too_many_pixels`, before decoding (img2dataset's
            max_image_area).
        min_bytes: file size below which it is dropped as `small_file` (LAION and COYO: 5000).
        extract_exif: write the EXIF tags of a picture as JSON into the column `exif`.
        verify_hash: column of the list with the hash of the file, and its kind (md5, sha256 or sha512), such
            as `["md5","md5"]`; a body that has another is dropped as `hash_mismatch`.
    """

    image_size: int = 256
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    upscale_interpolation: Interpolation = "lanczos"
    downscale_interpolation: Interpolation = "area"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int | None = None
    skip_reencode: bool = True
    disable_all_reencoding: bool = False
    resizer: Literal["fast", "img2dataset"] = "fast"
    min_image_size: int = 0
    max_aspect_ratio: float | None = None
    max_pixels: int = 89_478_484
    min_bytes: int = 0
    extract_exif: bool = False
    verify_hash: list[str] | None = None

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
        if self.verify_hash is not None and (len(self.verify_hash) != 2 or self.verify_hash[1] not in HASHES):
            raise ConfigError(
                f"verify_hash {self.verify_hash} must be a column and one of {', '.join(HASHES)}, "
                'such as ["md5","md5"]'
            )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a body became: the encoded picture and its sizes in pixels, or the reason why not.

    The original's sizes are those after its orientation; sha256 is that of the body; exif a JSON object.
    """

    data: bytes | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    exif: str | None = None
    reason: str | None = None
    message: str | None = None


class Processor:
    """Turns bodies into stored pictures; one for a worker, used by all its threads."""

    def __init__(self, options: ImageOptions) -> None:
        self.options = options
        _prepare_decoder()
        self._exact = ExactResizer(options) if options.resizer == "img2dataset" else None
        self._large = threading.Lock()

    def __call__(self, body: bytes, *, expected_hash: str | None = None) -> Picture:
        """Judges and resizes one downloaded body; `expected_hash` is what verify_hash's column says of it."""
        try:
            self._verify_hash(body, expected_hash)
            header = self._judge(body)
            large = header.width * header.height > LARGE_PIXELS
            with self._large if large else contextlib.nullcontext():
                data, (width, height), (original_width, original_height) = self._make(body, header)
        except RefusedError as refused:
            return Picture(reason=refused.reason, message=str(refused))
        return Picture(
            data=data,
            width=width,
            height=height,
            original_width=original_width,
            original_height=original_height,
            sha256=hashlib.sha256(body).hexdigest(),
            exif=tags_json(exif_block(body, header.format)) if self.options.extract_exif else None,
        )

    def _verify_hash(self, body: bytes, expected: str | None) -> None:
        if self.options.verify_hash is None:
            return
        kind = self.options.verify_hash[1]
        found = hashlib.new(kind, body, usedforsecurity=False).hexdigest()
        if expected is None:
            raise RefusedError("hash_mismatch", f"the list has no {kind}")
        if found != str(expected).strip().lower():
            raise RefusedError("hash_mismatch", f"another {kind} than the list says")

    def _judge(self, body: bytes) -> Header:
        """The header, if what it says is allowed; nothing is decoded. Raises RefusedError."""
        options = self.options
        header = read_header(body)
        if header is None:
            raise RefusedError("not_an_image", name_format(body))
        longer, shorter = max(header.width, header.height), min(header.width, header.height)
        if len(body) < options.min_bytes:
            raise RefusedError("small_file", f"fewer than {options.min_bytes} bytes")
        if header.width * header.height > options.max_pixels:
            raise RefusedError("too_many_pixels", "image area too large")
        if shorter < options.min_image_size:
            raise RefusedError("too_small", "image too small")
        if options.max_aspect_ratio is not None and longer / shorter > options.max_aspect_ratio:
            raise RefusedError("aspect_ratio", "aspect ratio too large")
        return header

    def _make(self, body: bytes, header: Header) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
        """(the file to store, its width and height, those of the original). Raises RefusedError."""
        options = self.options
        whole = prove_whole(body, header)
        stored = (header.width, header.height)
        if options.disable_all_reencoding:
            decode(whole, header, shrink=8)  # which reads all of the data
            return body, stored, stored
        if self._exact is not None:
            data, size, original = self._exact(whole, bits=header.bits)
            return (body if data == whole else data), size, original
        turn = orientation(exif_block(body, header.format))
        size = stored if turn < 5 else (stored[1], stored[0])
        final = final_size(options, *size)
        if final == size and turn == 1 and self._may_keep(whole, header):
            decode(whole, header, shrink=8)
            return body, size, size
        shrink = reduction(options, *size, turned=turn > 1) if header.format == "jpeg" else 1
        image = decode(whole, header, turn=turn, shrink=shrink)
        return encode(resize(image, options, size, shrink=shrink), options), final, size

    def _may_keep(self, whole: bytes, header: Header) -> bool:
        """Whether a picture that needs no resizing and no turning needs nothing else either."""
        as_wanted = header.format == (
            "jpeg" if self.options.encode_format == "jpg" else self.options.encode_format
        )
        plain = header.bits <= 8 and not header.animated and not has_alpha(whole, header)
        return self.options.skip_reencode and as_wanted and plain and not is_cmyk(header)


def _prepare_decoder() -> None:
    # OpenCV's own cap, should a file's header and its data disagree; read when it is first loaded.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
    import cv2

    cv2.setNumThreads(1)  # workers are as many as the CPUs
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # damaged pictures have a reason
