"""Writing texts with a causal decoder: beam search and nucleus sampling, for many pictures at once.

    how = Beam()                                  3 beams, 5 to 20 tokens: BLIP's captions
    how = Nucleus(candidates=4, seed=1)           4 samples a picture, p = 0.9: BLIP's CapFilt
    texts = generate(decoder, first_ids, image_id_M, how=how, end_id=102)

Lengths count the opening token and the prompt. A picture whose texts are all complete leaves the
computation, and so do the complete texts of a sample. Draws are keyed by (seed, picture, candidate,
position): the other pictures of a batch do not matter.

Shapes: M pictures, C rows of a picture (beams or candidates), L tokens so far, V vocabulary, X candidates
for continuation (2C), K pictures that go on, W rows of each that go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import StepContext
from models.precision import upcast

#: the score of what does not exist
NEVER = -1e9
#: the share of rows still going at which the others leave; leaving copies what the decoder keeps
FEW = 0.8


class Decoder(Protocol):
    """See `models.blocks.decoding.CachedDecoder`; begins with one row per picture."""

    def advance(self, ids_MCT: Tensor) -> Tensor: ...

    def keep(self, picture_K: Tensor, parent_KC: Tensor) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Beam:
    """The most probable text that a search over `beams` beginnings finds; one beam is greedy.

    Attributes:
        beams: Beginnings that are kept.
        min_length: Tokens before the text may end.
        max_length: Tokens at which it is cut.
        length_penalty: A score is the sum of log probabilities over length ** length_penalty.
        repetition_penalty: Above 1, tokens that the text holds already become less probable.
        scoring: `blip`: a length counts the prompt and not the end token, and all beginnings that reach
            max_length compete (the published code, transformers 4.15). `generated`: a length counts the
            tokens after the prompt with the end token, and of those that reach max_length the first
            `beams` continuations compete (transformers 5). They differ where a prompt is
            given or a text is cut.
    """

    beams: int = 3
    min_length: int = 5
    max_length: int = 20
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    scoring: Literal["blip", "generated"] = "blip"

    def __post_init__(self) -> None:
        _check(self.beams, self.min_length, self.max_length, self.repetition_penalty)
        if self.scoring not in ("blip", "generated"):
            raise ValueError(f"scoring {self.scoring!r} is unknown; use blip or generated")


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """Texts sampled from the most probable tokens (Holtzman et al., arXiv 1904.09751).

    Attributes:
        candidates: Texts of a picture.
        p: Tokens are drawn from the fewest that hold this probability together.
        top_k: And from this many at most; 0 for any number. 50 is the default of the published code.
        min_length: Tokens before a text may end.
        max_length: Tokens at which it is cut.
        repetition_penalty: Above 1, tokens that the text holds already become less probable.
        seed: Of the draws.
    """

    candidates: int = 1
    p: float = 0.9
    top_k: int = 50
    min_length: int = 10
    max_length: int = 30
    repetition_penalty: float = 1.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.candidates, self.min_length, self.max_length, self.repetition_penalty)
        if not 0 < self.p <= 1 or self.top_k < 0:
            raise ValueError(f"p {self.p} must lie in (0, 1] and top_k {self.top_k} be 0 (all) or more")


@torch.inference_mode()
def generate(
    decoder: Decoder,
    first_ids: Sequence[int],
    image_id_M: Tensor,
    *,
    how: Beam | Nucleus,
    end_id: int,
    part: slice | None = None,
) -> list[list[list[int]]]:
    """The texts of each picture, as token ids without `first_ids` and without the end token.

    Args:
        first_ids: the opening token and the prompt, which all texts begin with.
        image_id_M: int64 [M], on the decoder's device; they key the draws.
        part: which of a nucleus's candidates to write; all of them without it.

    Raises:
        ValueError: max_length leaves no room after the first ids.
    """
    if how.max_length <= len(first_ids):
        raise ValueError(
            f"max_length {how.max_length} leaves no room after {len(first_ids)} first tokens; raise it"
        )
    first_L = torch.tensor(list(first_ids), device=image_id_M.device)
    ids_M1L = first_L.expand(len(image_id_M), 1, -1)
    if isinstance(how, Nucleus):
        return _sample(decoder, ids_M1L, image_id_M, how, end_id, range(how.candidates)[part or slice(None)])
    if how.beams == 1:
        return _greedy(decoder, ids_M1L, how, end_id)
    return _search(decoder, ids_M1L, how, end_id)


def _greedy(decoder: Decoder, ids_M1L: Tensor, how: Beam, end_id: int) -> list[list[list[int]]]:
    return _draw(decoder, ids_M1L, 1, how, end_id, lambda logits_KWV, *_: logits_KWV.argmax(-1))


def _sample(
    decoder: Decoder, ids_M1L: Tensor, image_id_M: Tensor, how: Nucleus, end_id: int, candidates: range
) -> list[list[list[int]]]:
    def choose(logits_KWV: Tensor, picture_K: Tensor, row_KW: Tensor, length: int) -> Tensor:
        context = StepContext(seed=how.seed, step=length)
        uniform_KC = context.uniform("nucleus", image_id_M[picture_K], how.candidates)
        own_KW = uniform_KC.gather(1, row_KW + candidates.start)
        return draw_nucleus(logits_KWV, own_KW, p=how.p, top_k=how.top_k)

    return _draw(decoder, ids_M1L, len(candidates), how, end_id, choose)


class _Choice(Protocol):
    def __call__(self, logits_KWV: Tensor, picture_K: Tensor, row_KW: Tensor, length: int, /) -> Tensor: ...


def _draw(
    decoder: Decoder, ids_M1L: Tensor, rows: int, how: Beam | Nucleus, end_id: int, choose: _Choice
) -> list[list[list[int]]]:
    """One token after the other by `choose`, every row for itself. `picture_K` and `row_KW` say which texts
    are still computed."""
    pictures, _, prompt = ids_M1L.shape
    device = ids_M1L.device
    written_MCL = torch.full((pictures, rows, how.max_length), end_id, device=device)
    written_MCL[:, :, :prompt] = ids_M1L
    picture_K = torch.arange(pictures, device=device)
    row_KW = torch.arange(rows, device=device).expand(pictures, -1)
    ended_KW = torch.zeros(pictures, rows, dtype=torch.bool, device=device)
    logits_KWV = decoder.advance(ids_M1L)
    decoder.keep(picture_K, torch.zeros_like(row_KW))
    logits_KWV = logits_KWV.expand(-1, rows, -1)
    for length in range(prompt, how.max_length):
        seen_KWL = written_MCL[picture_K[:, None], row_KW, :length]
        scores_KWV = adjust(upcast(logits_KWV), seen_KWL, how=how, end_id=end_id)
        token_KW = torch.where(ended_KW, end_id, choose(scores_KWV, picture_K, row_KW, length))
        written_MCL[picture_K[:, None], row_KW, length] = token_KW
        ended_KW = ended_KW | (token_KW == end_id)
        going_K = (~ended_KW).sum(dim=1)
        most = int(going_K.max())
        if most == 0 or length + 1 == how.max_length:
            break
        on_K = going_K.nonzero().squeeze(1)
        if len(on_K) < len(picture_K) or most < FEW * ended_KW.shape[1]:
            # the same number of rows for each picture: those that go on first, then complete ones
            own_KW = ended_KW[on_K].int().argsort(dim=1, stable=True)[:, :most]
            decoder.keep(on_K, own_KW)
            picture_K, row_KW = picture_K[on_K], row_KW[on_K].gather(1, own_KW)
            ended_KW, token_KW = ended_KW[on_K].gather(1, own_KW), token_KW[on_K].gather(1, own_KW)
        logits_KWV = decoder.advance(token_KW[:, :, None])
    return [[_until_end(row, end_id) for row in rows_CL] for rows_CL in written_MCL[:, :, prompt:].tolist()]


def _search(decoder: Decoder, ids_M1L: Tensor, how: Beam, end_id: int) -> list[list[list[int]]]:
    """Beam search; `best_*` hold the complete texts that are kept, best first."""
    pictures, _, prompt = ids_M1L.shape
    device, beams, blip = ids_M1L.device, how.beams, how.scoring == "blip"
    texts: list[list[int]] = [[] for _ in range(pictures)]
    alive_M = torch.arange(pictures, device=device)
    logits_MCV = decoder.advance(ids_M1L)
    decoder.keep(alive_M, torch.zeros(pictures, beams, dtype=torch.int64, device=device))
    logits_MCV, ids_MCL = logits_MCV.expand(-1, beams, -1), ids_M1L.expand(-1, beams, -1)
    # all beams begin alike: only the first may be continued
    sum_MC = torch.full((pictures, beams), NEVER, device=device)
    sum_MC[:, 0] = 0.0
    best_MC = torch.full((pictures, beams), NEVER, device=device)
    best_ids_MCL = torch.full((pictures, beams, how.max_length), end_id, device=device)
    for length in range(prompt, how.max_length):
        scores_MCV = adjust(upcast(logits_MCV).log_softmax(-1), ids_MCL, how=how, end_id=end_id)
        sum_MX, index_MX = (sum_MC[:, :, None] + scores_MCV).flatten(1).topk(2 * beams, dim=1)
        parent_MX, token_MX = index_MX // scores_MCV.shape[-1], index_MX % scores_MCV.shape[-1]
        ids_MXL = torch.cat([_rows(ids_MCL, parent_MX), token_MX[:, :, None]], dim=2)
        end_MX = token_MX == end_id
        last = length + 1 == how.max_length
        counted = length if blip else length + 1 - prompt

        finished_MX = end_MX if blip or not last else torch.ones_like(end_MX)
        finished_MX = finished_MX & (torch.arange(2 * beams, device=device) < beams)
        rated_MX = (sum_MX / counted**how.length_penalty).masked_fill(~finished_MX, NEVER)
        best_MC, best_ids_MCL = _merge(best_MC, best_ids_MCL, rated_MX, ids_MXL, end_id=end_id)

        going_MC = end_MX.int().argsort(dim=1, stable=True)[:, :beams]
        sum_MC, parent_MC = sum_MX.gather(1, going_MC), parent_MX.gather(1, going_MC)
        ids_MCL = _rows(ids_MXL, going_MC)
        reach_M = (sum_MX if blip else sum_MC)[:, 0] / counted**how.length_penalty
        done_M = (best_MC[:, -1] > NEVER) & (best_MC[:, -1] >= reach_M)
        if last and blip:  # what is still going is complete now, and compared by its whole length
            rated_MC = (sum_MC / (length + 1) ** how.length_penalty).masked_fill(done_M[:, None], NEVER)
            best_MC, best_ids_MCL = _merge(best_MC, best_ids_MCL, rated_MC, ids_MCL, end_id=end_id)
        if last:
            done_M = torch.ones_like(done_M)

        on_K = (~done_M).nonzero().squeeze(1)
        if len(on_K) < len(alive_M):
            for picture, ids in zip(
                alive_M[done_M].tolist(), best_ids_MCL[done_M, 0, prompt:].tolist(), strict=True
            ):
                texts[picture] = _until_end(ids, end_id)
            if len(on_K) == 0:
                break
            alive_M, sum_MC, parent_MC, ids_MCL, best_MC, best_ids_MCL = (
                x[on_K] for x in (alive_M, sum_MC, parent_MC, ids_MCL, best_MC, best_ids_MCL)
            )
        decoder.keep(on_K, parent_MC)
        logits_MCV = decoder.advance(ids_MCL[:, :, -1:])
    return [[text] for text in texts]


def adjust(scores_MCV: Tensor, ids_MCL: Tensor, *, how: Beam | Nucleus, end_id: int) -> Tensor:
    """Scores (logits, or log probabilities, not normalised again) under the repetition penalty and the least
    length."""
    if how.repetition_penalty != 1.0:
        seen_MCL = scores_MCV.gather(2, ids_MCL)
        factor = how.repetition_penalty
        scores_MCV = scores_MCV.scatter(
            2, ids_MCL, torch.where(seen_MCL < 0, seen_MCL * factor, seen_MCL / factor)
        )
    if ids_MCL.shape[2] < how.min_length:
        end_V = torch.arange(scores_MCV.shape[-1], device=scores_MCV.device) == end_id
        scores_MCV = scores_MCV.masked_fill(end_V, -float("inf"))
    return scores_MCV


def draw_nucleus(logits_MCV: Tensor, uniform_MC: Tensor, *, p: float, top_k: int) -> Tensor:
    """One token per row: the uniform number is carried through the cumulative probabilities of the tokens,
    the most probable first."""
    few = min(top_k or logits_MCV.shape[-1], logits_MCV.shape[-1])
    best_MCK, token_MCK = logits_MCV.topk(few, dim=-1)
    probability_MCK = best_MCK.double().softmax(-1)
    before_MCK = probability_MCK.cumsum(-1) - probability_MCK
    weight_MCK = probability_MCK.masked_fill(before_MCK > p, 0.0)
    cumulative_MCK = weight_MCK.cumsum(-1)
    point_MC1 = uniform_MC.double()[:, :, None] * cumulative_MCK[:, :, -1:]
    place_MC1 = torch.searchsorted(cumulative_MCK, point_MC1, right=True).clamp(max=few - 1)
    return token_MCK.gather(-1, place_MC1).squeeze(-1)


def _merge(
    best_MC: Tensor, best_ids_MCL: Tensor, rated_MX: Tensor, ids_MXL: Tensor, *, end_id: int
) -> tuple[Tensor, Tensor]:
    """The best of the kept and the new texts, the older one where they are equal."""
    _, beams, longest = best_ids_MCL.shape
    filled_MXL = F.pad(ids_MXL, (0, longest - ids_MXL.shape[2]), value=end_id)
    rated_MX, place_MX = torch.cat([best_MC, rated_MX], dim=1).sort(dim=1, descending=True, stable=True)
    place_MC = place_MX[:, :beams]
    return rated_MX[:, :beams], _rows(torch.cat([best_ids_MCL, filled_MXL], dim=1), place_MC)


def _rows(ids_MCL: Tensor, place_MX: Tensor) -> Tensor:
    """[M, X, L]: the rows of each picture at the given places."""
    return ids_MCL.gather(1, place_MX[:, :, None].expand(-1, -1, ids_MCL.shape[2]))


def _until_end(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids


def _check(rows: int, min_length: int, max_length: int, penalty: float) -> None:
    if rows < 1:
        raise ValueError(f"{rows} beams or candidates: at least 1")
    if not 0 <= min_length <= max_length:
        raise ValueError(f"min_length {min_length} must lie between 0 and max_length {max_length}")
    if penalty <= 0:
        raise ValueError(f"repetition_penalty {penalty} must be above 0; 1 changes nothing")
