"""Are the captions that a model writes about its pictures? CIDEr-D against the pool's captions.

The captioner writes one caption per picture, and the captions of the picture in the pool are its references.
With the picture withheld it writes about the mean picture: that one caption stands for every picture, and its
score is what a caption of the set's habits alone is worth. Shuffled, each picture is given what was written
about another.

Shapes: M pictures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.evaluation.cider import cider_d, tokenise
from models.evaluation.conditions import CONDITIONS
from models.evaluation.pool import Pool, Report, derangement

#: normalised pictures [B, 3, H, W] -> one caption each
WriteCaptions = Callable[[Tensor], list[str]]
EXAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class CaptionResult:
    """cider[condition]: the mean of CIDEr-D over the pictures (papers print it times 100). exact[condition]:
    the share of pictures whose caption equals one of their references. written: what was written, in order;
    withheld: what was written about the mean picture."""

    pictures: int
    references: int
    cider: dict[str, float]
    exact: dict[str, float]
    written: list[str]
    withheld: str
    examples: list[dict[str, Any]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "references": self.references,
            "cider_d": {c: round(v, 6) for c, v in self.cider.items()},
            "exact": {c: round(v, 6) for c, v in self.exact.items()},
            "distinct": len(set(self.written)),
            "withheld_caption": self.withheld,
            "examples": self.examples,
            "seconds": round(self.seconds, 2),
        }


def evaluate_captions(
    write: WriteCaptions, pool: Pool, *, seed: int = 0, report: Report | None = None
) -> CaptionResult:
    """CIDEr-D of the captions that `write` gives for the pool's pictures.

    Args:
        seed: of the swap of pictures.

    Raises:
        ValueError: the pool holds no captions as text, a picture has none, or another number was written.
    """
    began = time.monotonic()
    if not pool.captions:
        raise ValueError("the pool holds token ids alone; captions are judged against the texts")
    references = pool.references()
    written: list[str] = []
    first: Tensor | None = None
    for image_BCHW in pool.images:
        first = image_BCHW[:1] if first is None else first
        captions = write(image_BCHW)
        if len(captions) != len(image_BCHW):
            raise ValueError(f"{len(captions)} captions were written for {len(image_BCHW)} pictures")
        written += captions
        if report:
            report("captions written", len(written), pool.pictures)
    assert first is not None
    [blank] = write(torch.zeros_like(first))
    other_M = derangement(torch.arange(len(written)), torch.Generator().manual_seed(seed))
    shown = {
        "with_picture": written,
        "withheld": [blank] * len(written),
        "shuffled": [written[m] for m in other_M.tolist()],
    }
    cider = {c: statistics.fmean(cider_d(shown[c], references)) for c in CONDITIONS}
    return CaptionResult(
        pictures=len(written),
        references=len(pool.captions),
        cider=cider,
        exact={c: _exact(shown[c], references) for c in CONDITIONS},
        written=written,
        withheld=blank,
        examples=[
            {"written": caption, "references": refs}
            for caption, refs in list(zip(written, references, strict=True))[:EXAMPLES]
        ],
        seconds=time.monotonic() - began,
    )


def _exact(captions: list[str], references: list[list[str]]) -> float:
    hits = [tokenise(c) in [tokenise(r) for r in refs] for c, refs in zip(captions, references, strict=True)]
    return sum(hits) / len(hits)
