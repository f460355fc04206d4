"""Does a model read its pictures? Accuracy on masked words with the picture, without it, with a wrong one.

In each caption one word of a chosen group (say, a colour) is replaced by [MASK]s, and the model must name
every piece of it. The same masked captions are shown three pictures: their own, the mean picture (zeros
after normalisation), and another caption's. What the text alone gives away shows in the second; a model
that ignores pictures scores the same in all three.

Shapes: B batch, P captions, M pictures, N image tokens, T text tokens, D width, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.evaluation.conditions import CONDITIONS
from models.evaluation.pool import EncodedPool, Pool, Report, derangement, encode_blank, encode_images

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Span:
    """A chosen word in a caption: tokens [start, stop), and the group it belongs to."""

    start: int
    stop: int
    group: str


@dataclass(frozen=True, kw_only=True)
class MlmResult:
    """accuracy[condition][group], in 0..1, as a list over seeds; the group `all` is every masked word.
    counts[group]: words masked, over all seeds."""

    captions: int
    without_word: int
    seeds: tuple[int, ...]
    accuracy: dict[str, dict[str, list[float]]]
    counts: dict[str, int]
    seconds: float

    def mean(self, condition: str, group: str = "all") -> float:
        return statistics.fmean(self.accuracy[condition][group])

    def to_json(self) -> dict[str, Any]:
        def summary(values: list[float]) -> dict[str, Any]:
            return {"mean": round(statistics.fmean(values), 6), "seeds": [round(v, 6) for v in values]}

        return {
            "captions": self.captions,
            "captions_without_word": self.without_word,
            "seeds": list(self.seeds),
            "words_masked": self.counts,
            "accuracy": {c: {g: summary(v) for g, v in by.items()} for c, by in self.accuracy.items()},
            "gain_of_picture": round(self.mean("with_picture") - self.mean("withheld"), 6),
            "seconds": round(self.seconds, 2),
        }


def evaluate_mlm(
    model: Any,
    pool: Pool,
    *,
    tokenizer: Any,
    words: Mapping[str, Sequence[str]],
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str = "cpu",
    encoded: EncodedPool | None = None,
    report: Report | None = None,
) -> MlmResult:
    """Accuracy on words of the given groups.

    Args:
        encoded: the pool's states, where they are known already.
        words: group -> words, such as `{"colour": ["red", "blue"]}`; phrases are allowed.
        seeds: each draws which word of a caption is masked, and which pictures are swapped.

    Raises:
        ValueError: no caption holds any of the words, or the model has no fusion encoder.
    """
    began = time.monotonic()
    device = torch.device(device)
    spans = find_spans(pool.text_ids_PT, pool.text_mask_PT, tokenizer=tokenizer, words=words)
    usable = [p for p, found in enumerate(spans) if found]
    if not usable:
        raise ValueError(
            f"none of {len(spans)} captions holds a word of {', '.join(words)}; check the word list"
        )
    if not hasattr(model, "mlm_logits"):
        raise ValueError(f"{type(model).__name__} predicts no masked words; evaluate a system with MLM")
    images = encoded.images if encoded else encode_images(model, pool, device=device, report=report)
    blank = encoded.blank if encoded else encode_blank(model, pool, device=device)
    tokens_MND, blank_1ND = images.tokens_MND, blank.tokens_MND
    assert tokens_MND is not None
    assert blank_1ND is not None

    groups = ["all", *words]
    accuracy: dict[str, dict[str, list[float]]] = {c: {g: [] for g in groups} for c in CONDITIONS}
    counts = dict.fromkeys(groups, 0)
    total = len(seeds) * len(usable)
    for number, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        chosen = [spans[p][int(torch.randint(len(spans[p]), (), generator=generator))] for p in usable]
        picture_P = pool.text_image_P[torch.tensor(usable)]
        other_P = derangement(picture_P, generator)
        right: dict[str, list[bool]] = {c: [] for c in CONDITIONS}
        for start in range(0, len(usable), BATCH):
            part = slice(start, start + BATCH)
            ids_BT, mask_BT = pool.text_ids_PT[usable[part]], pool.text_mask_PT[usable[part]]
            pictures = {
                "with_picture": tokens_MND[picture_P[part]],
                "withheld": blank_1ND.expand(len(ids_BT), -1, -1),
                "shuffled": tokens_MND[other_P[part]],
            }
            for condition, tokens_BND in pictures.items():
                right[condition] += _named(
                    model, ids_BT, mask_BT, tokens_BND, chosen[part], tokenizer.mask_id, device
                )
            if report:
                report("masked words", number * len(usable) + min(start + BATCH, len(usable)), total)
        for group in groups:
            members = [i for i, s in enumerate(chosen) if group in ("all", s.group)]
            counts[group] += len(members)
            for condition in CONDITIONS if members else ():
                share = sum(right[condition][i] for i in members) / len(members)
                accuracy[condition][group].append(share)
    met = [g for g in groups if counts[g]]
    return MlmResult(
        captions=len(spans),
        without_word=len(spans) - len(usable),
        seeds=tuple(seeds),
        accuracy={c: {g: by[g] for g in met} for c, by in accuracy.items()},
        counts={g: counts[g] for g in met},
        seconds=time.monotonic() - began,
    )


def find_spans(
    ids_PT: Tensor, mask_PT: Tensor, *, tokenizer: Any, words: Mapping[str, Sequence[str]]
) -> list[list[Span]]:
    """For each caption, where chosen words stand as whole words; the longest wins where they overlap."""
    pieces: dict[tuple[int, ...], str] = {}
    special = set(tokenizer.special_ids)
    for group, members in words.items():
        for word in members:
            encoded_1T, _ = tokenizer.encode([word], 64)
            found = tuple(i for i in encoded_1T[0].tolist() if i not in special)
            if found:
                pieces.setdefault(found, group)
    longest = max((len(p) for p in pieces), default=0)
    continues = [token.startswith("##") for token in tokenizer.tokens(list(range(tokenizer.vocab_size)))]
    spans = []
    for ids, length in zip(ids_PT.tolist(), mask_PT.sum(dim=1).tolist(), strict=True):
        found_here, start = [], 0
        while start < length:
            for size in range(min(longest, length - start), 0, -1):
                stop = start + size
                named = pieces.get(tuple(ids[start:stop]))
                whole = not continues[ids[start]] and (stop == length or not continues[ids[stop]])
                if named is not None and whole:
                    found_here.append(Span(start=start, stop=stop, group=named))
                    start = stop
                    break
            else:
                start += 1
        spans.append(found_here)
    return spans


@torch.inference_mode()
def _named(
    model: Any,
    ids_BT: Tensor,
    mask_BT: Tensor,
    tokens_BND: Tensor,
    spans: Sequence[Span],
    mask_id: int,
    device: torch.device,
) -> list[bool]:
    """Whether every piece of each masked word is the most likely token at its place."""
    hidden_BT = ids_BT.clone()
    for row, span in enumerate(spans):
        hidden_BT[row, span.start : span.stop] = mask_id
    logits_BTV = model.mlm_logits(hidden_BT.to(device), mask_BT.to(device), tokens_BND.to(device))
    guess_BT = logits_BTV.argmax(dim=-1).cpu()
    equal_BT = guess_BT == ids_BT
    return [bool(equal_BT[row, span.start : span.stop].all()) for row, span in enumerate(spans)]
