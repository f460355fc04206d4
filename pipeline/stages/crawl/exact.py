"""img2dataset's own `Resizer`, for those who want its very bytes: `resizer: img2dataset`.

Its package loads torch, wandb and albumentations, which costs a worker seconds and half a gigabyte; so it is
imported here, and only for this option.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import TYPE_CHECKING, Any

from pipeline.stages.crawl.decode import RefusedError

if TYPE_CHECKING:
    from pipeline.stages.crawl.images import ImageOptions

#: what the Resizer says -> our reason
_REASONS = {
    "image too small": "too_small",
    "image area too large": "too_many_pixels",
    "aspect ratio too large": "aspect_ratio",
}


class ExactResizer:
    """The Resizer with our options, fit for threads."""

    def __init__(self, options: ImageOptions) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version
        from img2dataset import resizer

        # It points the process's stdout and stderr at /dev/null around each picture; with several threads the
        # last one to finish puts /dev/null back for good.
        resizer.SuppressStdoutStderr = contextlib.nullcontext
        ratio = options.max_aspect_ratio
        self._resizer: Any = resizer.Resizer(
            image_size=options.image_size,
            resize_mode=options.resize_mode,
            resize_only_if_bigger=options.resize_only_if_bigger,
            upscale_interpolation=options.upscale_interpolation,
            downscale_interpolation=options.downscale_interpolation,
            encode_quality=options.quality,
            encode_format=options.encode_format,
            skip_reencode=options.skip_reencode,
            min_image_size=options.min_image_size,
            max_image_area=options.max_pixels,
            max_aspect_ratio=float("inf") if ratio is None else ratio,
        )

    def __call__(self, body: bytes, *, bits: int) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
        """(the file, its width and height, those of the original) of a picture with `bits` a sample.

        Raises RefusedError, as `pipeline.stages.crawl.decode.decode` does.
        """
        data, width, height, original_width, original_height, error = self._resizer(
            io.BytesIO(_eight_bits(body) if bits == 16 else body)
        )
        if error is not None:
            reason = _REASONS.get(error, "damaged")
            raise RefusedError(reason, error if reason != "damaged" else "cannot be decoded")
        return data, (width, height), (original_width, original_height)


def _eight_bits(body: bytes) -> bytes:
    """A 16-bit picture in 8 bits: the Resizer would cut it off at 255 of 65,535, to plain white."""
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        return body  # damaged: the Resizer says so
    image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
