"""A fixed mix of pictures as the web serves them: sizes, formats, textures that compress as photos do."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

#: how many different pictures there are of each entry; a list of any length goes round over them
VARIANTS = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """share: in percent of the pictures; width, height in pixels."""

    share: int
    format: str
    width: int
    height: int
    progressive: bool = False

    def __str__(self) -> str:
        kind = f"{'progressive ' if self.progressive else ''}{self.format}"
        return f"{self.share} % {kind} {self.width}x{self.height}"


MIX = (
    Entry(share=10, format="JPEG", width=300, height=200),
    Entry(share=40, format="JPEG", width=640, height=480),
    Entry(share=10, format="JPEG", width=800, height=800, progressive=True),
    Entry(share=15, format="JPEG", width=1024, height=768),
    Entry(share=10, format="JPEG", width=1600, height=1200),
    Entry(share=10, format="PNG", width=500, height=500),
    Entry(share=5, format="WEBP", width=800, height=600),
)


def make_pictures(only: str | None = None) -> list[bytes]:
    """The pictures in an order in which every entry has its share; the same bytes on every call.

    Args:
        only: take one entry alone, by its size, such as `640x480`.
    """
    mix = [e for e in MIX if only is None or f"{e.width}x{e.height}" == only]
    variants = {e: [_encode(e, seed) for seed in range(VARIANTS)] for e in mix}
    drawn = [entry for entry in mix for _ in range(entry.share)]
    order = np.random.default_rng(0).permutation(len(drawn) * VARIANTS)
    return [variants[drawn[at % len(drawn)]][at // len(drawn)] for at in order]


def _encode(entry: Entry, seed: int) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(photograph(entry.width, entry.height, seed))
    if entry.format == "JPEG":
        image.save(out, "JPEG", quality=85, progressive=entry.progressive)
    else:
        image.save(out, entry.format, **({"quality": 80} if entry.format == "WEBP" else {}))
    return out.getvalue()


def photograph(width: int, height: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 with a spectrum like that of photographs: large shapes, finer texture, some grain."""
    rng = np.random.default_rng([seed, width, height])
    image = np.zeros((height, width, 3))
    for octave in range(7):
        cells = 3 * 2**octave
        noise = rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8)
        grown = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        image += (np.asarray(grown) - 127.5) / 1.5**octave
    image += rng.normal(0, 6, image.shape)
    return np.clip(image * 0.5 + 127.5, 0, 255).astype(np.uint8)
