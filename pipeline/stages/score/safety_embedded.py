"""What kind `safety` does in a worker with a head: stored embeddings through its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.pictures import Row
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.kind import Judgement
from pipeline.stages.score.safety_head import read_head

#: rows computed at once
BATCH = 1024
#: why a row has no score: it has no embedding, or one with NaN or infinity
NO_EMBEDDING, NOT_FINITE = "no_embedding", "not_finite"


class HeadJudge:
    """Holds a head; used by one thread."""

    def __init__(self, config: ScoreConfig) -> None:
        """Raises ConfigError when the head cannot be read."""
        self.options = config.safety
        self.head = read_head(self.options.head)
        self.name = storage.basename(self.options.head)

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        """As `Judge.judge`.

        Raises:
            ConfigError: an embedding has another width than the head.
        """
        batch: list[tuple[str, np.ndarray | None]] = []
        for row in rows:
            batch.append((row.key, self._vector(row)))
            if len(batch) == BATCH:
                yield from self._judged(batch)
                batch = []
        yield from self._judged(batch)

    def _vector(self, row: Row) -> np.ndarray | None:
        value = row.values[self.options.column]
        if value is None:
            return None
        vector = np.asarray(value, np.float32)
        if vector.shape != (self.head.width,):
            raise ConfigError(
                f"safety.head {self.options.head!r} reads embeddings of {self.head.width} dimensions, column "
                f"{self.options.column!r} has {vector.size} in row {row.key}; give the embeddings of the "
                "model that it was trained on"
            )
        return vector

    def _judged(self, batch: list[tuple[str, np.ndarray | None]]) -> Iterator[Judgement]:
        there = [vector for _, vector in batch if vector is not None]
        scores: list[float] = []
        if there:
            scores = self.head(np.stack(there), activation=self.options.activation).tolist()
        following = iter(scores)
        for key, vector in batch:
            if vector is None:
                yield Judgement(key, None, NO_EMBEDDING)
                continue
            score = next(following)
            yield Judgement(key, (score,)) if math.isfinite(score) else Judgement(key, None, NOT_FINITE)
