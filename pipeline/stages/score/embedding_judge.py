"""What kind `embedding` does in a worker: pictures through one tower of a model, captions through the other,
each in batches of its own (`lanes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.pictures import prepared
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.embedding import IMAGE, TEXT
from pipeline.stages.score.encoder import Encoder, computed, use_threads
from pipeline.stages.score.kind import NO_CAPTION, Judgement, Row
from pipeline.stages.score.lanes import Asked, Lane, judged


class EmbeddingJudge:
    """Holds a loaded model; used by one thread. `size` is the length of its vectors."""

    def __init__(self, config: ScoreConfig) -> None:
        """Raises ConfigError when the model cannot be loaded, or lacks a tower."""
        self.config = config
        threads = use_threads(config)
        self.encoder = Encoder(config.model, config.pretrained, config)
        self.name = self.encoder.name
        self.computed = computed(self.encoder, threads)
        lanes = {
            IMAGE: Lane(self.encoder.pictures, _halves(self.encoder.encode_pictures)),
            TEXT: Lane(self.encoder.texts, _halves(self.encoder.encode_texts)),
        }
        self.lanes = {of: lanes[of] for of in config.embedding.of}
        self.size = self._size()

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        """As `Judge.judge`. Batches are cut after every `batch_size` pictures, or captions."""
        size = self.config.batch_size
        ready = prepared(rows, self._ask, threads=self.config.decode_threads, ahead=size)
        yield from judged(ready, self.lanes, batch_size=size)

    def _ask(self, row: Row) -> Asked:
        return tuple(self._picture(row) if of == IMAGE else self._caption(row) for of in self.lanes)

    def _picture(self, row: Row) -> tuple[str, Any] | str:
        picture = self.encoder.picture(row.picture)
        return picture if isinstance(picture, str) else (IMAGE, picture)

    def _caption(self, row: Row) -> tuple[str, Any] | str:
        return (TEXT, row.caption) if row.caption.strip() else NO_CAPTION

    def _size(self) -> int:
        probe = self.encoder.scorer.preprocess(Image.new("RGB", (64, 64))) if IMAGE in self.lanes else "a"
        lane = self.lanes.get(IMAGE) or self.lanes[TEXT]
        (vector_E,) = lane.start(lane.prepare([probe]))()
        return len(vector_E)


def _halves(
    encode: Callable[[Any], Callable[[], Tensor]],
) -> Callable[[Any], Callable[[], Sequence[np.ndarray]]]:
    def start(batch: Any) -> Callable[[], Sequence[np.ndarray]]:
        features_BE = encode(batch)
        return lambda: list(features_BE().half().numpy())

    return start
