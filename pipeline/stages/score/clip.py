"""Kind `clip`: the cosine between a picture and its caption, by any model of `models.inference.clip`.

    pairmill score --kind clip --model runs/scorer/model --input images --output columns/clip
    pairmill score --model ViT-B-32 --pretrained laion2b_s34b_b79k --name clip_b32 ...
    pairmill score --model ViT-B-32 --pretrained openai --columns columns/language \
                   --clip.multilingual xlm-roberta-base-ViT-B-32 \
                   --clip.multilingual_pretrained laion5b_s13b_b90k

The last one routes by language, as LAION-5B (arXiv:2210.08402) does: English captions are judged by one
model, all others, and those without a language, by a multilingual one. Whose score it is stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.settings import location, operational
from pipeline.stage import Input
from pipeline.stages.score.kind import Judge, Kind
from pipeline.weights import model_fingerprint

if TYPE_CHECKING:
    from pipeline.stages.score.config import ScoreConfig

PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
#: the options of all kinds that encode pictures or captions with such a model
ENCODER = frozenset({"model", "pretrained", "batch_size", "precision", "device", "gpus", "decode_threads"})
#: values of the column that names the model
ENGLISH, MULTILINGUAL = "english", "multilingual"


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Which model judges which caption.

    Attributes:
        multilingual: a second model, for captions that are not English; as `model`. Empty: `model` judges
            all.
        multilingual_pretrained: its tag or checkpoint; as `pretrained`.
        language_column: the column of the input, or of `columns`, that names a caption's language.
        english: the languages of `model`, as that column has them; all others, and null, go to
            `multilingual`.
    """

    # where the model lies; its content is an input of every unit
    multilingual: str = location("")
    multilingual_pretrained: str | None = operational(None)
    language_column: str = "language"
    english: tuple[str, ...] = ("en",)


class Clip(Kind):
    """The cosine, float32; routed by language also the model whose it is."""

    column = "clip_score"
    pictures = True
    options = ENCODER | {"clip"}

    def check(self, config: ScoreConfig) -> None:
        check_encoder(config)
        for field in dataclasses.fields(ClipOptions):
            value = getattr(config.clip, field.name)
            if not config.clip.multilingual and value != field.default:
                raise ConfigError(
                    f"clip.{field.name} {value!r} means nothing without --clip.multilingual, the model for "
                    "captions that are not English; give it, or leave this away"
                )

    def needs(self, config: ScoreConfig) -> tuple[str, ...]:
        return (config.clip.language_column,) if config.clip.multilingual else ()

    def schema(self, name: str) -> pa.Schema:
        return pa.schema([(name, pa.float32())])

    def columns(self, name: str, config: ScoreConfig, judge: Judge | None = None) -> pa.Schema:
        schema = self.schema(name)
        return schema.append(pa.field(f"{name}_model", pa.string())) if config.clip.multilingual else schema

    def notes(self, judge: Any) -> dict[str, Any]:
        return {**super().notes(judge), **judge.computed}

    def inputs(self, config: ScoreConfig) -> tuple[Input, ...]:
        found = []
        for role, (model, pretrained) in models_of(config).items():
            try:
                mark = model_fingerprint(model, pretrained)
            except ConfigError as error:
                raise ConfigError(
                    f"clip.multilingual: {error}" if role == MULTILINGUAL else str(error)
                ) from error
            found.append(Input(url=model, fingerprint=mark))
        return tuple(found)

    def load(self, config: ScoreConfig) -> Judge:
        # torch is slow to import, and only workers need it
        from pipeline.stages.score.clip_scorer import ClipJudge

        return ClipJudge(config)


def check_encoder(config: ScoreConfig) -> None:
    """Raises ConfigError for values of the `ENCODER` options that no worker could start with."""
    for field, allowed in (("precision", PRECISIONS), ("device", DEVICES)):
        value = getattr(config, field)
        if value not in allowed:
            raise ConfigError(f"{field} {value!r} must be one of {', '.join(allowed)}")
    if config.batch_size < 1 or config.decode_threads < 1:
        raise ConfigError("batch_size and decode_threads must be at least 1")


def models_of(config: ScoreConfig) -> Mapping[str, tuple[str, str | None]]:
    """(model, pretrained) of each model that judges."""
    english = {ENGLISH: (config.model, config.pretrained)}
    if not config.clip.multilingual:
        return english
    return {**english, MULTILINGUAL: (config.clip.multilingual, config.clip.multilingual_pretrained)}
