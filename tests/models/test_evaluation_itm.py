"""Matched or not: exact accuracies of planted heads, one half for whatever does not look."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.evaluation.itm import NEGATIVES, evaluate_itm, hardest_pictures
from models.evaluation.pool import Pool
from tests.models.test_evaluation import Planted, pool_of


def planted_pool(pictures: int) -> Pool:
    """Two captions a picture; pixels say 1, 2, ..., so that the mean picture, 0, is none of them."""
    pool = pool_of(pictures, per_picture=2)
    return replace(pool, images=[image + 1 for image in pool.images])


def planted(match_MP: Tensor) -> Planted:
    """A head that follows the table; row 0, the mean picture, is put on top with zeros."""
    table = torch.cat([torch.full((1, match_MP.shape[1]), -0.5), match_MP])
    return Planted(torch.nn.functional.normalize(table + 0.01 * torch.rand(table.shape), dim=1), table)


def test_a_perfect_head_is_right_with_its_picture_alone() -> None:
    pictures = 30
    own_P = torch.arange(pictures).repeat_interleave(2)
    match_MP = torch.where(torch.arange(pictures)[:, None] == own_P[None, :], 1.0, -1.0)
    result = evaluate_itm(planted(match_MP), planted_pool(pictures), seeds=(0, 1))
    for negatives in NEGATIVES:
        assert result.mean(negatives, "with_picture") == 1.0
        assert result.mean(negatives, "withheld") == 0.5
        # no pair of swapped pictures is matched but by luck: all answers are `no`
        assert result.mean(negatives, "shuffled") == pytest.approx(0.5, abs=0.05)
    assert result.recall == 1.0
    assert set(result.to_json()["accuracy"]) == {"with_picture", "withheld", "shuffled"}


def test_a_head_that_reads_the_text_alone_is_right_half_of_the_time() -> None:
    pictures = 30
    match_MP = (torch.randn(1, 2 * pictures)).expand(pictures, -1)
    model = planted(match_MP)
    model.match_MP = torch.cat([match_MP[:1], match_MP])  # the mean picture is no exception
    result = evaluate_itm(model, planted_pool(pictures))
    assert {v for by in result.accuracy.values() for values in by.values() for v in values} == {0.5}


def test_only_the_hard_pictures_fool_a_head_that_goes_by_likeness() -> None:
    # caption p of picture m also fits picture m + 1, whose features are the nearest
    pictures = 20
    own_P = torch.arange(pictures).repeat_interleave(2)
    likeness = (torch.arange(pictures)[:, None] - own_P[None, :]) % pictures
    match_MP = torch.where(likeness <= 1, 1.0, -1.0)
    sim_MP = torch.where(likeness == 0, 1.0, torch.where(likeness == 1, 0.9, 0.0))
    model = planted(match_MP)
    model.sim_MP = torch.cat([torch.zeros(1, 2 * pictures), sim_MP])
    result = evaluate_itm(model, planted_pool(pictures), seeds=tuple(range(5)))
    assert result.mean("hard", "with_picture") == 0.5
    assert 0.9 < result.mean("random", "with_picture") < 1.0  # one in 19 wrong pictures fits


def test_the_hardest_picture_is_never_the_own_one() -> None:
    image_ME = torch.nn.functional.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))
    own_P = torch.arange(9).repeat(3)
    hard_P = hardest_pictures(image_ME, image_ME[own_P], own_P)
    sim = image_ME[own_P] @ image_ME.T
    for p, m in enumerate(own_P.tolist()):
        order = [i for i in sim[p].argsort(descending=True).tolist() if i != m]
        assert hard_P[p] == order[0]
    with pytest.raises(ValueError, match="one picture"):
        hardest_pictures(image_ME[:1], image_ME[:1], torch.zeros(1, dtype=torch.int64))


def test_a_system_without_fusion_is_refused() -> None:
    with pytest.raises(ValueError, match="Planted matches no pairs"):
        evaluate_itm(Planted(torch.rand(5, 10), None), pool_of(5, per_picture=2))
