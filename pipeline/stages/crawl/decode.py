"""From the bytes of a picture to its pixels: whole, upright, on white, eight bits; or why not.

OpenCV decodes. What it does not do is done here: files that were cut or damaged are found out before (a JPEG
without its end, a PNG chunk whose checksum is wrong), PNGs reach the decoder without the chunks that only
bombs put to use, and alpha, 16 bits and orientation come out as a browser would show them.

Pixels are `image_HWC` in OpenCV's order (blue, green, red), or `image_HW` for grey pictures; uint8.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.stages.crawl.header import Header, jpeg_segments, png_chunks

if TYPE_CHECKING:
    import numpy as np

    Image = np.ndarray[Any, np.dtype[Any]]

#: a progressive JPEG has about 10 scans; each takes 12 bytes of file, and costs a pass over all pixels
MAX_SCANS = 100
#: pixels of all passes that are taken for more than 20 scans: about two seconds
MAX_SCANNED = 1 << 31
#: Compressed bytes of a PNG above which it is checked that they do not inflate to far more than its pixels.
#: A megabyte can become a gigabyte, in two seconds.
CHECKED_PNG_BYTES = 1 << 20
#: the chunks of a PNG that the first picture is made of
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_EOI = b"\xff\xd9"


class RefusedError(Exception):
    """A picture that is not taken: `reason` is our word for it, the text says more."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def prove_whole(body: bytes, header: Header) -> bytes:
    """The bytes that a decoder may get, of a picture that is not cut short as far as its container tells.

    Raises RefusedError: `damaged`, or `unsupported` for what no decoder takes or what would keep it busy.
    """
    if header.problem is not None:
        raise RefusedError("unsupported", header.problem)
    if header.format == "jpeg":
        _prove_jpeg(body, header)
    elif header.format == "png":
        return _prove_png(body, header)
    return body


def decode(body: bytes, header: Header, *, turn: int = 1, shrink: int = 1) -> Image:
    """The pixels of a picture that `prove_whole` let pass.

    Args:
        turn: its EXIF orientation, 1 to 8, which is undone.
        shrink: 1, 2, 4 or 8: decode a JPEG at this part of its size, rounded up; others ignore it.

    Raises RefusedError (`damaged`) where the decoder gives up, or had to invent the rest.
    """
    image = _decoded(body, _flags(header, shrink))
    if image is None:
        raise RefusedError("damaged", "cannot be decoded")
    if header.format == "jpeg" and _ran_dry(body, image, header, shrink):
        raise RefusedError("damaged", "cut short")
    image = _plain(image)
    if header.format == "png" and image.ndim == 2:
        _transparent_grey(body, image, header)
    return _upright(image, turn)


def has_alpha(body: bytes, header: Header) -> bool:
    """Whether a picture may be transparent in places, by its header and its chunks."""
    if header.format != "png":
        return header.format == "webp" and header.channels == 4
    return header.channels in (2, 4) or any(kind == b"tRNS" for kind, _, _ in png_chunks(body))


def is_cmyk(header: Header) -> bool:
    return header.format == "jpeg" and header.channels == 4


def _flags(header: Header, shrink: int) -> int:
    import cv2

    if header.format != "jpeg":
        return cv2.IMREAD_UNCHANGED  # keeps alpha and 16 bits
    kind = "GRAYSCALE" if header.channels == 1 else "COLOR"
    name = f"IMREAD_{kind}" if shrink == 1 else f"IMREAD_REDUCED_{kind}_{shrink}"
    return int(getattr(cv2, name) | cv2.IMREAD_IGNORE_ORIENTATION)


def _decoded(body: bytes, flags: int) -> Image | None:
    import cv2
    import numpy as np

    try:
        return cv2.imdecode(np.frombuffer(body, np.uint8), flags)
    except cv2.error:  # it has assertions of its own about sizes
        return None


def _prove_jpeg(body: bytes, header: Header) -> None:
    scan, several = 0, False
    for marker, start, end in jpeg_segments(body):
        several |= marker in (0xC2, 0xCA)
        if marker == 0xDA:
            scan, several = end, several or body[start] < header.channels
    # After the first scan, since thumbnails have an end of their own. What follows the end is no concern.
    if scan == 0 or body.rfind(_EOI, scan) < 0:
        raise RefusedError("damaged", "cut short")
    if not several:
        return
    # An FF in the data of a scan is always followed by something else than DA.
    scans = 1 + body.count(b"\xff\xda", scan)
    if scans > MAX_SCANS or (scans > 20 and scans * header.width * header.height > MAX_SCANNED):
        raise RefusedError("unsupported", "JPEG of too many scans")


def _prove_png(body: bytes, header: Header) -> bytes:
    kept: list[tuple[int, int]] = []
    data: list[tuple[int, int]] = []
    others = False
    kind = b""
    end = 8
    for kind, start, end in png_chunks(body):
        if kind not in _PNG_NEEDED:
            others = True
            continue
        if zlib.crc32(body[start - 4 : end]) != struct.unpack_from(">I", body, end)[0]:
            raise RefusedError("damaged", "a checksum is wrong")
        kept.append((start - 8, end + 4))
        if kind == b"IDAT":
            data.append((start, end))
    if kind != b"IEND":
        raise RefusedError("damaged", "cut short")
    _prove_png_data(body, data, header)
    if not others:
        return body[: end + 4]
    return body[:8] + b"".join(body[start:stop] for start, stop in kept)


def _prove_png_data(body: bytes, data: list[tuple[int, int]], header: Header) -> None:
    """Raises RefusedError where data becomes far more than the pixels: decoders inflate it to the end."""
    if sum(end - start for start, end in data) <= CHECKED_PNG_BYTES:
        return
    row = header.width * header.channels * header.bits // 8 + 2
    left = 2 * row * header.height + (1 << 16)  # twice, as interlaced pictures have more and shorter rows
    inflating = zlib.decompressobj()
    try:
        for rest in _steps(body, data):
            while rest and left > 0:
                left -= len(inflating.decompress(rest, 1 << 20))
                rest = inflating.unconsumed_tail
    except zlib.error as error:
        raise RefusedError("damaged", "cannot be decoded") from error
    if left <= 0:
        raise RefusedError("damaged", "more data than pixels")


def _steps(body: bytes, pieces: list[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of the pieces, little by little: what is not consumed at once is copied time and again."""
    for start, end in pieces:
        for at in range(start, end, 1 << 16):
            yield body[at : min(at + (1 << 16), end)]


def _ran_dry(body: bytes, image: Image, header: Header, shrink: int) -> bool:
    """Whether a JPEG ended early and was finished off with an end marker, as some servers and caches do.

    libjpeg then fills up with mid-grey, which a picture may also have of its own. In that one the last bytes
    of the data are grey blocks of the corner, and without them the rest stays the same; in one that was cut
    they are what comes before the grey.
    """
    if image[-1, -1].max() != 128:
        return False
    # Two bytes are at most eight blocks, and one is spoilt: 72 pixels of a grey JPEG, in more rows if narrow.
    columns = -(-160 // shrink)
    rows = -(-16 // shrink) * -(-columns // image.shape[1])
    if not (image[-rows:, -columns:] == 128).all():
        return False
    end = body.rfind(_EOI)
    shorter = _decoded(body[: end - 2] + _EOI, _flags(header, shrink))
    if shorter is None:
        return True
    shorter[-rows:, -columns:] = 128
    return not (shorter == image).all()


def _transparent_grey(body: bytes, image: Image, header: Header) -> None:
    """Whitens the one transparent shade of a grey PNG, in place: OpenCV leaves it as it is."""
    for kind, start, end in png_chunks(body):
        if kind == b"tRNS" and header.channels == 1 and end - start == 2 and body[25] == 0:
            (shade,) = struct.unpack_from(">H", body, start)
            image[image == round(shade * 255 / ((1 << header.bits) - 1))] = 255
        if kind in (b"tRNS", b"IDAT"):
            return


def _plain(image: Image) -> Image:
    """Eight bits, on white; some rows at a time, since 16-bit pictures with alpha take 8 bytes a pixel."""
    import cv2
    import numpy as np

    see_through = image.ndim == 3 and image.shape[2] == 4
    if image.dtype == np.uint8 and not see_through:
        return image
    made = np.empty((*image.shape[:2], 3) if see_through else image.shape, np.uint8)
    rows = max(1, (1 << 20) // image.shape[1])
    for top in range(0, image.shape[0], rows):
        block = image[top : top + rows]
        if block.dtype != np.uint8:
            block = cv2.convertScaleAbs(block, alpha=255 / 65535)
        made[top : top + rows] = (
            _on_white(block) if see_through else block.reshape(made[top : top + rows].shape)
        )
    return made


def _on_white(image: Image) -> Image:
    """Blends a picture with alpha, four channels, onto white, to the nearest integer."""
    import cv2

    colour, alpha = image[..., :3], image[..., 3]
    if alpha.min() == 255:
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
    dark = cv2.multiply(cv2.bitwise_not(colour), cv2.merge([alpha] * 3), scale=1 / 255)
    return cv2.bitwise_not(dark)


def _upright(image: Image, turn: int) -> Image:
    """Undoes an EXIF orientation: flips for 2 and 4, turns, and both for 5 and 7."""
    import cv2

    if turn in (5, 6, 7, 8):
        image = cv2.transpose(image)  # 5 is done with it
    # cv2.flip: 1 swaps left and right, 0 top and bottom, -1 both
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(turn)
    return image if flip is None else cv2.flip(image, flip)
