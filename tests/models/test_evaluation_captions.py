"""CIDEr-D equal to the released scorer; captions judged with, without and with a wrong picture."""

from __future__ import annotations

import random

import pytest
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer
from torch import Tensor

from models.evaluation.captions import evaluate_captions
from models.evaluation.cider import cider_d, tokenise
from models.evaluation.pool import Pool

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]


@pytest.mark.parametrize("seed", range(4))
def test_cider_d_equals_the_released_scorer(seed: int) -> None:
    rng = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, 14)))

    references = [[text(1) for _ in range(rng.randint(1, 5))] for _ in range(30)]
    # some captions are a reference, some share words, one is empty
    candidates = [rng.choice(refs) if i % 3 == 0 else text(1) for i, refs in enumerate(references)]
    candidates[1] = ""
    scorer = CiderScorer()
    for candidate, refs in zip(candidates, references, strict=True):
        scorer += (candidate, refs)
    mean, each = scorer.compute_score()
    ours = cider_d(candidates, references)
    assert ours == pytest.approx(list(each), abs=1e-6)
    assert sum(ours) / len(ours) == pytest.approx(mean, abs=1e-6)
    assert max(ours) > 1.0


def test_words_are_split_as_in_the_penn_treebank() -> None:
    assert tokenise('The dog\'s T-shirt isn’t 3.5 cm, "wide" (really)!') == [
        "the", "dog", "'s", "t-shirt", "is", "n't", "3.5", "cm", "wide", "really",
    ]  # fmt: skip
    assert tokenise(" . ,") == []


def test_what_cannot_be_judged_is_an_error() -> None:
    with pytest.raises(ValueError, match="picture 1 of 2 has no reference"):
        cider_d(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        cider_d(["a"], [["a"], ["b"]])


SAID = ["a red dog runs", "two blue cats sleep", "one green bird sings", "three pink mice dance"]


def pool() -> Pool:
    """Picture m carries m + 1 in its pixels and has two captions."""
    images = (torch.arange(4).float() + 1)[:, None, None, None].expand(-1, 3, 2, 2)
    return Pool(
        images=list(images.split(3)), pictures=4,
        text_ids_PT=torch.zeros(8, 2), text_mask_PT=torch.ones(8, 2),
        text_image_P=torch.arange(4).repeat_interleave(2),
        captions=[text for said in SAID for text in (said, f"{said} here")],
    )  # fmt: skip


def test_a_captioner_that_looks_is_worth_more_with_its_picture() -> None:
    def write(image_BCHW: Tensor) -> list[str]:
        return [SAID[int(n) - 1] if n else "a dog" for n in image_BCHW[:, 0, 0, 0]]

    result = evaluate_captions(write, pool())
    assert result.exact == {"with_picture": 1.0, "withheld": 0.0, "shuffled": 0.0}
    assert result.cider["with_picture"] > 5 > 1 > result.cider["withheld"]
    assert result.cider["shuffled"] == 0.0  # no two pictures share a word
    assert result.withheld == "a dog"
    assert result.to_json()["distinct"] == 4


def test_a_captioner_that_does_not_look_is_worth_the_same_in_all_conditions() -> None:
    result = evaluate_captions(lambda image_BCHW: ["a red dog runs"] * len(image_BCHW), pool())
    assert result.cider["with_picture"] == result.cider["withheld"] == result.cider["shuffled"] > 0
    assert result.exact["with_picture"] == 0.25


def test_a_captioner_that_leaves_pictures_out_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 captions were written for 3 pictures"):
        evaluate_captions(lambda image_BCHW: ["a dog"], pool())


def test_the_first_pictures_of_a_pool_bring_their_captions() -> None:
    few = pool().first(2)
    assert [image.shape[0] for image in few.images] == [2]
    assert few.references() == [[said, f"{said} here"] for said in SAID[:2]]
    assert pool().first(9).pictures == 4
