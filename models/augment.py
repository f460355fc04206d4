"""RandAugment as ALBEF and BLIP use it: without operations on colours, since captions name them.

`ops` operations are drawn with replacement, each is done with probability 1/2 at a fixed magnitude (of 10);
the geometric ones to either side. ALBEF pre-trains with (2, 7), BLIP with (2, 5). Magnitudes, centres and the
grey of the border are those of their code (OpenCV's affine transforms; shears keep the first row or column
in place, shifts are in pixels whatever the size).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from models.draws import Draws

MAX_MAGNITUDE = 10
PROBABILITY = 0.5
BORDER = (128, 128, 128)
#: at the highest magnitude: a shear's slope, a shift in pixels, a turn in degrees
SHEAR, SHIFT, TURN = 0.3, 10.0, 30.0


def rand_augment(image_HWC: np.ndarray, draws: Draws, *, ops: int, magnitude: int) -> np.ndarray:
    """uint8 RGB in and out, of the same size.

    Always three draws an operation, so that what one does moves no other.
    """
    for _ in range(ops):
        name = NAMES[draws.below(len(NAMES))]
        skipped, negative = draws.random() >= PROBABILITY, draws.random() < 0.5
        if not skipped:
            image_HWC = apply(name, image_HWC, magnitude=magnitude, negative=negative)
    return image_HWC


def apply(name: str, image_HWC: np.ndarray, *, magnitude: int, negative: bool = False) -> np.ndarray:
    """One operation. `negative` turns the direction of the geometric ones."""
    level = magnitude / MAX_MAGNITUDE
    if name in _GEOMETRIC:
        return _GEOMETRIC[name](image_HWC, -level if negative else level)
    return _TONAL[name](image_HWC, level)


def _identity(image_HWC: np.ndarray, level: float) -> np.ndarray:
    return image_HWC


def _auto_contrast(image_HWC: np.ndarray, level: float) -> np.ndarray:
    """Each channel stretched to 0..255; a channel of one value stays."""
    bounds = [cv2.minMaxLoc(cv2.extractChannel(image_HWC, channel))[:2] for channel in range(3)]
    low_C, high_C = np.array(bounds).T
    span_C = high_C - low_C
    scale_C = 255 / np.where(span_C > 0, span_C, 1)
    table = np.arange(256)[:, None] * scale_C - low_C * scale_C
    table = np.where(span_C > 0, np.clip(table, 0, 255), np.arange(256)[:, None])
    return _look_up(image_HWC, table)


def _equalize(image_HWC: np.ndarray, level: float) -> np.ndarray:
    """Each channel's histogram made flat, in Pillow's integer arithmetic."""
    table = np.empty((256, 3))
    for channel in range(3):
        counts = cv2.calcHist([image_HWC], [channel], None, [256], [0, 256])[:, 0].astype(np.int64)
        present = counts[counts > 0]
        step = int(present[:-1].sum()) // 255
        if step == 0:
            table[:, channel] = np.arange(256)
            continue
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        table[:, channel] = np.clip((step // 2 + below) // step, 0, 255)
    return _look_up(image_HWC, table)


def _brightness(image_HWC: np.ndarray, level: float) -> np.ndarray:
    table = np.clip(np.arange(256) * _enhancement(level), 0, 255)
    return cv2.LUT(image_HWC, table.astype(np.uint8))


def _sharpness(image_HWC: np.ndarray, level: float) -> np.ndarray:
    """Away from the smoothed picture; the outermost pixels have no neighbours and stay."""
    factor = _enhancement(level)
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(image_HWC, -1, kernel / 13)
    out = image_HWC.copy()
    inner = (slice(1, -1), slice(1, -1))
    out[inner] = cv2.addWeighted(image_HWC, factor, smooth, 1 - factor, 0)[inner]
    return out


def _shear_x(image_HWC: np.ndarray, level: float) -> np.ndarray:
    return _affine(image_HWC, [[1, level * SHEAR, 0], [0, 1, 0]])


def _shear_y(image_HWC: np.ndarray, level: float) -> np.ndarray:
    return _affine(image_HWC, [[1, 0, 0], [level * SHEAR, 1, 0]])


def _translate_x(image_HWC: np.ndarray, level: float) -> np.ndarray:
    return _affine(image_HWC, [[1, 0, -level * SHIFT], [0, 1, 0]])


def _translate_y(image_HWC: np.ndarray, level: float) -> np.ndarray:
    return _affine(image_HWC, [[1, 0, 0], [0, 1, -level * SHIFT]])


def _rotate(image_HWC: np.ndarray, level: float) -> np.ndarray:
    """Counter-clockwise about the middle."""
    x, y = image_HWC.shape[1] / 2, image_HWC.shape[0] / 2
    cos, sin = math.cos(math.radians(level * TURN)), math.sin(math.radians(level * TURN))
    return _affine(image_HWC, [[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])


def _affine(image_HWC: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Where each pixel goes, (x, y) of its centre counted from the centre of the first."""
    height, width = image_HWC.shape[:2]
    return cv2.warpAffine(
        image_HWC, np.array(matrix, np.float64), (width, height), flags=cv2.INTER_LINEAR, borderValue=BORDER
    )


def _look_up(image_HWC: np.ndarray, table_VC: np.ndarray) -> np.ndarray:
    return cv2.LUT(image_HWC, table_VC.astype(np.uint8)[None])


def _enhancement(level: float) -> float:
    """0.1 to 1.9; 1 changes nothing."""
    return 0.1 + 1.8 * level


_Operation = Callable[[np.ndarray, float], np.ndarray]
_TONAL: dict[str, _Operation] = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
_GEOMETRIC: dict[str, _Operation] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}
NAMES = (*_TONAL, *_GEOMETRIC)
