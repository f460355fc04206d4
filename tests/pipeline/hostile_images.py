"""Pictures made to crash, stall or bloat whoever decodes them; and a program that survives them.

    python -m tests.pipeline.hostile_images

runs all of them through the crawl's processor, one JSON line each: name, reason, CPU seconds, megabytes by
which the peak memory of the process grew.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def ihdr(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def png(*chunks: bytes) -> bytes:
    return PNG + b"".join(chunks) + chunk(b"IEND")


def rows(width: int, height: int, *, channels: int = 3) -> bytes:
    return chunk(b"IDAT", zlib.compress(bytes((width * channels + 1) * height), 9))


def zeros(megabytes: int) -> bytes:
    """So many megabytes of zeros, deflated to a thousandth: one block, again and again."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    checksum = (megabytes << 20) % 65_521 << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + block * megabytes + b"\x03\x00" + struct.pack(">I", checksum)


def jpeg(width: int = 64, height: int = 48, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(out, "JPEG", **options)
    return out.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def inserted(body: bytes, *pieces: bytes) -> bytes:
    return body[:2] + b"".join(pieces) + body[2:]


def claiming(width: int, height: int, body: bytes | None = None) -> bytes:
    """A JPEG whose header says that it has another size."""
    lying = bytearray(body or jpeg())
    frame = max(lying.find(b"\xff\xc0"), lying.find(b"\xff\xc2"))
    struct.pack_into(">HH", lying, frame + 5, height, width)
    return bytes(lying)


def many_scans(count: int, width: int = 64, height: int = 48) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    body = jpeg(width, height, progressive=True)
    last, end = body.rindex(b"\xff\xda"), body.rindex(b"\xff\xd9")
    return body[:end] + body[last:end] * count + body[end:]


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    inside = b"".join(
        kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) & 1)
        for kind, payload in chunks
    )
    return b"RIFF" + struct.pack("<I", len(inside) + 4 if size is None else size) + b"WEBP" + inside


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sides


@cache
def webp(width: int = 64, height: int = 48) -> tuple[bytes, bytes]:
    """The one chunk of a plain lossy WebP."""
    body = cv2.imencode(".webp", np.zeros((height, width, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 50])[
        1
    ].tobytes()
    return body[12:16], body[20:]


def animated(frames: int, *, width: int = 64, height: int = 48) -> bytes:
    kind, payload = webp()
    frame = bytes(6) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little") + bytes(4)
    inside = kind + struct.pack("<I", len(payload)) + payload
    return riff(vp8x(width, height, 2), (b"ANIM", bytes(6)), *[(b"ANMF", frame + inside)] * frames)


def exif(block: bytes) -> bytes:
    return inserted(jpeg(), segment(0xE1, b"Exif\0\0" + block))


def apng(width: int, height: int) -> bytes:
    """An APNG whose first frame claims another size than the picture."""
    control = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 0, 0)
    return png(ihdr(64, 48), chunk(b"acTL", struct.pack(">II", 9, 0)), chunk(b"fcTL", control), rows(64, 48))


WHOLE = png(ihdr(64, 48), rows(64, 48))
#: name -> how to make it, and the reason it must have; None: a picture comes out
HOSTILE: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "nothing": (lambda: b"", "not_an_image"),
    "one byte": (lambda: b"\xff", "not_an_image"),
    "png header of 3600 Mpx": (lambda: png(ihdr(60_000, 60_000)), "too_many_pixels"),
    "png of 2^31 by 2^31": (lambda: png(ihdr(2**31, 2**31)), "too_many_pixels"),
    "png of 169 Mpx in 20 KB": (
        lambda: png(ihdr(13_000, 13_000, bits=1, colour=0), chunk(b"IDAT", zeros(21))),
        "too_many_pixels",
    ),
    "png of 88 Mpx in 260 KB": (lambda: png(ihdr(9_400, 9_400), chunk(b"IDAT", zeros(254))), None),
    "jpeg header of 4290 Mpx": (lambda: claiming(65_500, 65_500), "too_many_pixels"),
    "webp canvas of 2^48 pixels": (lambda: riff(vp8x(1 << 24, 1 << 24), webp()), "too_many_pixels"),
    "lossless webp of 268 Mpx": (
        lambda: riff((b"VP8L", b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14))),
        "too_many_pixels",
    ),
    "png of no width": (lambda: png(ihdr(0, 48), rows(64, 48)), "not_an_image"),
    "jpeg of no height": (lambda: claiming(64, 0), "not_an_image"),
    "png with too much data": (lambda: png(ihdr(10, 10), rows(3000, 3000)), None),
    "png with too little data": (lambda: png(ihdr(9000, 9000), rows(64, 48)), "damaged"),
    "jpeg with too little data": (lambda: claiming(9000, 9000), "damaged"),
    "jpeg with too much data": (lambda: claiming(8, 8), None),
    "webp canvas that is not the picture": (lambda: riff(vp8x(9000, 9000), webp()), "damaged"),
    "jpeg with a second frame header": (
        lambda: jpeg().replace(
            b"\xff\xda", segment(0xC0, b"\x08\xff\xff\xff\xff\x03" + bytes(9)) + b"\xff\xda"
        ),
        "damaged",
    ),
    "png with a second header": (
        lambda: png(ihdr(64, 48), ihdr(60_000, 60_000), rows(64, 48)),
        "damaged",
    ),
    "png whose data inflates to 900 MB": (lambda: png(ihdr(64, 48), chunk(b"IDAT", zeros(900))), None),
    "png whose data inflates to 4 GB": (lambda: png(ihdr(64, 48), chunk(b"IDAT", zeros(4096))), "damaged"),
    "png profile that inflates to 1 GB": (
        lambda: png(ihdr(64, 48), chunk(b"iCCP", b"a\0\0" + zeros(1024)), rows(64, 48)),
        None,
    ),
    "png text that inflates to 1 GB": (
        lambda: png(ihdr(64, 48), chunk(b"zTXt", b"a\0\0" + zeros(1024)), rows(64, 48)),
        None,
    ),
    "png utf-8 text that inflates to 1 GB": (
        lambda: png(ihdr(64, 48), chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(1024)), rows(64, 48)),
        None,
    ),
    "png of 10 MB of text": (
        lambda: png(ihdr(64, 48), chunk(b"tEXt", b"a\0" + b"a" * (10 << 20)), rows(64, 48)),
        None,
    ),
    "png chunk of 4 GB": (
        lambda: PNG + ihdr(64, 48) + b"\xff\xff\xff\xffIDAT" + bytes(1000),
        "damaged",
    ),
    "png of 800,000 chunks": (
        lambda: png(ihdr(64, 48), chunk(b"tEXt") * 800_000, rows(64, 48)),
        "damaged",
    ),
    "png with a wrong checksum in its data": (
        lambda: WHOLE.replace(WHOLE[-16:-12], b"\0\1\2\3"),
        "damaged",
    ),
    "png with a wrong checksum in its header": (lambda: WHOLE[:29] + b"\0\1\2\3" + WHOLE[33:], "damaged"),
    "png palette without colours": (lambda: png(ihdr(64, 48, colour=3), rows(64, 48, channels=1)), "damaged"),
    "png with colours that are not there": (
        lambda: png(
            ihdr(64, 48, colour=3),
            chunk(b"PLTE", b"abc"),
            chunk(b"IDAT", zlib.compress((b"\0" + b"\xff" * 64) * 48)),
        ),
        None,
    ),
    "png of an unknown kind": (lambda: png(ihdr(64, 48, bits=7, colour=5), rows(64, 48)), "not_an_image"),
    "png without data": (lambda: png(ihdr(64, 48)), "damaged"),
    "png line": (lambda: png(ihdr(65_535, 1), rows(65_535, 1)), "unsupported"),
    "png column": (lambda: png(ihdr(1, 65_535), rows(1, 65_535)), "unsupported"),
    "jpeg line": (lambda: jpeg(65_000, 1), None),
    "apng whose frame is larger": (lambda: apng(60_000, 60_000), None),
    "apng whose frame has no size": (lambda: apng(0, 0), None),
    "jpeg of 100,000 scans": (lambda: many_scans(100_000), "unsupported"),
    "jpeg of 80 scans of 81 Mpx": (lambda: claiming(9_000, 9_000, many_scans(80)), "unsupported"),
    "jpeg of 80 scans of 16 Mpx": (lambda: many_scans(80, 4_000, 4_000), None),
    "jpeg with a profile of 10 MB": (
        lambda: inserted(jpeg(), *[segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000))] * 160),
        None,
    ),
    "jpeg of 300,000 segments": (lambda: inserted(jpeg(), segment(0xE3, b"") * 300_000), "not_an_image"),
    "jpeg of 10 MB of fill bytes": (lambda: inserted(jpeg(), b"\xff" * (10 << 20)), "not_an_image"),
    "jpeg segment that goes past the end": (lambda: inserted(jpeg(), b"\xff\xe1\xff\xff"), "not_an_image"),
    "jpeg without tables": (lambda: jpeg().replace(b"\xff\xdb", b"\xff\xe5"), "damaged"),
    "jpeg with a page in it": (lambda: inserted(jpeg(), segment(0xFE, b"<script>alert(1)</script>")), None),
    "jpeg and zip": (lambda: jpeg() + b"PK\3\4" + bytes(1000), None),
    "exif directory in a circle": (
        lambda: exif(b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8)),
        None,
    ),
    "exif of 65,535 tags": (lambda: exif(b"MM\0*" + struct.pack(">IH", 8, 65_535) + b"\xff" * 60_000), None),
    "exif of 300 MB of text": (
        lambda: exif(
            b"II*\0"
            + struct.pack("<IH", 8, 400)
            + b"".join(struct.pack("<HHII", 0xC000 + i, 2, 60_000, 5_000) for i in range(400))
            + b"a" * 60_000
        ),
        None,
    ),
    "webp of 100,000 frames": (lambda: animated(100_000), None),
    "webp of 89 Mpx and 10,000 frames": (lambda: animated(10_000, width=9_400, height=9_400), None),
    "webp without frames": (lambda: riff(vp8x(64, 48, 2), (b"ANIM", bytes(6))), "damaged"),
    "webp that is longer than it says": (lambda: riff(webp(), size=4), "damaged"),
    "webp that says it has 4 GB": (lambda: riff(webp(), size=0xFFFFFFFE), "damaged"),
    "webp of a million chunks": (lambda: riff(vp8x(64, 48), *[(b"XXXX", b"")] * 1_000_000, webp()), None),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not_an_image"),
    "page": (lambda: b"<!DOCTYPE html><html>not found</html>", "not_an_image"),
    "gif": (lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(100), "not_an_image"),
    "bmp": (lambda: cv2.imencode(".bmp", np.zeros((9, 9), np.uint8))[1].tobytes(), "not_an_image"),
    "tiff": (lambda: cv2.imencode(".tiff", np.zeros((9, 9), np.uint8))[1].tobytes(), "not_an_image"),
    "avif": (lambda: b"\0\0\0\x20ftypavif" + bytes(1000), "not_an_image"),
    "icon": (lambda: b"\0\0\1\0\1\0" + WHOLE, "not_an_image"),
    "pdf": (lambda: b"%PDF-1.7" + jpeg(), "not_an_image"),
}


def main() -> None:
    from pipeline.stages.crawl.images import ImageOptions, Processor

    process = Processor(ImageOptions(image_size=64, extract_exif=True))
    for name, (make, _) in HOSTILE.items():
        body = make()
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        found = process(body)
        spent = time.process_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        said = {"name": name, "reason": found.reason, "message": found.message, "size": len(body)}
        print(json.dumps({**said, "seconds": round(spent, 3), "megabytes": round(grown)}), flush=True)


if __name__ == "__main__":
    main()
