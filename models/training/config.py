"""What one training run is: every option, its default, and which of them change the result.

A field made with `operational` says where, how fast or how talkative a run is; every other
field is semantic: it is part of the run's digest, and a run folder refuses to go on under another one.
This module imports no torch: planning a run must be instant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from models.training.combinations import check_combinations
from models.training.trackers import check_trackers
from pipeline.settings import location, operational, semantic_config, since

#: mean and standard deviation of OpenAI's CLIP, which ALBEF and BLIP use as well
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """How DeepSpeed spreads the training state over the processes.

    Attributes:
        stage: 0 keeps everything everywhere, 1 shards the optimizer's state, 2 the gradients as well, 3 the
            weights too (not with a momentum teacher).
        offload_optimizer: `cpu` keeps the optimizer in the machine's memory and steps there, or `none`.
        offload_parameters: `cpu` keeps the weights there between uses (stage 3), or `none`.
    """

    stage: int = operational(2)
    offload_optimizer: str = operational("none")
    offload_parameters: str = operational("none")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training pictures.

    Attributes:
        crop_scale: smallest and largest share of the area that a random crop keeps; 1 1 switches it off.
        flip: mirror half of the pictures; off, because captions say "left of" and "right of".
        rand_ops: operations of RandAugment on each picture (ALBEF and BLIP: 2); 0: none.
        rand_magnitude: their strength, 0 to 10 (ALBEF 7, BLIP 5).
    """

    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = False
    rand_ops: int = since(0)
    rand_magnitude: int = since(5)


@dataclass(frozen=True, kw_only=True)
class MixEntry:
    """One dataset of a mixture.

    Attributes:
        shards: folder of `.tar` shards, or a glob or URL of them, or a list of these.
        weight: share of the rows of all steps, relative to the other datasets.
        kind: `pairs`, or `texts`: captions alone, also from `.txt` files of one text a line. A step is wholly
            of the one or of the other.
        captions: as the option of the run; empty: what the run says.
        caption_weights: likewise.
    """

    shards: str | list[str] = location()
    weight: float = 1.0
    kind: str = "pairs"
    captions: list[str] = field(default_factory=list)
    caption_weights: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """What is measured on held-out pairs while the run goes on; it changes nothing in the run.

    Attributes:
        shards: folder of `.tar` shards, or a glob or URL of them, or a list of these; none of the training's.
        every: steps between validations, and one at the end; 0: never.
        samples: pairs whose losses are computed.
        pool: pairs among which each picture and each text looks for its match; 0: none.
        seed: of the choice of pairs and every draw.
        keep_best: figure such as `val_loss` or `val_tr_r1` whose best model is kept as model_best/; or empty.
    """

    shards: str | list[str] = location("")
    every: int = operational(0)
    samples: int = operational(1024)
    pool: int = operational(512)
    seed: int = operational(0)
    keep_best: str = operational("")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: shards in, a run folder out.

    Attributes:
        shards: folder of `.tar` shards, or a glob or URL of them, or a list of these.
        mix: in place of shards, several datasets with weights.
        captions: fields of the json from which a sample's caption is drawn, `txt` for its `.txt`; empty: one
            of caption_0, caption_1, ... where it has them, else the `.txt`.
        caption_weights: how often each of them is drawn; empty: equally.
        clean_captions: lower case, no punctuation, at most so many words, in training and wherever the model
            is used later; 0 leaves captions alone (ALBEF: 30).
        window: shards whose samples are mixed with each other; the order of the shards is random.
        output: run folder (checkpoints, logs, the exported model); on a disk that all processes see.
        recipe: which system, a name in `models.recipes`.
        size: which of the recipe's sizes.
        model: dimensions of the recipe's Config to change, such as `{embed_dim: 128}`.
        tokenizer: a tokenizer folder, or `train` for a WordPiece trained from the shards' captions
            (with init_from: that one's tokenizer).
        vocab_size: tokens of a trained WordPiece.
        max_text_tokens: captions are cut at this many tokens, special ones included; 0: the recipe's limit.
        init_from: exported model folder (`model/` of another run) whose weights to start from.
        batch_size: pairs in one optimizer step, over all processes and accumulation.
        accumulation: micro batches in one optimizer step.
        contrast: what a pair is contrasted with: `micro`, its micro batch; `step`, all micro batches of the
            step (their features are computed first, without gradient).
        steps: optimizer steps; give either this or epochs.
        epochs: passes over the shards; one begins where the last has ended, nothing is dropped.
        lr: highest learning rate.
        min_lr: learning rate at the end of the schedule.
        schedule: after the warm-up: `cosine` or `linear` to min_lr, or `exponential` (x lr_decay an epoch).
        lr_decay: factor of an epoch in the exponential schedule.
        lr_multipliers: factors on the learning rate of parameters by the beginning of their name, such as
            `{itm_head: 10}`.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's weight decay.
        decay: what decays: `matrices` spares everything of less than two dimensions (norms, biases,
            temperatures); `all` spares nothing.
        betas: AdamW's averaging constants.
        eps: AdamW's epsilon.
        clip_grad: largest norm of the gradient; 0 switches clipping off.
        zero: DeepSpeed ZeRO.
        precision: fp32, bf16 (the optimizer keeps fp32 weights), or auto: bf16 on a GPU, fp32 elsewhere.
        recompute: compute activations again in the backward pass instead of keeping them.
        compile: torch.compile of the blocks: `on`, `off`, or `auto`: on a GPU where there is a C compiler.
        seed: of the initial weights, the order, the augmentation and every draw in the model.
        augment: random changes of the pictures.
        image_mean: what is subtracted from each colour.
        image_std: what each colour is divided by.
        max_corrupt: share of the samples that may be unreadable before the run fails.
        processes: local processes to start; on a machine with GPUs one per GPU.
        workers: data loading workers per process; 0 loads in the process itself.
        checkpoint_every: steps between checkpoints; 0: only when the run is stopped.
        keep_checkpoints: how many of the newest to keep.
        log_every: steps between rows of metrics.jsonl and the trackers.
        trackers: beside metrics.jsonl: `tensorboard`, `wandb` (offline without a key).
        validate: losses and retrieval on held-out pairs.
    """

    shards: str | list[str] = operational("")
    mix: list[MixEntry] = since(factory=list)
    captions: list[str] = since(factory=list)
    caption_weights: list[float] = since(factory=list)
    clean_captions: int = since(0)
    window: int = 32
    output: str = operational()
    recipe: str = "albef"
    size: str = "tiny"
    model: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "train"
    vocab_size: int = 8192
    max_text_tokens: int = 0
    init_from: str | None = None
    batch_size: int = 64
    accumulation: int = 1
    contrast: str = since("micro")
    steps: int | None = None
    epochs: float | None = None
    lr: float = 3e-4
    min_lr: float = 1e-5
    schedule: str = since("cosine")
    lr_decay: float = since(0.9)
    lr_multipliers: dict[str, float] = since(factory=dict)
    warmup_steps: int = 100
    weight_decay: float = 0.02
    decay: str = since("matrices")
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = since(1e-8)
    clip_grad: float = 1.0
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: str = "auto"
    recompute: bool = operational(False)
    compile: str = operational("auto")
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    max_corrupt: float = 0.01
    processes: int = operational(1)
    workers: int = operational(0)
    checkpoint_every: int = operational(500)
    keep_checkpoints: int = operational(2)
    log_every: int = operational(10)
    trackers: list[str] = operational(factory=lambda: ["tensorboard"])
    validate: ValidateConfig = operational(factory=ValidateConfig)


def check(config: TrainConfig) -> None:
    """Refuses impossible values before anything is started.

    Raises:
        ValueError: names the option, its value and what would work.
    """
    if "://" in config.output:
        raise ValueError(
            f"output {config.output!r}: checkpoints need a disk that all processes see; give a path"
        )
    if (config.steps is None) == (config.epochs is None):
        raise ValueError(f"give either steps ({config.steps}) or epochs ({config.epochs}), and not both")
    _at_least(config, 1, "batch_size", "accumulation", "processes", "keep_checkpoints", "log_every")
    _at_least(
        config, 0, "workers", "checkpoint_every", "warmup_steps", "max_text_tokens", "clip_grad", "seed"
    )
    for name in ("steps", "epochs"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} {value} must be above 0")
    if not 0 <= config.min_lr <= config.lr:
        raise ValueError(f"min_lr {config.min_lr} must lie between 0 and lr {config.lr}")
    check_combinations(config)
    check_data(config)
    check_trackers(config.trackers)
    check_validation(config.validate)
    low, high = config.augment.crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"augment.crop_scale {low} {high}: needs 0 < smallest <= largest <= 1")
    if not 0 <= config.max_corrupt < 1:
        raise ValueError(f"max_corrupt {config.max_corrupt} must be a share: at least 0 and below 1")
    local_batch(config, config.processes)


def datasets(config: TrainConfig) -> list[MixEntry]:
    """What is trained on: the entries of `mix`, or `shards` as the only one."""
    entries = config.mix or [MixEntry(shards=config.shards)]
    return [
        entry
        if entry.captions
        else dataclasses.replace(entry, captions=config.captions, caption_weights=config.caption_weights)
        for entry in entries
    ]


def check_data(config: TrainConfig) -> None:
    """Refuses datasets, captions and augmentation that cannot be; raises ValueError."""
    if bool(config.shards) == bool(config.mix):
        raise ValueError(f"give either shards ({config.shards!r}) or mix ({len(config.mix)} datasets)")
    _at_least(config, 0, "clean_captions")
    _at_least(config, 1, "window")
    for number, entry in enumerate(datasets(config)):
        where = f"mix[{number}]." if config.mix else ""
        if not entry.weight > 0:
            raise ValueError(f"{where}weight {entry.weight} must be above 0; leave the dataset out")
        if entry.kind not in ("pairs", "texts"):
            raise ValueError(f"{where}kind {entry.kind!r}: use pairs or texts")
        weights = entry.caption_weights
        if entry.captions and weights and len(weights) != len(entry.captions):
            raise ValueError(f"{where}caption_weights {weights}: one for each of {entry.captions}")
        if weights and (min(weights) < 0 or not sum(weights) > 0):
            raise ValueError(f"{where}caption_weights {weights}: none below 0, and one above")
    if config.augment.rand_ops < 0 or not 0 <= config.augment.rand_magnitude <= 10:
        raise ValueError(
            f"augment.rand_ops {config.augment.rand_ops} must be at least 0, "
            f"rand_magnitude {config.augment.rand_magnitude} from 0 to 10"
        )


def check_validation(options: ValidateConfig) -> None:
    """Refuses what cannot be validated; raises ValueError."""
    for name, least in (("every", 0), ("samples", 1), ("pool", 0), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"validate.{name} {getattr(options, name)} must be at least {least}")
    if bool(options.every) != bool(options.shards):
        raise ValueError(
            f"validate.every {options.every} and validate.shards {options.shards!r}: give both, or none"
        )
    if options.keep_best and not (options.every and options.keep_best.startswith("val_")):
        raise ValueError(
            f"validate.keep_best {options.keep_best!r}: name a figure such as val_loss or val_tr_r1, and "
            f"give validate.every ({options.every})"
        )


def local_batch(config: TrainConfig, world_size: int) -> int:
    """Pairs of one micro batch on one process.

    Raises:
        ValueError: batch_size does not divide evenly.
    """
    parts = world_size * config.accumulation
    if config.batch_size % parts:
        nearest = max(1, round(config.batch_size / parts)) * parts
        pairs, rest = divmod(config.batch_size, config.accumulation)
        fitting = [n for n in range(1, pairs + 1) if pairs % n == 0 and not rest]
        around = [max((n for n in fitting if n < world_size), default=0)]
        around += [min((n for n in fitting if n > world_size), default=0)]
        others = " or ".join(str(n) for n in around if n)
        raise ValueError(
            f"batch_size {config.batch_size} must divide by {world_size} processes x accumulation "
            f"{config.accumulation}; use {nearest}" + (f", or {others} processes" if others else "")
        )
    return config.batch_size // parts


def digest(config: TrainConfig, inputs: Sequence[str]) -> str:
    """16 hex digits over the semantic fields and the fingerprints of the shards."""
    payload = json.dumps({"config": semantic_config(config), "inputs": list(inputs)}, sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


def to_dict(config: Any) -> dict[str, Any]:
    """All fields as JSON values, for the resolved config beside the output."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def shareable(config: Any) -> dict[str, Any]:
    """`to_dict` for files that others may read: URLs lose user, password and query, where keys stand."""
    return _without_keys(to_dict(config))


def _without_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_keys(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_keys(item) for item in value]
    if isinstance(value, str) and "://" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
    return value


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `to_dict`: lists become the tuples that the dataclass declares.

    Raises:
        ValueError: an unknown key; names the valid ones.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}; valid: {', '.join(sorted(hints))}")
    ready: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            ready[name] = from_dict(typing.cast(type, hint), value)
        elif isinstance(value, list) and (item := _item(hint)) is not None:
            ready[name] = [from_dict(item, v) for v in value]
        elif isinstance(value, list) and _wants_tuple(hint):
            ready[name] = tuple(value)
        else:
            ready[name] = value
    return kind(**ready)


def _item(hint: Any) -> Any:
    """The dataclass of a list's items, else None."""
    items = typing.get_args(hint) if typing.get_origin(hint) is list else ()
    return items[0] if items and dataclasses.is_dataclass(items[0]) else None


def _wants_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple or any(map(_wants_tuple, typing.get_args(hint)))


def _at_least(config: TrainConfig, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} {getattr(config, name)} must be at least {least}")
