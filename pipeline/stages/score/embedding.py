"""Kind `embedding`: what a model of `models.inference.clip` makes of a picture and of its caption.

    pairmill score --kind embedding --model ViT-B-32 --pretrained laion2b_s34b_b79k \
                   --input images --output columns/embedding
    pairmill score --kind embedding --embedding.of '[image]' --name b32 ...     (column image_b32)

Unit vectors, so the inner product of two is their cosine; float16, which costs 2 bytes a dimension and
changes a cosine by 1e-5 on average. `pipeline.embeddings` reads them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.stage import Input
from pipeline.stages.score.clip import ENCODER, check_encoder
from pipeline.stages.score.kind import Judge, Kind
from pipeline.weights import model_fingerprint

if TYPE_CHECKING:
    from pipeline.stages.score.config import ScoreConfig

IMAGE, TEXT = "image", "text"


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """What is embedded.

    Attributes:
        of: `image`, `text` or both; a column each, in this order.
    """

    of: tuple[str, ...] = (IMAGE, TEXT)


class Embedding(Kind):
    """Lists of float16, of one length. A row has what can be made of it: a picture without a caption has its
    own, and a caption without a picture."""

    column = "embedding"
    pictures = True
    options = ENCODER | {"embedding"}

    def check(self, config: ScoreConfig) -> None:
        check_encoder(config)
        of = config.embedding.of
        if not of or len(set(of)) != len(of) or not set(of) <= {IMAGE, TEXT}:
            raise ConfigError(f"embedding.of {list(of)} must be [image], [text] or [image,text]")

    def schema(self, name: str) -> pa.Schema:
        return pa.schema([(f"{of}_{name}", pa.list_(pa.float16())) for of in (IMAGE, TEXT)])

    def columns(self, name: str, config: ScoreConfig, judge: Any = None) -> pa.Schema:
        kind = pa.list_(pa.float16(), -1 if judge is None else judge.size)
        return pa.schema([(f"{of}_{name}", kind) for of in config.embedding.of])

    def notes(self, judge: Any) -> dict[str, Any]:
        return {**super().notes(judge), **judge.computed}

    def inputs(self, config: ScoreConfig) -> tuple[Input, ...]:
        mark = model_fingerprint(config.model, config.pretrained)
        return (Input(url=config.model, fingerprint=mark),)

    def load(self, config: ScoreConfig) -> Judge:
        from pipeline.stages.score.embedding_judge import EmbeddingJudge

        return EmbeddingJudge(config)
