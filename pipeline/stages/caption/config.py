"""The options of caption. Light to import."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.settings import location, operational, since

SAMPLINGS = ("nucleus", "beam")
PRECISIONS = ("fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class NucleusOptions:
    """Sampling (arXiv 1904.09751); the defaults are BLIP's CapFilt.

    Attributes:
        p: tokens are drawn from the fewest that hold this probability together.
        top_k: and from this many at most; 0 for any number.
        min_length: tokens before a text may end, the opening token and the prompt included.
        max_length: tokens at which it is cut.
        repetition_penalty: above 1, tokens that the text holds already become less probable.
    """

    p: float = 0.9
    top_k: int = 50
    min_length: int = 10
    max_length: int = 30
    repetition_penalty: float = 1.1


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """Beam search; the defaults are BLIP's captions.

    Attributes:
        beams: beginnings that are kept; one is greedy.
        min_length: tokens before a text may end, the opening token and the prompt included.
        max_length: tokens at which it is cut.
        length_penalty: a text's score is the sum of log probabilities over length ** length_penalty.
        repetition_penalty: above 1, tokens that the text holds already become less probable.
    """

    beams: int = 3
    min_length: int = 5
    max_length: int = 20
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Which pictures get captions, who writes them, and who judges them.

    Attributes:
        input: the image folder (the crawl's output, or a folder of img2dataset).
        columns: column folders over the same input, whose columns `where` may name.
        where: caption only rows for which this SQL expression is true, such as `clip_score < 0.3`; the others
            have null.
        captioner: what writes: the `model/` folder of a BLIP with objective lm, a folder of transformers, or
            `hf:OWNER/NAME` of the Hugging Face hub; empty: nothing is written, the web's texts are judged.
        filter: what gives the probability that text and picture match: a `model/` folder with objective itm,
            a BlipForImageTextRetrieval of transformers, or the hub's.
        clip: what gives the cosine of text and picture: an open_clip name, or a `model/` folder.
        clip_pretrained: with an open_clip name: a pretrained tag, or a local checkpoint.
        clip2: a second one, which judges only the first one's best.
        clip2_pretrained: as clip_pretrained.
        clip2_top: how many captions of a picture the second one judges.
        sampling: `nucleus` or `beam`.
        candidates: captions of a picture; a beam search writes one.
        nucleus: options of nucleus sampling.
        beam: options of beam search.
        seed: of the sampling; what is drawn for a caption is a function of seed, key and its number.
        prompt: what every text begins with, in place of the prompt that the captioner was trained with.
        batch_size: pictures that a model sees at once.
        rows: texts that are written or judged at once; bounds memory where candidates are many.
        precision: `fp32` or `bf16`.
        device: `auto`, `cpu` or `cuda`; `auto` is a GPU when one is there.
        cpus: CPUs of a worker; the models compute with as many threads.
        gpus: GPUs of a worker: 1, or a part such as 0.5 where several workers share one.
        decode_threads: threads that decode pictures beside the computing.
    """

    input: str = location("")
    columns: list[str] | str = location(factory=list)
    where: str | None = None
    # where the models lie; their content is an input of every unit
    captioner: str = location("")
    filter: str = location("")
    clip: str = location("")
    clip_pretrained: str | None = operational(None)
    clip2: str = location("")
    clip2_pretrained: str | None = operational(None)
    clip2_top: int = since(5)
    sampling: str = "nucleus"
    candidates: int = 1
    nucleus: NucleusOptions = since(NucleusOptions())
    beam: BeamOptions = since(BeamOptions())
    seed: int = 0
    prompt: str | None = None
    batch_size: int = 16
    rows: int = 256
    precision: str = "fp32"
    device: str = operational("auto")
    cpus: float = operational(1.0)
    gpus: float = operational(0.0)
    decode_threads: int = operational(2)


def check(config: CaptionConfig) -> None:
    """Raises ConfigError for values that no worker could start with, and for options that mean nothing."""
    for name, allowed in (("sampling", SAMPLINGS), ("precision", PRECISIONS), ("device", DEVICES)):
        value = getattr(config, name)
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} must be one of {', '.join(allowed)}")
    for name in ("candidates", "batch_size", "rows", "decode_threads", "clip2_top"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} {getattr(config, name)} must be at least 1")
    if config.cpus <= 0:
        raise ConfigError(f"cpus {config.cpus} must be above 0")
    if not (config.captioner or config.filter or config.clip):
        raise ConfigError("no model; give --captioner, which writes, and --filter or --clip, which judge")
    if config.clip2 and not (config.clip and config.captioner):
        raise ConfigError(
            f"clip2 {config.clip2!r} judges the best captions by --clip; give --captioner and --clip too"
        )
    if config.sampling == "beam" and config.candidates != 1:
        raise ConfigError(
            f"candidates {config.candidates}: a beam search writes one caption; use --sampling nucleus"
        )
    _refuse_idle(config)
    _check_sampling(config.nucleus if config.sampling == "nucleus" else config.beam, config.sampling)


def _refuse_idle(config: CaptionConfig) -> None:
    idle = [("beam", "nucleus"), ("nucleus", "beam")]
    for name, sampling in idle:
        if config.sampling == sampling and getattr(config, name) != _default(name):
            raise ConfigError(f"--{name}.* means nothing to sampling {sampling}; leave it away")
    for name, needed in (("clip_pretrained", "clip"), ("clip2_pretrained", "clip2"), ("clip2_top", "clip2")):
        if getattr(config, name) != _default(name) and not getattr(config, needed):
            raise ConfigError(f"{name} {getattr(config, name)!r} needs --{needed}")
    if not config.captioner:
        for name in ("sampling", "candidates", "nucleus", "beam", "seed", "prompt"):
            if getattr(config, name) != _default(name):
                raise ConfigError(f"{name} means nothing without --captioner; give one, or leave it away")


def _default(name: str) -> Any:
    return next(f.default for f in dataclasses.fields(CaptionConfig) if f.name == name)


def _check_sampling(options: NucleusOptions | BeamOptions, name: str) -> None:
    if not 0 <= options.min_length <= options.max_length or options.max_length < 2:
        raise ConfigError(
            f"{name}.min_length {options.min_length} and {name}.max_length {options.max_length}: 0 <= the "
            "least <= the most, and the most at least 2"
        )
    if options.repetition_penalty <= 0:
        raise ConfigError(
            f"{name}.repetition_penalty {options.repetition_penalty} must be above 0; 1 is none"
        )
    if isinstance(options, NucleusOptions):
        if not 0 < options.p <= 1 or options.top_k < 0:
            raise ConfigError(
                f"nucleus.p {options.p} must lie in (0, 1], nucleus.top_k {options.top_k} be >= 0"
            )
    elif options.beams < 1:
        raise ConfigError(f"beam.beams {options.beams} must be at least 1")
