"""The options of score, shared by all kinds. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.settings import location, operational, since
from pipeline.stages.score.clip import ClipOptions
from pipeline.stages.score.embedding import EmbeddingOptions
from pipeline.stages.score.safety import SafetyOptions


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is judged, and how.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset); for kinds that need no
            picture also a candidates folder.
        kind: what is judged: `clip`, the cosine of picture and caption; `embedding`, what a model makes of
            both; `language`, the caption's language; `quality`, measures that need no model; `safety`, what
            a detector or a head says of the picture.
        columns: column folders over the same input, whose columns `where` may name.
        where: judge only rows for which this SQL expression is true, such as `duplicate_of IS NULL`; the
            others have null.
        model: an open_clip model name, or the `model/` folder of a finished training.
        pretrained: with an open_clip name: a pretrained tag, or a local checkpoint.
        name: the column's name, so that several models can stand side by side; null takes the kind's own,
            `clip_score` or `language`; columns beside it follow.
        batch_size: pictures that the model sees at once.
        precision: `fp32` or `bf16`.
        device: `auto`, `cpu` or `cuda`; `auto` is a GPU when one is there.
        cpus: CPUs of a worker; the model computes with as many threads.
        gpus: GPUs of a worker: 1, or a part such as 0.5 where several workers share one.
        decode_threads: threads that decode pictures beside the computing.
        clip: options of kind clip.
        embedding: options of kind embedding.
        safety: options of kind safety.
    """

    input: str = location("")
    kind: str = "clip"
    columns: list[str] | str = location(factory=list)
    where: str | None = since(None)
    # where the model lies; its content is an input of every unit
    model: str = location("")
    pretrained: str | None = operational(None)
    name: str | None = None
    batch_size: int = 64
    precision: str = "fp32"
    device: str = operational("auto")
    cpus: float = operational(1.0)
    gpus: float = operational(0.0)
    decode_threads: int = operational(2)
    clip: ClipOptions = since(ClipOptions())
    embedding: EmbeddingOptions = since(EmbeddingOptions())
    safety: SafetyOptions = since(SafetyOptions())
