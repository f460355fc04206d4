"""What kind `clip` does in a worker: pictures and captions through a model, a batch at a time.

Pictures are decoded in threads while the model computes. Shapes: B pictures of a batch, C channels, H and W
pixels, E dimensions of the joint space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from models.images import CorruptImageError, decode
from models.inference.clip import ClipScorer, load_clip
from pipeline.errors import ConfigError
from pipeline.stages.score.ahead import prepared
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.kind import NO_CAPTION, NO_PICTURE, UNDECODABLE, Judgement, Row

#: batches that are being decoded ahead of the one that is computed
AHEAD = 2
#: open_clip brings the shorter side to the model's size: a line of pixels would become gigabytes
MAX_ASPECT = 100


class ClipJudge:
    """Holds a loaded model; used by one thread."""

    def __init__(self, config: ScoreConfig) -> None:
        """Raises ConfigError when the model cannot be loaded."""
        self.config = config
        # the order of additions, and so the last bit, follows from the number of threads
        torch.set_num_threads(max(1, int(config.cpus)))
        try:
            self.scorer: ClipScorer = load_clip(
                config.model,
                pretrained=config.pretrained,
                device=None if config.device == "auto" else config.device,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.name = self.scorer.name

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        """As `Judge.judge`. Batches are cut after every `batch_size` pictures that can be scored."""
        batch: list[tuple[Row, Tensor]] = []
        waiting: list[tuple[str, str | None]] = []  # (key, reason) in order; no reason: a place in the batch
        ahead = AHEAD * self.config.batch_size
        for row, found in prepared(rows, self._prepare, threads=self.config.decode_threads, ahead=ahead):
            if isinstance(found, str):
                waiting.append((row.key, found))
                continue
            batch.append((row, found))
            waiting.append((row.key, None))
            if len(batch) == self.config.batch_size:
                yield from self._filled(waiting, batch)
                batch, waiting = [], []
        yield from self._filled(waiting, batch)

    def _prepare(self, row: Row) -> Tensor | str:
        if row.picture is None:
            return NO_PICTURE
        if not row.caption.strip():
            return NO_CAPTION
        try:
            image = decode(row.picture)
        except CorruptImageError:
            return UNDECODABLE
        if max(image.size) > MAX_ASPECT * min(image.size):
            return UNDECODABLE
        return self.scorer.preprocess(image)

    def _filled(
        self, waiting: list[tuple[str, str | None]], batch: list[tuple[Row, Tensor]]
    ) -> Iterator[Judgement]:
        scores = iter(self._cosines(batch))
        for key, reason in waiting:
            yield Judgement(key, None if reason else (next(scores),), reason)

    def _cosines(self, batch: list[tuple[Row, Tensor]]) -> list[float]:
        if not batch:
            return []
        image_BCHW = torch.stack([picture for _, picture in batch])
        texts = [row.caption for row, _ in batch]
        low = self.config.precision == "bf16"
        with torch.autocast(self.scorer.device.type, torch.bfloat16) if low else nullcontext():
            image_BE, text_BE = self.scorer.encode_images(image_BCHW), self.scorer.encode_texts(texts)
        return (image_BE * text_BE).sum(dim=1).tolist()
