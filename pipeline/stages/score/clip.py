"""Kind `clip`: the cosine between a picture and its caption, by any model of `models.inference.clip`.

Pictures are decoded in threads while the model computes. Shapes: B pictures of a batch, C channels, H and W
pixels, E dimensions of the joint space.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

from models.images import CorruptImageError, decode
from models.inference.clip import ClipScorer, load_clip
from pipeline.errors import ConfigError
from pipeline.stages.score.stage import NO_CAPTION, NO_PICTURE, UNDECODABLE, Candidate, ScoreConfig

#: batches that are being decoded ahead of the one that is computed
AHEAD = 2
#: open_clip brings the shorter side to the model's size: a line of pixels would become gigabytes
MAX_ASPECT = 100

Scored = tuple[str, float | None, str | None]


class ClipKind:
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

    def score(self, candidates: Iterator[Candidate]) -> Iterator[Scored]:
        """As `Scorer.score`. Batches are cut after every `batch_size` pictures that can be scored."""
        batch: list[tuple[Candidate, Tensor]] = []
        waiting: list[Scored] = []  # in order, scores of the batch to be filled in
        with ThreadPoolExecutor(self.config.decode_threads) as pool:
            for candidate, prepared in self._prepared(candidates, pool):
                if isinstance(prepared, str):
                    waiting.append((candidate.key, None, prepared))
                    continue
                batch.append((candidate, prepared))
                waiting.append((candidate.key, None, None))
                if len(batch) == self.config.batch_size:
                    yield from self._filled(waiting, batch)
                    batch, waiting = [], []
        yield from self._filled(waiting, batch)

    def _prepared(
        self, candidates: Iterator[Candidate], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Candidate, Tensor | str]]:
        """Each candidate with its picture as float32 [C, H, W], or with the reason why it has none."""
        under_way: deque[tuple[Candidate, Future[Tensor | str]]] = deque()
        for candidate in candidates:
            under_way.append((candidate, pool.submit(self._prepare, candidate)))
            if len(under_way) > AHEAD * self.config.batch_size:
                done, future = under_way.popleft()
                yield done, future.result()
        for candidate, future in under_way:
            yield candidate, future.result()

    def _prepare(self, candidate: Candidate) -> Tensor | str:
        if candidate.picture is None:
            return NO_PICTURE
        if not candidate.caption.strip():
            return NO_CAPTION
        try:
            image = decode(candidate.picture)
        except CorruptImageError:
            return UNDECODABLE
        if max(image.size) > MAX_ASPECT * min(image.size):
            return UNDECODABLE
        return self.scorer.preprocess(image)

    def _filled(self, waiting: list[Scored], batch: list[tuple[Candidate, Tensor]]) -> Iterator[Scored]:
        scores = iter(self._cosines(batch))
        for key, _, reason in waiting:
            yield key, None if reason else next(scores), reason

    def _cosines(self, batch: list[tuple[Candidate, Tensor]]) -> list[float]:
        if not batch:
            return []
        image_BCHW = torch.stack([picture for _, picture in batch])
        texts = [candidate.caption for candidate, _ in batch]
        low = self.config.precision == "bf16"
        with torch.autocast(self.scorer.device.type, torch.bfloat16) if low else nullcontext():
            image_BE, text_BE = self.scorer.encode_images(image_BCHW), self.scorer.encode_texts(texts)
        return (image_BE * text_BE).sum(dim=1).tolist()
