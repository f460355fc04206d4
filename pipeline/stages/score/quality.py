"""Kind `quality`: what can be said of a picture and its caption without a model.

    pairmill score --kind quality --input images --output columns/quality
    pairmill pack  --input images --columns columns/quality --output shards \
                   --where "quality_sharpness >= 50 AND quality_flatness < 0.9 AND NOT quality_boilerplate"

Nothing is judged good or bad here: the columns are measures, and docs/columns.md says what their values
mean. A row whose picture is missing or damaged has the columns of its caption, and `quality_picture_error`
says why the others are null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.stages.score.kind import Judge, Kind

if TYPE_CHECKING:
    from pipeline.stages.score.config import ScoreConfig

#: the columns after their prefix: of the picture, then of the caption
COLUMNS = {
    "side": pa.int32(),
    "aspect": pa.float32(),
    "sharpness": pa.float32(),
    "brightness": pa.float32(),
    "contrast": pa.float32(),
    "flatness": pa.float32(),
    "picture_error": pa.string(),
    "chars": pa.int32(),
    "words": pa.int32(),
    "repeated_words": pa.float32(),
    "repeated_runs": pa.float32(),
    "boilerplate": pa.bool_(),
    "boilerplate_reason": pa.string(),
}


class Quality(Kind):
    """All measures of `COLUMNS`, each behind `NAME_`."""

    column = "quality"
    pictures = True
    options = frozenset({"decode_threads"})
    uses = ("original_width", "original_height")

    def check(self, config: ScoreConfig) -> None:
        if config.decode_threads < 1:
            raise ConfigError(f"decode_threads {config.decode_threads} must be at least 1")

    def schema(self, name: str) -> pa.Schema:
        return pa.schema([(f"{name}_{column}", kind) for column, kind in COLUMNS.items()])

    def load(self, config: ScoreConfig) -> Judge:
        # pictures are decoded by code that imports torch
        from pipeline.stages.score.quality_judge import QualityJudge

        return QualityJudge(config)
