"""Does the matching head tell a caption's picture from another? Balanced accuracy, with blind baselines.

Each caption is shown with its own picture and with a wrong one, and the head says whether they match. Every
caption is asked once as matched and once as not, so an answer from the text alone is right in exactly half of
the cases: what is above 1/2 comes from pictures. The wrong picture is drawn at random, or it is the hardest:
among the pictures that are not the caption's own, the one whose features are nearest to the caption's.

The pairs stay the same when the picture is withheld (the mean picture stands for every one) or shuffled (each
stands for another one).

Shapes: P captions, M pictures, X pairs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.evaluation.conditions import CONDITIONS
from models.evaluation.pool import EncodedPool, Pool, Report, derangement, encode_pool
from models.evaluation.retrieval import match_pairs
from models.recipes.base import Model

NEGATIVES = ("hard", "random")


@dataclass(frozen=True, kw_only=True)
class ItmResult:
    """accuracy[condition][negatives]: the share of right answers in 0..1, one per seed. recall: the share of
    the matched pairs alone that the head accepts with the picture."""

    captions: int
    seeds: tuple[int, ...]
    accuracy: dict[str, dict[str, list[float]]]
    recall: float
    seconds: float

    def mean(self, negatives: str, condition: str) -> float:
        return statistics.fmean(self.accuracy[condition][negatives])

    def to_json(self) -> dict[str, Any]:
        def summary(values: list[float]) -> dict[str, Any]:
            return {"mean": round(statistics.fmean(values), 6), "seeds": [round(v, 6) for v in values]}

        return {
            "captions": self.captions,
            "pairs": 2 * self.captions,
            "seeds": list(self.seeds),
            "accuracy": {c: {n: summary(v) for n, v in by.items()} for c, by in self.accuracy.items()},
            "matched_accepted": round(self.recall, 6),
            "chance": 0.5,
            "seconds": round(self.seconds, 2),
        }


def evaluate_itm(
    model: Model,
    pool: Pool,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str = "cpu",
    encoded: EncodedPool | None = None,
    report: Report | None = None,
) -> ItmResult:
    """Accuracy of the matching head on balanced pairs.

    Args:
        seeds: each draws the random wrong pictures and the swap of pictures.
        encoded: the pool's states, where they are known already.

    Raises:
        ValueError: the model has no matching head, or the pool holds one picture only.
    """
    began = time.monotonic()
    device = torch.device(device)
    encoded = encoded or encode_pool(model, pool, device=device, report=report)
    if not encoded.fuses or not hasattr(model, "match"):
        raise ValueError(f"{type(model).__name__} matches no pairs; evaluate a system with a matching head")
    own_P = pool.text_image_P
    hard_P = hardest_pictures(encoded.images.image_ME, encoded.texts.text_PE, own_P)

    def says_matched(images: str, picture_P: Tensor) -> Tensor:
        pair_X2 = torch.stack([picture_P, torch.arange(len(own_P))], dim=1)
        states = encoded.blank if images == "blank" else encoded.images
        return (
            match_pairs(
                model, states, encoded.texts, pool.text_mask_PT, pair_X2, device=device, against_no=True,
                report=report,
            )
            > 0
        )  # fmt: skip

    nothing_P = torch.zeros_like(own_P)
    # the mean picture is the same for a caption's both pairs: one of its two answers is right
    said_blank = says_matched("blank", nothing_P)
    said_own = says_matched("own", own_P)
    said_hard = says_matched("own", hard_P)
    accuracy: dict[str, dict[str, list[float]]] = {c: {n: [] for n in NEGATIVES} for c in CONDITIONS}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        random_P = derangement(own_P, generator)
        other_M = derangement(torch.arange(pool.pictures), generator)
        said_swapped = says_matched("own", other_M[own_P])
        answers = {
            "hard": (said_hard, says_matched("own", other_M[hard_P])),
            "random": (says_matched("own", random_P), says_matched("own", other_M[random_P])),
        }
        for negatives, (wrong, wrong_swapped) in answers.items():
            accuracy["with_picture"][negatives].append(_share(said_own, wrong))
            accuracy["withheld"][negatives].append(_share(said_blank, said_blank))
            accuracy["shuffled"][negatives].append(_share(said_swapped, wrong_swapped))
    return ItmResult(
        captions=len(own_P),
        seeds=tuple(seeds),
        accuracy=accuracy,
        recall=float(said_own.double().mean()),
        seconds=time.monotonic() - began,
    )


def hardest_pictures(image_ME: Tensor, text_PE: Tensor, own_P: Tensor) -> Tensor:
    """For each caption the picture that is not its own and whose features are nearest.

    Raises:
        ValueError: there is one picture only.
    """
    if len(image_ME) < 2:
        raise ValueError("the pool holds one picture; a wrong picture needs two")
    hard_P = torch.empty_like(own_P)
    for part in torch.arange(len(own_P)).split(512):
        sim_BM = text_PE[part] @ image_ME.T
        sim_BM[torch.arange(len(part)), own_P[part]] = -torch.inf
        hard_P[part] = sim_BM.argmax(dim=1)
    return hard_P


def _share(matched_P: Tensor, wrong_P: Tensor) -> float:
    """Right answers among the matched pairs (yes) and the wrong ones (no)."""
    right = matched_P.sum() + (~wrong_P).sum()
    return float(right) / (len(matched_P) + len(wrong_P))
