"""What can be said of a picture without a model: sharp or blurred, bright or dark, flat or full.

All is measured on luma (BT.601, 0..255) at one size: the picture is brought to `SIDE` pixels on its longer
side, by area averages where it is larger and by linear interpolation where it is smaller. So values do not
depend on how large a picture was stored, and a small picture counts for what it shows when it is enlarged.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

#: pixels of the longer side at which everything is measured
SIDE = 256
#: neighbouring levels of luma (of 256) that count as one: the noise of JPEG
LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """Of one picture.

    Attributes:
        width, height: pixels, as it is stored.
        sharpness: the variance of the Laplacian (4 neighbours; Pech-Pacheco et al. 2000): 0 for one colour,
            below about 100 blurred, hundreds to thousands for photographs, above 10,000 for noise, text
            and line drawings.
        brightness: mean luma, 0 (black) to 1 (white).
        contrast: its standard deviation, 0 (one colour) to 0.5 (half black, half white).
        flatness: the largest share of pixels within `LEVELS` neighbouring levels of luma: 1 for a blank
            picture, above 0.8 for most logos on one ground, 0.1 to 0.4 for photographs.
    """

    width: int
    height: int
    sharpness: float
    brightness: float
    contrast: float
    flatness: float


def picture_facts(image_HWC: np.ndarray) -> PictureFacts:
    """Of uint8 RGB pixels. Sums are exact: the same pixels give the same bits."""
    height, width = image_HWC.shape[:2]
    luma_HW = at_one_size(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY))
    mean, deviation = _spread(luma_HW)
    laplacian_HW = cv2.Laplacian(luma_HW, cv2.CV_16S, ksize=1, borderType=cv2.BORDER_REFLECT_101)
    _, sharpness = _spread(laplacian_HW)
    counts = np.bincount(luma_HW.reshape(-1), minlength=256)
    flat = np.convolve(counts, np.ones(LEVELS, np.int64)).max()
    return PictureFacts(
        width=width,
        height=height,
        sharpness=sharpness**2,
        brightness=mean / 255,
        contrast=deviation / 255,
        flatness=float(flat) / luma_HW.size,
    )


def at_one_size(luma_HW: np.ndarray) -> np.ndarray:
    """The picture with its longer side at `SIDE` pixels; the shorter one has at least one."""
    height, width = luma_HW.shape
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return luma_HW
    return cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of small integers, from exact sums."""
    wide = values.astype(np.int64)
    n, total, squares = wide.size, int(wide.sum()), int((wide * wide).sum())
    return total / n, float(np.sqrt((n * squares - total * total) / (n * n)))
