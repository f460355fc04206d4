"""Exact recalls on planted features, chance for a model that knows nothing, pictures read or ignored."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.evaluation.mlm import evaluate_mlm, find_spans
from models.evaluation.pool import Pool, derangement
from models.evaluation.ranking import recall_at
from models.evaluation.retrieval import evaluate_retrieval, top_candidates
from models.recipes.base import ImageOutput, TextOutput


@dataclass
class Planted:
    """A model whose similarity and matching are tables; picture and caption numbers are their contents."""

    sim_MP: Tensor
    match_MP: Tensor | None

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput:
        number_B = image_BCHW[:, 0, 0, 0].long()
        # features that reproduce the table: one axis per caption
        tokens = None if self.match_MP is None else number_B[:, None, None].float()
        return ImageOutput(feature_BE=self.sim_MP[number_B], tokens_BND=tokens)

    def encode_text(self, text_ids_BT: Tensor, text_mask_BT: Tensor) -> TextOutput:
        number_B = text_ids_BT[:, 0]
        states = (
            None
            if self.match_MP is None
            else number_B[:, None, None].float().expand(-1, text_ids_BT.shape[1], 1)
        )
        return TextOutput(feature_BE=torch.eye(self.sim_MP.shape[1])[number_B], states_BTD=states)

    def match(
        self, image_tokens_BND: Tensor, text_states_BTD: Tensor, text_mask_BT: Tensor, *, rows_B: Tensor
    ) -> Tensor:
        assert self.match_MP is not None
        picture_B = image_tokens_BND[rows_B][:, 0, 0].long()
        score_B = self.match_MP[picture_B, text_states_BTD[:, 0, 0].long()]
        return torch.stack([torch.zeros_like(score_B), score_B], dim=1)


def pool_of(pictures: int, per_picture: int = 1, batch: int = 7) -> Pool:
    images = torch.arange(pictures).float()[:, None, None, None].expand(-1, 3, 2, 2)
    owner_P = torch.arange(pictures).repeat_interleave(per_picture)
    captions = len(owner_P)
    mask_PT = torch.ones(captions, 3, dtype=torch.int64)
    mask_PT[::2, 2] = 0
    return Pool(
        images=list(images.split(batch)),
        pictures=pictures,
        text_ids_PT=torch.arange(captions)[:, None].expand(-1, 3).contiguous(),
        text_mask_PT=mask_PT,
        text_image_P=owner_P,
    )


def test_planted_ranks_give_exact_recalls() -> None:
    # picture m's own caption stands at rank m: m other captions score higher
    pictures = 20
    sim_MP = torch.zeros(pictures, pictures)
    for m in range(pictures):
        others = [p for p in range(pictures) if p != m]
        order = [*others[:m], m, *others[m:]]
        sim_MP[m, order] = torch.linspace(1, -1, pictures)
    result = evaluate_retrieval(Planted(sim_MP, None), pool_of(pictures), top_k=16)
    assert result.seen.text == {1: 1 / 20, 5: 5 / 20, 10: 10 / 20}
    assert result.pairs == 0
    assert result.top_k == 0


def test_matching_reranks_the_top_k_alone() -> None:
    pictures, k = 30, 4
    generator = torch.Generator().manual_seed(0)
    sim_MP = torch.rand(pictures, pictures, generator=generator)
    perfect = torch.eye(pictures)
    result = evaluate_retrieval(Planted(sim_MP, perfect), pool_of(pictures), top_k=k)
    inside = (sim_MP >= sim_MP.topk(k, dim=1).values[:, -1:]).diagonal().float().mean()
    inside_t = (sim_MP >= sim_MP.topk(k, dim=0).values[-1:]).diagonal().float().mean()
    # a perfect matcher puts it first if, and only if, the features let it into the top k
    assert result.seen.text[1] == pytest.approx(float(inside))
    assert result.seen.image[1] == pytest.approx(float(inside_t))
    assert result.top_k == k
    assert result.seen.itc_text[1] == pytest.approx(
        float((sim_MP.argmax(1) == torch.arange(pictures)).float().mean())
    )


def test_several_captions_a_picture() -> None:
    # pictures 0..9 with 5 captions each; only the last caption of each picture is found
    pictures = 10
    sim_MP = torch.zeros(pictures, 50)
    for m in range(pictures):
        sim_MP[m, 5 * m + 4] = 1.0
        sim_MP[m, [p for p in range(50) if p // 5 != m]] = 0.5
    result = evaluate_retrieval(Planted(sim_MP, None), pool_of(pictures, 5))
    assert result.seen.text[1] == 1.0  # one of five is enough
    assert result.seen.image[1] == pytest.approx(1 / 5)  # four of five captions find another picture first
    assert result.captions == 50


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_that_knows_nothing_scores_chance(fused: bool) -> None:
    pictures = 200
    constant = torch.full((pictures, pictures), 0.3)
    model = Planted(constant, torch.zeros(pictures, pictures) if fused else None)
    seen: dict[int, list[float]] = {1: [], 5: [], 10: []}
    for seed in range(20 if fused else 1):
        result = evaluate_retrieval(model, pool_of(pictures), top_k=16, seed=seed)
        for k in seen:
            seen[k] += [result.seen.text[k], result.seen.image[k]]
    for k, values in seen.items():
        mean = sum(values) / len(values)
        if fused:  # which candidates enter the top k is drawn
            assert mean == pytest.approx(k / pictures, rel=0.35)
        else:
            assert mean == pytest.approx(k / pictures, rel=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_blind_retrieval_falls_to_chance(fused: bool) -> None:
    # every picture finds its caption; the mean picture, whose pixels say 0, stands for picture 0
    pictures, k = 40, 8
    perfect = torch.eye(pictures)
    model = Planted(perfect + 0.01 * torch.rand(pictures, pictures), perfect if fused else None)
    result = evaluate_retrieval(model, pool_of(pictures), top_k=k)
    assert result.seen.text[1] == result.seen.image[1] == 1.0
    withheld, shuffled = result.by["withheld"], result.by["shuffled"]
    # one answer for all pictures: right for one of them; captions see equal pictures and take any
    assert withheld.text[1] == withheld.itc_text[1] == pytest.approx(1 / pictures)
    assert withheld.image == pytest.approx({n: n / pictures for n in (1, 5, 10)})
    # each picture stands for another one, whose caption comes first
    assert shuffled.text[1] == shuffled.image[1] == shuffled.itc_text[1] == 0.0
    assert set(result.to_json()) >= {"tr", "ir", "itc", "withheld", "shuffled", "chance"}


def test_expected_recall_over_ties_is_exact() -> None:
    score = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0], [2.0, 1.0, 1.0, 0.0, 0.0]])
    positive = torch.tensor([[True, False, False, False, False], [False, True, True, False, False]])
    # query 0: one positive among 4 equal ones; query 1: one better, then two positives
    assert recall_at(score[:1], positive[:1], [1, 2, 4]) == pytest.approx({1: 0.25, 2: 0.5, 4: 1.0})
    assert recall_at(score[1:], positive[1:], [1, 2, 5]) == pytest.approx({1: 0.0, 2: 1.0, 5: 1.0})
    three = torch.tensor([[1.0] * 6]), torch.tensor([[True, True, False, False, False, False]])
    assert recall_at(*three, [2])[2] == pytest.approx(1 - (4 * 3) / (6 * 5))


def test_a_query_without_a_positive_or_a_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="query 1 of 2 has no positive"):
        recall_at(torch.rand(2, 3), torch.tensor([[True, False, False], [False, False, False]]), [1])
    with pytest.raises(ValueError, match="NaN"):
        recall_at(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[True, False]]), [1])


def test_equal_candidates_enter_the_top_k_by_lot() -> None:
    chosen = top_candidates(torch.zeros(4, 50), 5, seed=0)
    assert chosen.sum(1).tolist() == [5] * 4
    assert not torch.equal(chosen, top_candidates(torch.zeros(4, 50), 5, seed=1))


class WordTokenizer:
    """Whole words, except that `violet` is `vio` + `##let`."""

    vocabulary = (
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "blue",
        "vio",
        "##let",
        "dog",
        "cat",
        "let",
    )
    special_ids = (0, 1, 2, 3)
    mask_id, vocab_size = 3, len(vocabulary)

    def encode(self, texts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
        rows = [
            [1, *(self.vocabulary.index(p) for p in t.replace("violet", "vio ##let").split()), 2]
            for t in texts
        ]
        width = max(map(len, rows))
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        return ids, (ids > 0).long()

    def tokens(self, ids: list[int]) -> list[str]:
        return [self.vocabulary[i] for i in ids]


@dataclass
class Reader:
    """Names the masked word from the picture (its number is written in its pixels), or without looking."""

    answers_PT: Tensor
    looks: bool

    def encode_image(self, image_BCHW: Tensor) -> ImageOutput:
        return ImageOutput(feature_BE=torch.ones(len(image_BCHW), 1), tokens_BND=image_BCHW[:, :1, :1, 0])

    def mlm_logits(self, text_ids_BT: Tensor, text_mask_BT: Tensor, image_tokens_BND: Tensor) -> Tensor:
        number_B = image_tokens_BND[:, 0, 0].long() if self.looks else torch.ones(len(text_ids_BT)).long()
        answer_BT = self.answers_PT[(number_B - 1).clamp(min=0)]
        return torch.nn.functional.one_hot(answer_BT, WordTokenizer.vocab_size).float()


CAPTIONS = ["a red dog", "a blue cat", "a violet dog", "a red cat"]
WORDS = {"colour": ["red", "blue", "violet"], "object": ["dog", "cat", "let"]}


def mlm_pool() -> Pool:
    ids_PT, mask_PT = WordTokenizer().encode(CAPTIONS, 16)
    # pictures carry 1, 2, ... so that the mean picture, 0, is none of them
    images = (torch.arange(len(CAPTIONS)).float() + 1)[:, None, None, None].expand(-1, 3, 2, 2)
    return Pool(
        images=[images], pictures=len(CAPTIONS), text_ids_PT=ids_PT, text_mask_PT=mask_PT,
        text_image_P=torch.arange(len(CAPTIONS)),
    )  # fmt: skip


def test_words_are_found_whole() -> None:
    pool = mlm_pool()
    spans = find_spans(pool.text_ids_PT, pool.text_mask_PT, tokenizer=WordTokenizer(), words=WORDS)
    assert [[(s.start, s.stop, s.group) for s in found] for found in spans] == [
        [(2, 3, "colour"), (3, 4, "object")],
        [(2, 3, "colour"), (3, 4, "object")],
        [(2, 4, "colour"), (4, 5, "object")],
        [(2, 3, "colour"), (3, 4, "object")],
    ]


def test_a_model_that_reads_pictures_is_right_with_them_only() -> None:
    pool = mlm_pool()
    result = evaluate_mlm(Reader(pool.text_ids_PT, looks=True), pool, tokenizer=WordTokenizer(), words=WORDS)
    assert result.mean("with_picture") == 1.0
    # the mean picture answers as caption 0: right by luck only
    assert result.mean("withheld") < 0.8
    assert result.mean("shuffled") < 0.8
    assert result.counts["all"] == 12
    assert result.counts["colour"] + result.counts["object"] == 12


def test_a_model_that_ignores_pictures_is_no_better_with_them() -> None:
    pool = mlm_pool()
    result = evaluate_mlm(Reader(pool.text_ids_PT, looks=False), pool, tokenizer=WordTokenizer(), words=WORDS)
    assert result.accuracy["with_picture"] == result.accuracy["withheld"] == result.accuracy["shuffled"]


def test_no_caption_keeps_its_own_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    picture_P = torch.tensor([0, 0, 0, 1, 2, 3, 4, 4])
    for _ in range(50):
        assert not (derangement(picture_P, generator) == picture_P).any()
    with pytest.raises(ValueError, match="one picture"):
        derangement(torch.zeros(5), generator)


def test_words_that_no_caption_holds_are_an_error() -> None:
    with pytest.raises(ValueError, match="none of 4 captions"):
        evaluate_mlm(
            Reader(mlm_pool().text_ids_PT, looks=True),
            mlm_pool(),
            tokenizer=WordTokenizer(),
            words={"x": ["let"]},
        )
