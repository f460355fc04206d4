"""What kind `quality` does in a worker: pictures decoded and measured in threads, beside their captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import cv2

from models.images import CorruptImageError, decode_array
from pipeline.pictures import NO_PICTURE, UNDECODABLE, Row, prepared
from pipeline.rules import count_words
from pipeline.stages.score.config import ScoreConfig
from pipeline.stages.score.kind import Judgement
from pipeline.stages.score.quality_picture import PictureFacts, picture_facts
from pipeline.stages.score.text_boilerplate import boilerplate
from pipeline.stages.score.text_repetition import repeated_runs, repeated_words, tokens

#: pictures that wait for a thread or are measured at a time, for each thread
AHEAD = 4


class QualityJudge:
    """Measures; used by one thread, which has others decode."""

    name = "measures"

    def __init__(self, config: ScoreConfig) -> None:
        self.threads = config.decode_threads
        cv2.setNumThreads(1)  # pictures are measured side by side

    def judge(self, rows: Iterable[Row]) -> Iterator[Judgement]:
        """As `Judge.judge`; every row has a judgement, be it of its caption alone."""
        ahead = AHEAD * self.threads
        for row, picture in prepared(rows, _of_picture, threads=self.threads, ahead=ahead):
            yield Judgement(row.key, (*picture, *_of_caption(row.caption)))


def _of_picture(row: Row) -> tuple[Any, ...]:
    """side, aspect, sharpness, brightness, contrast, flatness, error. The size is that of the picture before
    the crawl, where the row tells it."""
    facts, error = _measured(row.picture)
    width, height = (row.values.get(f"original_{side}") for side in ("width", "height"))
    if not width or not height:
        width, height = (facts.width, facts.height) if facts else (None, None)
    size = (min(width, height), max(width, height) / min(width, height)) if width and height else (None, None)
    if facts is None:
        return (*size, None, None, None, None, error)
    return (*size, facts.sharpness, facts.brightness, facts.contrast, facts.flatness, None)


def _measured(picture: bytes | None) -> tuple[PictureFacts | None, str | None]:
    if picture is None:
        return None, NO_PICTURE
    try:
        return picture_facts(decode_array(picture)), None
    except CorruptImageError:
        return None, UNDECODABLE


def _of_caption(text: str) -> tuple[Any, ...]:
    """chars, words, repeated_words, repeated_runs, boilerplate, boilerplate_reason."""
    words = tokens(text)
    reason = boilerplate(text)
    again = (repeated_words(words), repeated_runs(words))
    return (len(text), count_words(text), *again, reason is not None, reason)
