"""The score stage: one row for every success of an image shard, with what a model says of it.

    pairmill score --kind clip --model runs/scorer/model --input images --output columns/clip
    pairmill score --model ViT-B-32 --pretrained laion2b_s34b_b79k --name clip_b32 ...

A picture that cannot be judged has a null score and is counted by reason; it fails nothing. Scores of
the same model, batch size and device are the same bits from run to run: batches are cut at fixed places, and
a worker computes with a fixed number of threads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns, inputs
from pipeline.errors import ConfigError
from pipeline.settings import location, operational
from pipeline.shards.format import is_image
from pipeline.shards.reader import iter_samples
from pipeline.stage import Counts, Input, Output, Resources, Stage, Unit
from pipeline.stages.score.weights import model_fingerprint

PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")

#: why a success has no score
NO_PICTURE, UNDECODABLE, NO_CAPTION = "missing_in_shard", "undecodable", "no_caption"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is scored, with which model.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset).
        kind: what is judged: `clip`, the cosine of picture and caption.
        model: an open_clip model name, or the `model/` folder of a finished training.
        pretrained: with an open_clip name: a pretrained tag, or a local checkpoint.
        name: the column's name, so that several models can stand side by side.
        batch_size: pictures that the model sees at once.
        precision: `fp32` or `bf16`.
        device: `auto`, `cpu` or `cuda`; `auto` is a GPU when one is there.
        cpus: CPUs of a worker; the model computes with as many threads.
        gpus: GPUs of a worker: 1, or a part such as 0.5 where several workers share one.
        decode_threads: threads that decode pictures beside the computing.
    """

    input: str = location("")
    kind: str = "clip"
    # where the model lies; its content is an input of every unit
    model: str = location("")
    pretrained: str | None = operational(None)
    name: str = "clip_score"
    batch_size: int = 64
    precision: str = "fp32"
    device: str = operational("auto")
    cpus: float = operational(1.0)
    gpus: float = operational(0.0)
    decode_threads: int = operational(2)


@dataclass(frozen=True)
class Candidate:
    """One success: its key, the bytes of its picture (None where the tar has none), and its caption."""

    key: str
    picture: bytes | None
    caption: str


class Scorer(Protocol):
    """One kind of judgement, loaded."""

    name: str

    def score(self, candidates: Iterator[Candidate]) -> Iterator[tuple[str, float | None, str | None]]:
        """(key, score or None, why there is none) of each candidate, in their order."""
        ...


def _clip(config: ScoreConfig) -> Scorer:
    # torch is slow to import, and only workers need it
    from pipeline.stages.score.clip import ClipKind

    return ClipKind(config)


KINDS: dict[str, Callable[[ScoreConfig], Scorer]] = {"clip": _clip}


class ScoreStage(Stage):
    """Image shard -> column of scores."""

    name = "score"

    def __init__(self, config: ScoreConfig) -> None:
        """Raises ConfigError for values that no worker could start with."""
        self.config = config
        _one_of("kind", config.kind, tuple(KINDS))
        _one_of("precision", config.precision, PRECISIONS)
        _one_of("device", config.device, DEVICES)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", config.name) or config.name == "key":
            raise ConfigError(f"name {config.name!r} must be a column name such as clip_score or clip_b32")
        if config.batch_size < 1 or config.decode_threads < 1 or config.cpus <= 0:
            raise ConfigError("batch_size and decode_threads must be at least 1, cpus above 0")
        self._scorer: Scorer | None = None

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.config.cpus, gpus=self.config.gpus)

    def plan(self, planned: Sequence[Unit]) -> list[Unit]:
        mark = model_fingerprint(self.config.model, self.config.pretrained)
        model = Input(url=self.config.model, fingerprint=mark)
        found = inputs.shards(self.config.input, ".tar")
        return [Unit(number=s.number, source={"shard": s.number}, inputs=(s.input, model)) for s in found]

    def start(self) -> None:
        self._scorer = KINDS[self.config.kind](self.config)

    def run(self, unit: Unit, scratch: Path) -> Output:
        assert self._scorer is not None, "start() loads the model"
        tar = unit.inputs[0].url
        images = columns.read_images(tar.rsplit(".", 1)[0] + ".parquet")
        images = images.filter(pc.equal(images["status"], columns.SUCCESS))
        scores: dict[str, float | None] = {}
        dropped: Counter[str] = Counter()
        for key, score, reason in self._scorer.score(read_candidates(tar, images)):
            scores[key] = score
            dropped.update([reason] if reason else [])
        keys = images["key"].to_pylist()
        table = pa.table(
            {
                "key": pa.array(keys, pa.string()),
                self.config.name: pa.array([scores[key] for key in keys], pa.float32()),
            }
        )
        counts = Counts(len(keys), len(keys) - dropped.total(), dropped)
        return Output(parts={".parquet": table}, counts=counts, notes={"model": self._scorer.name})


def read_candidates(tar: str, images: pa.Table) -> Iterator[Candidate]:
    """Every row of `images` with its picture: in the order of the tar, then those that the tar lacks."""
    pairs = zip(images["key"].to_pylist(), images["caption"].to_pylist(), strict=True)
    captions = {key: caption or "" for key, caption in pairs}
    for sample in iter_samples(tar):
        if sample.key in captions:
            pictures = [data for suffix, data in sorted(sample.members.items()) if is_image(suffix)]
            picture = pictures[0] if pictures else None
            yield Candidate(sample.key, picture, captions.pop(sample.key))
    for key, caption in captions.items():
        yield Candidate(key, None, caption)


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field} {value!r} must be one of {', '.join(allowed)}")
