"""Kind `clip`: the cosine between a picture and its caption, by any model of `models.inference.clip`.

    pairmill score --kind clip --model runs/scorer/model --input images --output columns/clip
    pairmill score --model ViT-B-32 --pretrained laion2b_s34b_b79k --name clip_b32 ...

Scores of the same model, batch size and device are the same bits from run to run: batches are cut at fixed
places, and a worker computes with a fixed number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.stage import Input
from pipeline.stages.score.kind import Judge, Kind
from pipeline.stages.score.weights import model_fingerprint

if TYPE_CHECKING:
    from pipeline.stages.score.config import ScoreConfig

PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


class Clip(Kind):
    """One column: the cosine, float32."""

    column = "clip_score"
    pictures = True
    options = frozenset(
        {"model", "pretrained", "batch_size", "precision", "device", "gpus", "decode_threads"}
    )

    def check(self, config: ScoreConfig) -> None:
        for field, allowed in (("precision", PRECISIONS), ("device", DEVICES)):
            value = getattr(config, field)
            if value not in allowed:
                raise ConfigError(f"{field} {value!r} must be one of {', '.join(allowed)}")
        if config.batch_size < 1 or config.decode_threads < 1:
            raise ConfigError("batch_size and decode_threads must be at least 1")

    def schema(self, name: str) -> pa.Schema:
        return pa.schema([(name, pa.float32())])

    def inputs(self, config: ScoreConfig) -> tuple[Input, ...]:
        mark = model_fingerprint(config.model, config.pretrained)
        return (Input(url=config.model, fingerprint=mark),)

    def load(self, config: ScoreConfig) -> Judge:
        # torch is slow to import, and only workers need it
        from pipeline.stages.score.clip_scorer import ClipJudge

        return ClipJudge(config)
