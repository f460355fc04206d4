"""The resize modes and options of img2dataset's `Resizer`, and a faster way to the same pixels.

Sizes are the Resizer's in every mode. Pixels are too, where it costs little: enlarging, and every
interpolation other than `area`, are the very same OpenCV call. Shrinking by `area`, the default, is where the
Resizer spends as much time as on decoding, since OpenCV does it number by number. Here a bilinear resize to
2, 4 or 8 times the wanted size comes first, then means of 2x2 pixels; OpenCV has both vectorised. On
photographs that is 45 dB and more from the Resizer's own by median (docs/crawl.md has the figures), in half
the time. JPEGs much larger than wanted are decoded at 1/2, 1/4 or 1/8 of their size, which skips work in the
decoder and here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stages.crawl.decode import RefusedError

if TYPE_CHECKING:
    from pipeline.stages.crawl.decode import Image
    from pipeline.stages.crawl.images import ImageOptions

#: img2dataset's names
INTERPOLATIONS = {
    "nearest": "INTER_NEAREST",
    "linear": "INTER_LINEAR",
    "bilinear": "INTER_LINEAR",
    "cubic": "INTER_CUBIC",
    "bicubic": "INTER_CUBIC",
    "area": "INTER_AREA",
    "lanczos": "INTER_LANCZOS4",
    "lanczos4": "INTER_LANCZOS4",
}
#: A reduced JPEG must still be so many times the wanted size: its reduction is sharper than a mean, and what
#: is left of the shrinking evens that out.
REDUCED_MARGIN = 2.0
#: times of shrinking below which the exact area mean is taken: there the two differ most
_HALVED_FROM = 1.6
#: how many times the size to halve a picture may be: more would agree less, and less would cost more
_NEXT_POWER = 1.525
#: pixels above which the intermediate picture would take too much memory
_HALVED_UP_TO = 16 << 20


def scaled_size(options: ImageOptions, width: int, height: int) -> tuple[int, int] | None:
    """(width, height) in pixels that a picture is scaled to, before a crop or a border; None: left alone."""
    mode, size = options.resize_mode, options.image_size
    if mode == "no":
        return None
    side = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    if options.resize_only_if_bigger and side <= size:
        return None
    scale = size / side
    return max(1, round(width * scale)), max(1, round(height * scale))


def final_size(options: ImageOptions, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels that a picture has in the end."""
    scaled = scaled_size(options, width, height)
    if scaled is None:
        return width, height
    if options.resize_mode in ("center_crop", "border"):
        return options.image_size, options.image_size
    return scaled


def reduction(options: ImageOptions, width: int, height: int, *, turned: bool = False) -> int:
    """8, 4 or 2, where a JPEG may be decoded at that part of its size; else 1.

    A turned one only where that comes out even, since its incomplete row or column would come first.
    """
    scaled = scaled_size(options, width, height)
    if scaled is None or options.downscale_interpolation != "area":
        return 1
    spare = min(width / scaled[0], height / scaled[1]) / REDUCED_MARGIN
    parts = [part for part in (8, 4, 2) if spare >= part]
    return next((p for p in parts if not turned or width % p == height % p == 0), 1)


def resize(image: Image, options: ImageOptions, size: tuple[int, int], *, shrink: int = 1) -> Image:
    """A picture of `size` (width, height) as the options want it; `shrink` says how reduced `image` is."""
    scaled = scaled_size(options, *size)
    if scaled is None:
        return image
    side = min(size) if options.resize_mode in ("keep_ratio", "center_crop") else max(size)
    smaller = side > options.image_size
    interpolation = options.downscale_interpolation if smaller else options.upscale_interpolation
    image = _scale(image, (size[0] / shrink, size[1] / shrink), scaled, interpolation)
    if options.resize_mode == "center_crop":
        return _cropped(image, options.image_size)
    if options.resize_mode == "border":
        return _bordered(image, options.image_size)
    return image


def encode(image: Image, options: ImageOptions) -> bytes:
    """The file of a picture, in the format and quality of the options.

    Raises RefusedError (`unsupported`) for sides that the format does not have: over 65,500 pixels in a JPEG,
    over 16,383 in a WebP.
    """
    import cv2

    setting = {
        "jpg": cv2.IMWRITE_JPEG_QUALITY,
        "png": cv2.IMWRITE_PNG_COMPRESSION,
        "webp": cv2.IMWRITE_WEBP_QUALITY,
    }[options.encode_format]
    done, data = cv2.imencode(f".{options.encode_format}", image, [setting, options.quality])
    if not done:
        raise RefusedError("unsupported", f"a side too long for {options.encode_format}")
    return data.tobytes()


def _scale(image: Image, extent: tuple[float, float], size: tuple[int, int], interpolation: str) -> Image:
    """`image` in `size` pixels. `extent` (width, height) is how much of it is picture: a reduced one ends
    somewhere in its last column and row, and taking those for whole would pull it out of shape."""
    import cv2

    if extent == size:
        return image
    height, width = image.shape[:2]
    times = min(extent[0] / size[0], extent[1] / size[1])
    reduced = (width, height) != extent
    small = reduced or width * height <= _HALVED_UP_TO
    if interpolation == "area" and times >= _HALVED_FROM and small:
        return _halved(image, extent, size, times)
    return cv2.resize(image, size, interpolation=getattr(cv2, INTERPOLATIONS[interpolation]))


def _halved(image: Image, extent: tuple[float, float], size: tuple[int, int], times: float) -> Image:
    """The area mean, nearly: to 2, 4, 8, ... times the size, the nearest, then halved until it fits."""
    import cv2

    whole = 2
    while times / whole >= _NEXT_POWER:
        whole *= 2
    columns, rows = size[0] * whole, size[1] * whole
    across, down = columns / extent[0], rows / extent[1]
    image = cv2.resize(image, None, fx=across, fy=down, interpolation=cv2.INTER_LINEAR)[:rows, :columns]
    while whole > 1:
        whole //= 2
        image = cv2.resize(image, (size[0] * whole, size[1] * whole), interpolation=cv2.INTER_AREA)
    return image


def _cropped(image: Image, side: int) -> Image:
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _bordered(image: Image, side: int) -> Image:
    import cv2

    rows, columns = side - image.shape[0], side - image.shape[1]
    if rows == 0 and columns == 0:
        return image
    top, left = rows // 2, columns // 2
    white = (255, 255, 255)
    return cv2.copyMakeBorder(image, top, rows - top, left, columns - left, cv2.BORDER_CONSTANT, value=white)
