"""Text and image retrieval over a fixed pool: recall at 1, 5, 10 (ALBEF, arXiv 2107.07651, section 5).

TR asks with a picture for its captions, IR with a caption for its picture. Features rank all candidates;
a model with a fusion encoder then ranks the first `top_k` of each query anew by its matching logit, ahead
of all others. Each (picture, caption) pair that any query asks for is computed once, with the picture's
keys and values shared by all its captions, and short captions together.

The same questions are put with the picture withheld (every picture is the mean picture) and shuffled (each
stands for another one): a ranking that reads pictures then falls to chance.

Shapes: M pictures, P captions, X pairs, B pairs of a batch, N image tokens, T text tokens, D width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.evaluation.conditions import CONDITIONS
from models.evaluation.pool import (
    EncodedImages,
    EncodedPool,
    EncodedTexts,
    Pool,
    Report,
    derangement,
    encode_pool,
)
from models.evaluation.ranking import sum_found
from models.recipes.base import Model

KS = (1, 5, 10)
#: pictures whose tokens are in work at once, pairs of one fusion pass, and queries ranked at once
PICTURES, PAIRS, QUERIES = 64, 512, 512


Recall = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Recalls:
    """Recalls in 0..1 under one condition: `text` is picture -> captions (TR), `image` is caption -> picture
    (IR). The `itc` ones are by features alone."""

    text: Recall
    image: Recall
    itc_text: Recall
    itc_image: Recall

    def to_json(self) -> dict[str, Any]:
        def named(recall: Recall) -> dict[str, float]:
            return {f"r{k}": round(v, 6) for k, v in recall.items()}

        itc = {"tr": named(self.itc_text), "ir": named(self.itc_image)}
        return {"tr": named(self.text), "ir": named(self.image), "itc": itc}


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """by[condition]: the recalls. `pairs`: how many pairs the fusion encoder matched."""

    pictures: int
    captions: int
    top_k: int
    pairs: int
    by: dict[str, Recalls]
    seconds: float

    @property
    def seen(self) -> Recalls:
        """With the pictures."""
        return self.by["with_picture"]

    def to_json(self) -> dict[str, Any]:
        return {
            "pool": {"pictures": self.pictures, "captions": self.captions},
            "top_k": self.top_k,
            "pairs_matched": self.pairs,
            "reranked": self.pairs > 0,
            **self.seen.to_json(),
            "chance": {f"r{k}": round(min(1.0, k / self.pictures), 6) for k in KS},
            **{condition: self.by[condition].to_json() for condition in CONDITIONS[1:]},
            "seconds": round(self.seconds, 2),
        }


def evaluate_retrieval(
    model: Model,
    pool: Pool,
    *,
    top_k: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
    encoded: EncodedPool | None = None,
    report: Report | None = None,
) -> RetrievalResult:
    """Retrieval over the pool, in both directions.

    Args:
        top_k: candidates that the matching head ranks anew, per query; 0 ranks by features alone.
        seed: of the order in which equal features enter the top k, and of the swapped pictures.
        encoded: the pool's states, where they are known already.
        report: called with (what, done, total).

    Raises:
        ValueError: a picture without a caption, or a caption of no picture.
    """
    began = time.monotonic()
    device = torch.device(device)
    encoded = encoded or encode_pool(model, pool, device=device, report=report)
    images, texts = encoded.images, encoded.texts
    sim_MP = images.image_ME @ texts.text_PE.T
    positive_MP = torch.arange(pool.pictures)[:, None] == pool.text_image_P[None, :]
    other_M = derangement(torch.arange(pool.pictures), torch.Generator().manual_seed(seed))
    # one row for all pictures alike, as a view
    blank_MP = (encoded.blank.image_ME @ texts.text_PE.T).expand(pool.pictures, -1)
    itc = {c: _both(sim, positive_MP) for c, sim in _shown(sim_MP, blank_MP, other_M).items()}
    by, pairs = itc, 0
    if top_k > 0 and encoded.fuses:
        for_image_MP = top_candidates(sim_MP, top_k, seed=seed)
        for_text_MP = top_candidates(sim_MP.T, top_k, seed=seed + 1).T
        pair_X2 = (for_image_MP | for_text_MP).nonzero()
        pairs = len(pair_X2)
        match_MP = torch.zeros(sim_MP.shape)
        match_MP[pair_X2[:, 0], pair_X2[:, 1]] = match_pairs(
            model, images, texts, pool.text_mask_PT, pair_X2, device=device, report=report
        )
        blank_1P = top_candidates(blank_MP[:1], top_k, seed=seed)
        blank_pair_X2 = blank_1P.nonzero()
        blank_match_1P = torch.zeros(blank_1P.shape)
        blank_match_1P[0, blank_pair_X2[:, 1]] = match_pairs(
            model, encoded.blank, texts, pool.text_mask_PT, blank_pair_X2, device=device
        )
        # a caption's candidates all look alike and are matched alike: they stay tied
        nobody_MP = torch.zeros_like(for_text_MP)
        sims = _shown(sim_MP, blank_MP, other_M)
        matches = _shown(match_MP, blank_match_1P.expand(pool.pictures, -1), other_M)
        chosen_for_image = _shown(for_image_MP, blank_1P.expand(pool.pictures, -1), other_M)
        chosen_for_text = _shown(for_text_MP, nobody_MP, other_M)
        by = {
            c: _both(sims[c], positive_MP, matches[c], chosen_for_image[c], chosen_for_text[c])
            for c in CONDITIONS
        }
    return RetrievalResult(
        pictures=pool.pictures,
        captions=len(pool.text_ids_PT),
        top_k=top_k if pairs else 0,
        pairs=pairs,
        by={
            c: Recalls(text=by[c][0], image=by[c][1], itc_text=itc[c][0], itc_image=itc[c][1])
            for c in CONDITIONS
        },
        seconds=time.monotonic() - began,
    )


def _shown(own_MP: Tensor, blank_MP: Tensor, other_M: Tensor) -> dict[str, Tensor]:
    """A matrix over (picture, caption) under each condition."""
    return dict(zip(CONDITIONS, (own_MP, blank_MP, own_MP[other_M]), strict=True))


def _both(
    sim_MP: Tensor,
    positive_MP: Tensor,
    match_MP: Tensor | None = None,
    for_image_MP: Tensor | None = None,
    for_text_MP: Tensor | None = None,
) -> tuple[Recall, Recall]:
    """Recalls of pictures' and of captions' queries."""
    if match_MP is None or for_image_MP is None or for_text_MP is None:
        return _recalls(sim_MP, positive_MP), _recalls(sim_MP.T, positive_MP.T)
    return (
        _recalls(sim_MP, positive_MP, match_MP, for_image_MP),
        _recalls(sim_MP.T, positive_MP.T, match_MP.T, for_text_MP.T),
    )


def top_candidates(sim_QC: Tensor, top_k: int, *, seed: int) -> Tensor:
    """bool [Q, C]: the k best candidates of each query; which of equal ones enter is drawn, because
    `topk` prefers certain places, and places of queries and candidates correspond."""
    queries, candidates = sim_QC.shape
    order_C = torch.randperm(candidates, generator=torch.Generator().manual_seed(seed))
    best_QK = order_C[sim_QC[:, order_C].topk(min(top_k, candidates), dim=1).indices]
    return torch.zeros(queries, candidates, dtype=torch.bool).scatter_(1, best_QK, True)


@torch.inference_mode()
def match_pairs(
    model: Any,
    images: EncodedImages,
    texts: EncodedTexts,
    text_mask_PT: Tensor,
    pair_X2: Tensor,
    *,
    device: torch.device,
    against_no: bool = False,
    report: Report | None = None,
) -> Tensor:
    """The logit of `matched` for each (picture, caption) pair, float32 [X]; `against_no`: less the logit of
    `not matched`, so that above 0 means a match."""
    assert images.tokens_MND is not None
    assert texts.states_PTD is not None
    length_P = text_mask_PT.sum(dim=1)
    score_X = torch.zeros(len(pair_X2))
    chunk_X = pair_X2[:, 0] // PICTURES
    done = 0
    for chunk in range(int(chunk_X.max()) + 1):
        first = chunk * PICTURES
        tokens_MND = images.tokens_MND[first : first + PICTURES].to(device)
        mine_X = (chunk_X == chunk).nonzero()[:, 0]
        # captions of equal length together: no work on padding
        mine_X = mine_X[length_P[pair_X2[mine_X, 1]].argsort()]
        for here_B in mine_X.split(PAIRS):
            picture_B, caption_B = pair_X2[here_B].unbind(1)
            length = int(length_P[caption_B].max())
            logits_B2 = model.match(
                tokens_MND,
                texts.states_PTD[caption_B, :length].to(device),
                text_mask_PT[caption_B, :length].to(device),
                rows_B=(picture_B - first).to(device),
            )
            score_B = logits_B2[:, 1] - logits_B2[:, 0] if against_no else logits_B2[:, 1]
            score_X[here_B] = score_B.float().cpu()
            done += len(here_B)
            if report:
                report("pairs", done, len(pair_X2))
    return score_X


def _recalls(
    sim_QC: Tensor, positive_QC: Tensor, match_QC: Tensor | None = None, chosen_QC: Tensor | None = None
) -> dict[int, float]:
    """Recall at 1, 5, 10; chosen candidates come first, by their match."""
    found = dict.fromkeys(KS, 0.0)
    for start in range(0, len(sim_QC), QUERIES):
        part = slice(start, start + QUERIES)
        score_QC = sim_QC[part].double()
        if match_QC is not None and chosen_QC is not None:
            above = match_QC[part].double()
            # similarities end at 1, so 2 upwards is ahead of all that was not chosen
            above = above - above.min() + score_QC.max().clamp(min=1) + 1
            score_QC = torch.where(chosen_QC[part], above, score_QC)
        for k, total in sum_found(score_QC, positive_QC[part], KS).items():
            found[k] += total
    return {k: total / len(sim_QC) for k, total in found.items()}
