"""What `make learn` trains, and what it has to show: runs and margins as data, stated before anything is run.

Every run is `pairmill train` on the same shards: size tiny with the fields below, two processes, ZeRO-2.
Pictures are 72 pixels in nine patches of 24: the scenes have 3 x 3 cells, and few tokens are fast. Nothing is
cropped (`crop_scale` 1 1), because a crop would cut off what the caption tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.demo.learn_world import LearnWorld
from models.training.config import AugmentConfig, TrainConfig, ValidateConfig, ZeroConfig

SMALL = {"image_size": 72, "patch_size": 24}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        name: its folder.
        recipe: which system.
        steps: optimizer steps of 64 pairs.
        model: fields of the recipe's Config.
        after: the run whose weights it starts from.
        judged: whether it is evaluated.
        lr: highest learning rate.
        lr_multipliers: factors on it.
    """

    name: str
    recipe: str
    steps: int
    model: dict[str, Any] = field(default_factory=dict)
    after: str | None = None
    judged: bool = True
    lr: float = 1e-3
    lr_multipliers: dict[str, float] = field(default_factory=dict)


#: A teacher at 0.99, not at the paper's 0.995, whose memory is a third of these runs. At 0.9 to 0.95 a queue
#: is no help: features move so fast that keys are told by their age (docs/learning.md).
TEACHER = {"queue_size": 512, "momentum": 0.99, "alpha": 0.4, "alpha_warmup": 4.0}
ALBEF = {**SMALL, **TEACHER, "vision_depth": 2, "text_depth": 3, "fusion_start": 2, "mlm_probability": 0.3}
BLIP = {**SMALL, **TEACHER, "vision_depth": 2, "text_depth": 2}
VLMO = {**SMALL, "depth": 3, "joint_start": 2, "mlm_probability": 0.3, "mlm_weight": 1.0}

#: a temperature moves as fast as at the paper's rate of 1e-4
SLOW = {"temperature": 0.1}

RUNS: dict[str, tuple[Run, ...]] = {
    "clip": (Run(name="clip", recipe="clip", steps=300, model={**SMALL, "vision_depth": 3}),),
    "albef": (Run(name="albef", recipe="albef", steps=700, model=ALBEF, lr_multipliers=SLOW),),
    "blip": (Run(name="blip", recipe="blip", steps=700, model=BLIP, lr_multipliers=SLOW),),
    "vlmo": (
        Run(name="vlmo-image", recipe="vlmo", steps=100, model={**VLMO, "stage": "image"}, judged=False),
        Run(
            name="vlmo-text", recipe="vlmo", steps=100, model={**VLMO, "stage": "text"}, after="vlmo-image",
            judged=False,
        ),
        Run(
            name="vlmo-first", recipe="vlmo", steps=400, model={**VLMO, "stage": "vision_language"},
            after="vlmo-text",
        ),
        # the matching head starts late: it goes on where the first half ended
        Run(
            name="vlmo", recipe="vlmo", steps=300, model={**VLMO, "stage": "vision_language"},
            after="vlmo-first",
        ),
    ),
}  # fmt: skip
#: the last stage of VLMo without the others, and without the first one, at equal steps of the last stage
STAGES: tuple[Run, ...] = (
    Run(name="vlmo-from-nothing", recipe="vlmo", steps=400, model={**VLMO, "stage": "vision_language"}),
    Run(name="vlmo-text-alone", recipe="vlmo", steps=100, model={**VLMO, "stage": "text"}, judged=False),
    Run(
        name="vlmo-from-text", recipe="vlmo", steps=400, model={**VLMO, "stage": "vision_language"},
        after="vlmo-text-alone",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Margin:
    """With its picture a model must be better by `least` than without it and than with a wrong one.

    Attributes:
        run: which run.
        metric: what is measured, for people.
        result: the result file of `evaluate`.
        path: where the figure stands in it; {condition} is replaced by with_picture, withheld, shuffled.
        least: the margin over the better of the two blind figures, in the metric's unit (shares; CIDEr-D).
    """

    run: str
    metric: str
    result: str
    path: str
    least: float


def _retrieval(run: str, r1: float, r10: float) -> tuple[Margin, ...]:
    return tuple(
        Margin(
            run=run, metric=f"{name} R@{k} by features", result="retrieval",
            path=f"{{condition}}.itc.{key}.r{k}", least=least,
        )
        for k, least in ((1, r1), (10, r10))
        for key, name in (("tr", "picture to text"), ("ir", "text to picture"))
    )  # fmt: skip


def _itm(run: str, random: float, hard: float) -> tuple[Margin, ...]:
    return tuple(
        Margin(
            run=run, metric=f"ITM accuracy, {kind} wrong picture", result="itm",
            path=f"accuracy.{{condition}}.{kind}.mean", least=least,
        )
        for kind, least in (("random", random), ("hard", hard))
    )  # fmt: skip


def _words(run: str, least: float) -> Margin:
    return Margin(
        run=run, metric="MLM accuracy on content words", result="mlm",
        path="accuracy.{condition}.all.mean", least=least,
    )  # fmt: skip


MARGINS: tuple[Margin, ...] = (
    *_retrieval("clip", r1=0.20, r10=0.70),
    *_retrieval("albef", r1=0.20, r10=0.70),
    *_itm("albef", random=0.35, hard=0.08),
    _words("albef", 0.25),
    *_retrieval("blip", r1=0.20, r10=0.70),
    *_itm("blip", random=0.35, hard=0.08),
    Margin(run="blip", metric="caption CIDEr-D", result="captions", path="cider_d.{condition}", least=1.0),
    *_retrieval("vlmo", r1=0.10, r10=0.50),
    *_itm("vlmo", random=0.30, hard=0.05),
    _words("vlmo", 0.20),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is run: pictures, held-out pictures, runs, margins."""

    pictures: int = 6000
    heldout: int = 1000
    runs: tuple[Run, ...] = ()
    margins: tuple[Margin, ...] = ()


def make_plan(recipes: list[str], *, stages: bool, quick: bool) -> Plan:
    """The runs of some recipes with their margins.

    Args:
        stages: also the runs that VLMo's stages are compared with.
        quick: a quarter of the steps, on fewer pictures; asked for is R@10 alone, by 0.1.
    """
    runs = tuple(run for recipe in recipes for run in RUNS[recipe]) + (STAGES if stages else ())
    names = {run.name for run in runs}
    margins = tuple(m for m in MARGINS if m.run in names)
    if not quick:
        return Plan(runs=runs, margins=margins)
    return Plan(
        pictures=1200,
        heldout=200,
        runs=tuple(replace(run, steps=max(2, run.steps // 4)) for run in runs),
        margins=tuple(replace(m, least=0.1) for m in margins if "R@10" in m.metric),
    )


def train_config(run: Run, world: LearnWorld, folder: Path) -> TrainConfig:
    """What `pairmill train` is asked for; a stage takes the vocabulary of the one before it."""
    before = folder / "runs" / run.after / "model" if run.after else None
    return TrainConfig(
        shards=str(world.train),
        output=str(folder / "runs" / run.name),
        recipe=run.recipe,
        size="tiny",
        model=run.model,
        tokenizer=str(before / "tokenizer") if before else "train",
        init_from=str(before) if before else None,
        vocab_size=256,
        batch_size=64,
        steps=run.steps,
        lr=run.lr,
        lr_multipliers=run.lr_multipliers,
        warmup_steps=min(100, run.steps // 4),
        zero=ZeroConfig(stage=2),
        precision="fp32",
        augment=AugmentConfig(crop_scale=(1.0, 1.0)),
        processes=2,
        validate=ValidateConfig(
            shards=str(world.heldout), every=max(1, run.steps // 10), samples=256, pool=512
        ),
        checkpoint_every=200,
        log_every=10 if run.steps >= 100 else 2,
    )
