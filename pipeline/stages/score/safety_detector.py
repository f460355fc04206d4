"""What kind `safety` does in a worker without a head: NudeNet's 320n (github.com/notAI-tech/NudeNet).

It finds parts of bodies in a picture, covered or not. The score is the highest among the classes of
`EXPLICIT`, 0 where it finds none; labels and scores are those of the package's own `NudeDetector`. Here
pictures are decoded in threads, with the checks of the other kinds (transparent parts are white), and go
through the network in batches.

Shapes: B pictures of a batch, H and W pixels, P places at which the network looks for something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime

from models.images import CorruptImageError, decode_array
from pipeline.errors import ConfigError
from pipeline.pictures import NO_PICTURE, UNDECODABLE, Row, prepared
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.kind import Judgement

#: the network's classes, in the order of its outputs
CLASSES = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)
#: those that make a picture unsafe. Bare feet, bellies, armpits and men's breasts do not
EXPLICIT = frozenset(
    {
        "FEMALE_BREAST_EXPOSED",
        "FEMALE_GENITALIA_EXPOSED",
        "MALE_GENITALIA_EXPOSED",
        "BUTTOCKS_EXPOSED",
        "ANUS_EXPOSED",
    }
)
#: pixels of a side that the network was trained on
SIDE = 320
#: pictures that the network sees at once; more bring nothing on a CPU
BATCH = 16
#: batches that are being decoded ahead of the one that is computed
AHEAD = 2
#: the package's thresholds: a place counts, a box is kept, two boxes are one
LEAST, KEPT, OVERLAP = 0.2, 0.25, 0.45


class Prepared(NamedTuple):
    """image_HWC: uint8 [SIDE, SIDE, 3], the picture in its top left corner; then its own size in pixels."""

    image_HWC: np.ndarray
    width: int
    height: int


class DetectorJudge:
    """Holds the network; used by one thread."""

    def __init__(self, config: ScoreConfig, weights: Path) -> None:
        """Raises ConfigError when a GPU is asked for that onnxruntime cannot use."""
        self.threads = config.decode_threads
        options = onnxruntime.SessionOptions()
        # a fixed number of threads: the order of additions, and so the last bit, follows from it
        options.intra_op_num_threads = max(1, int(config.cpus))
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        self.session = onnxruntime.InferenceSession(weights, options, providers=_providers(config.device))
        if config.device == "cuda" and self.session.get_providers()[0] != "CUDAExecutionProvider":
            raise ConfigError("device 'cuda': onnxruntime finds no GPU that it can use; take --device cpu")
        self.input = self.session.get_inputs()[0].name
        self.name = f"nudenet {version('nudenet')} {weights.stem}"

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        """As `Judge.judge`. Batches are cut after every `BATCH` pictures that can be decoded."""
        batch: list[Prepared] = []
        waiting: list[tuple[str, str | None]] = []  # (key, reason) in order; no reason: a place in the batch
        for row, found in prepared(rows, _prepare, threads=self.threads, ahead=AHEAD * BATCH):
            if isinstance(found, str):
                waiting.append((row.key, found))
                continue
            batch.append(found)
            waiting.append((row.key, None))
            if len(batch) == BATCH:
                yield from self._filled(waiting, batch)
                batch, waiting = [], []
        yield from self._filled(waiting, batch)

    def _filled(self, waiting: list[tuple[str, str | None]], batch: list[Prepared]) -> Iterator[Judgement]:
        found = iter(self.detect(batch))
        for key, reason in waiting:
            yield Judgement(key, None, reason) if reason else Judgement(key, summary(next(found)))

    def detect(self, batch: list[Prepared]) -> list[dict[str, float]]:
        """For each picture the classes that are found, with their highest score."""
        if not batch:
            return []
        image_BHWC = np.stack([p.image_HWC for p in batch])
        image_BCHW = np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2)).astype(np.float32)
        (found_BCP,) = self.session.run(None, {self.input: image_BCHW * np.float32(1 / 255)})
        return [_detections(f.T, p) for f, p in zip(found_BCP, batch, strict=True)]


def _providers(device: str) -> list[str]:
    known: list[str] = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in known:
        raise ConfigError(
            "device 'cuda': this onnxruntime has no CUDA; pip install onnxruntime-gpu in its place, or take "
            "--device cpu"
        )
    gpu = device != "cpu" and "CUDAExecutionProvider" in known
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if gpu else ["CPUExecutionProvider"]


def summary(found: dict[str, float]) -> tuple[float, str | None]:
    """The highest score of an explicit class, and all classes in order of the alphabet."""
    unsafe = max((score for name, score in found.items() if name in EXPLICIT), default=0.0)
    return unsafe, ",".join(sorted(found)) or None


def _prepare(row: Row) -> Prepared | str:
    if row.picture is None:
        return NO_PICTURE
    try:
        return prepare(decode_array(row.picture))
    except CorruptImageError:
        return UNDECODABLE


def prepare(image_HWC: np.ndarray) -> Prepared:
    """uint8 RGB of any size -> what the network sees: enlarged or reduced to `SIDE` on its longer side, black
    to its right or below, the colours in the order in which the package feeds them (BGR).

    The package lays the picture on a black square of its longer side first, which for 30,000 x 2,000 pixels
    takes 2.7 GB. Here only as much of the black is laid on as the interpolation at the edge looks at.
    """
    height, width = image_HWC.shape[:2]
    longer = max(height, width)
    edge = 2 * math.ceil(longer / SIDE) + 2
    below, right = min(edge, longer - height), min(edge, longer - width)
    laid_HWC = cv2.copyMakeBorder(
        image_HWC[..., ::-1], 0, below, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )
    scale = SIDE / longer
    small_HWC = cv2.resize(laid_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)[:SIDE, :SIDE]
    canvas_HWC = np.zeros((SIDE, SIDE, 3), np.uint8)
    canvas_HWC[: small_HWC.shape[0], : small_HWC.shape[1]] = small_HWC
    return Prepared(canvas_HWC, width, height)


def _detections(places_PC: np.ndarray, picture: Prepared) -> dict[str, float]:
    """The network's answer for one picture (a box's middle and size, then a score a class) as classes and
    scores: the best class of each place, boxes cut at the picture's edges, the lesser of two that overlap
    left out whatever their classes, as the package does."""
    scores_P = places_PC[:, 4:].max(axis=1)
    places_PC, scores_P = places_PC[scores_P >= LEAST], scores_P[scores_P >= LEAST]
    classes_P = places_PC[:, 4:].argmax(axis=1)
    boxes = _boxes(places_PC[:, :4], picture)
    found: dict[str, float] = {}
    for at in cv2.dnn.NMSBoxes(boxes, scores_P.tolist(), KEPT, OVERLAP):
        name, score = CLASSES[classes_P[at]], float(scores_P[at])
        found[name] = max(found.get(name, 0.0), score)
    return found


def _boxes(boxes_P4: np.ndarray, picture: Prepared) -> list[Any]:
    """Left, top, width, height in pixels of the picture."""
    scale = max(picture.width, picture.height) / SIDE
    middle_P2, size_P2 = boxes_P4[:, :2], boxes_P4[:, 2:]
    limit = np.array([picture.width, picture.height], np.float32)
    corner_P2 = np.clip((middle_P2 - size_P2 / 2) * np.float32(scale), 0, limit)
    size_P2 = np.minimum(size_P2 * np.float32(scale), limit - corner_P2)
    return np.concatenate([corner_P2, size_P2], axis=1).tolist()
