"""What kind `clip` does in a worker: pictures and captions through one model, or through the one of the
caption's language, a batch at a time (`lanes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from models.inference.clip import Tokens
from pipeline.pictures import prepared
from pipeline.stages.score.clip import ENGLISH, MULTILINGUAL, models_of
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.encoder import Encoder, computed, use_threads
from pipeline.stages.score.kind import NO_CAPTION, NO_PICTURE, Judgement, Row
from pipeline.stages.score.lanes import Asked, Lane, judged


class ClipJudge:
    """Holds the loaded models; used by one thread."""

    def __init__(self, config: ScoreConfig) -> None:
        """Raises ConfigError when a model cannot be loaded."""
        self.config = config
        threads = use_threads(config)
        self.encoders = {
            role: Encoder(model, pretrained, config)
            for role, (model, pretrained) in models_of(config).items()
        }
        self.name = ", ".join(encoder.name for encoder in self.encoders.values())
        self.computed = computed(self.encoders[ENGLISH], threads)

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        """As `Judge.judge`. A model's batches are cut after every `batch_size` pictures that it can score."""
        size, routed = self.config.batch_size, bool(self.config.clip.multilingual)
        ready = prepared(rows, self._ask, threads=self.config.decode_threads, ahead=size)
        lanes = {
            role: Lane(partial(_batch, encoder), partial(_cosines, encoder, (role,) if routed else ()))
            for role, encoder in self.encoders.items()
        }
        for key, answers, reason in judged(ready, lanes, batch_size=size):
            yield Judgement(key, answers[0] if answers else None, reason)

    def _ask(self, row: Row) -> Asked:
        if row.picture is None:
            return (NO_PICTURE,)
        if not row.caption.strip():
            return (NO_CAPTION,)
        role = self._role(row)
        picture = self.encoders[role].picture(row.picture)
        return (picture if isinstance(picture, str) else (role, (picture, row.caption)),)

    def _role(self, row: Row) -> str:
        clip = self.config.clip
        if not clip.multilingual or row.values[clip.language_column] in clip.english:
            return ENGLISH
        return MULTILINGUAL


def _batch(encoder: Encoder, pieces: list[tuple[Tensor, str]]) -> tuple[Tensor, list[Tokens]]:
    return encoder.pictures([picture for picture, _ in pieces]), encoder.texts([text for _, text in pieces])


def _cosines(
    encoder: Encoder, said: tuple[str, ...], batch: tuple[Tensor, list[Tokens]]
) -> Callable[[], list[Any]]:
    """`said`: what stands beside each score."""
    image_BE, text_BE = encoder.encode_pictures(batch[0]), encoder.encode_texts(batch[1])
    return lambda: [(score, *said) for score in (image_BE() * text_BE()).sum(dim=1).tolist()]
