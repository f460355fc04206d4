"""Beam search and sampling: against transformers, then and now; the cache; draws that know no batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.inference.generation import Beam, Nucleus, draw_nucleus, generate
from models.recipes import blip
from tests.fidelity.blip import CONFIG, Reference, make_batch, reference_of, shaken
from tests.models.toy_language import END, TableDecoder

DATA = Path(__file__).parent / "data"
PICTURES = 6


@pytest.fixture(scope="module")
def writer() -> tuple[Any, Reference, Tensor]:
    """A model with a lively tongue, transformers' twin, and pictures."""
    torch.manual_seed(0)
    model = blip.build(CONFIG).model
    shaken(model, seed=1)
    with torch.no_grad():
        model.text.embed.word.weight.mul_(2.0)
        model.lm_head.bias[CONFIG.sep_id] += 2.0
    return (
        model.eval(),
        reference_of(model, CONFIG),
        make_batch(CONFIG, torch.float32, seed=4, size=6).pictures,
    )


def write(model: Any, image_MCHW: Tensor, how: Beam | Nucleus, prompt: tuple[int, ...] = ()) -> Any:
    with torch.inference_mode():
        tokens = model.encode_image(image_MCHW).tokens_BND
        ids = torch.arange(len(tokens)) + 100
        return generate(model.decoder(tokens), (CONFIG.dec_id, *prompt), ids, how=how, end_id=CONFIG.sep_id)


HOWS = [
    Beam(beams=1, scoring="generated"),
    Beam(beams=1, min_length=12, max_length=20, repetition_penalty=1.3, scoring="generated"),
    Beam(scoring="generated"),
    Beam(min_length=10, scoring="generated"),
    Beam(beams=5, max_length=16, repetition_penalty=1.2, scoring="generated"),
    Beam(beams=2, min_length=0, max_length=12, length_penalty=2.0, scoring="generated"),
]


@pytest.mark.parametrize("prompt", [(), (11, 12, 13)], ids=["", "prompt"])
@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.beams}-{how.min_length}-{how.max_length}")
def test_transformers_writes_the_same_tokens(
    writer: tuple[Any, Reference, Tensor], how: Beam, prompt: tuple[int, ...]
) -> None:
    model, reference, image = writer
    first = torch.tensor([[CONFIG.dec_id, *prompt, CONFIG.sep_id]] * len(image))
    theirs = reference.decoder.generate(
        image, first, num_beams=how.beams, do_sample=False, min_length=how.min_length,
        max_length=how.max_length, repetition_penalty=how.repetition_penalty,
        length_penalty=how.length_penalty, early_stopping=False,
    ).tolist()  # fmt: skip
    ours = write(model, image, how, prompt)
    for row, [text] in zip(theirs, ours, strict=True):
        text = [CONFIG.dec_id, *prompt, *text]
        assert row[: len(text)] == text
        assert row[len(text) :] == [] or row[len(text)] == CONFIG.sep_id
        assert how.min_length <= len(text) <= how.max_length
    assert len({tuple(text) for [text] in ours}) > 1  # the pictures matter
    if how.min_length < 10:
        assert any(len(text) + 1 + len(prompt) < how.max_length for [text] in ours)  # and some texts end


def test_the_published_codes_beam_search_finds_the_same_texts() -> None:
    """320 searches by the scorer of transformers 4.15; the newer scoring decides a quarter otherwise."""
    frozen = json.loads((DATA / "beams_transformers_4_15.json").read_text())
    otherwise = cut = 0
    for case in frozen["cases"]:
        found = {}
        for scoring in ("blip", "generated"):
            decoder = TableDecoder(case["seed"], pictures=frozen["pictures"], end=case["end"])
            how = Beam(**case["how"], scoring=scoring)
            ids = torch.arange(frozen["pictures"])
            found[scoring] = [text for [text] in generate(decoder, case["first"], ids, how=how, end_id=END)]
        assert found["blip"] == case["texts"], case
        otherwise += found["generated"] != found["blip"]
        cut += any(len(case["first"]) + len(text) == how.max_length for text in case["texts"])
    assert otherwise > 20
    assert 20 < cut < len(frozen["cases"])


def test_cached_logits_equal_those_of_the_whole_text(writer: tuple[Any, Reference, Tensor]) -> None:
    model, _, image = writer
    with torch.inference_mode():
        tokens = model.encode_image(image[:3]).tokens_BND
        decoder = model.decoder(tokens)
        ids_MCL = torch.tensor([[[CONFIG.dec_id, 11, 12]]] * 3)
        logits_MCV = decoder.advance(ids_MCL)
        g = torch.Generator().manual_seed(0)
        picture_K, parent_KC = torch.arange(3), torch.zeros(3, 4, dtype=torch.int64)
        for step in range(5):
            whole = model.lm_logits(
                ids_MCL.flatten(0, 1), torch.ones_like(ids_MCL.flatten(0, 1)), tokens,
                rows_B=torch.arange(len(ids_MCL)).repeat_interleave(ids_MCL.shape[1]),
            )  # fmt: skip
            torch.testing.assert_close(logits_MCV.flatten(0, 1), whole[:, -1], rtol=1e-4, atol=1e-5)
            if step == 2:  # the middle picture is done
                picture_K = torch.tensor([0, 2])
                tokens = tokens[picture_K]
            decoder.keep(picture_K, parent_KC[: len(picture_K)])
            ids_MCL = ids_MCL[picture_K].gather(
                1, parent_KC[: len(picture_K), :, None].expand(-1, -1, 3 + step)
            )
            picture_K = torch.arange(len(picture_K))
            parent_KC = torch.randint(0, 4, (3, 4), generator=g)
            new_MC1 = torch.randint(5, 60, (len(ids_MCL), 4, 1), generator=g)
            ids_MCL = torch.cat([ids_MCL, new_MC1], dim=2)
            logits_MCV = decoder.advance(new_MC1)


def test_a_picture_gets_the_same_texts_in_every_batch(writer: tuple[Any, Reference, Tensor]) -> None:
    model, _, image = writer
    for how in (Beam(), Beam(beams=1), Nucleus(candidates=3, min_length=4, max_length=15)):
        together = write(model, image, how)
        tokens = model.encode_image(image).tokens_BND
        for rows in ([0], [4, 1], [5, 3, 2, 0]):
            decoder = model.decoder(tokens[rows])
            ids = torch.tensor(rows) + 100
            apart = generate(decoder, (CONFIG.dec_id,), ids, how=how, end_id=CONFIG.sep_id)
            assert apart == [together[row] for row in rows]


def test_samples_depend_on_seed_picture_and_candidate(writer: tuple[Any, Reference, Tensor]) -> None:
    model, _, image = writer
    same = image[:1].expand(PICTURES, -1, -1, -1)
    how = Nucleus(candidates=4, min_length=4, max_length=15, seed=1)
    texts = write(model, same, how)
    assert len({tuple(text) for picture in texts for text in picture}) > 20
    assert write(model, same, how) == texts
    fewer = write(model, same, Nucleus(candidates=2, min_length=4, max_length=15, seed=1))
    assert fewer == [picture[:2] for picture in texts]
    assert write(model, same, Nucleus(candidates=4, min_length=4, max_length=15, seed=2)) != texts
    lengths = {len(text) for picture in texts for text in picture}
    assert min(lengths) >= 3
    assert max(lengths) <= 14
    assert len(lengths) > 1


@pytest.mark.parametrize(("p", "top_k"), [(0.9, 50), (0.9, 0), (0.5, 0), (1.0, 5), (0.3, 4)])
def test_the_nucleus_is_transformers_and_frequencies_are_its_probabilities(p: float, top_k: int) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    draws = 4000
    logits_MV = 2 * torch.randn(6, 60, generator=torch.Generator().manual_seed(0))
    kept_MV = logits_MV.clone()
    if top_k:
        kept_MV = TopKLogitsWarper(top_k)(None, kept_MV)
    if p < 1:
        kept_MV = TopPLogitsWarper(p)(None, kept_MV)
    expected_MV = kept_MV.softmax(-1)
    # an even grid of numbers instead of random ones: frequencies are exact to 1/draws
    grid_MC = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).expand(6, -1)
    token_MC = draw_nucleus(logits_MV[:, None].expand(-1, draws, -1), grid_MC, p=p, top_k=top_k)
    count_MV = torch.zeros(6, 60).scatter_add_(1, token_MC, torch.ones(6, draws))
    assert (count_MV / draws - expected_MV).abs().max() < 1.5 / draws
    assert not (count_MV > 0)[expected_MV == 0].any()


def test_impossible_settings_are_refused(writer: tuple[Any, Reference, Tensor]) -> None:
    with pytest.raises(ValueError, match="min_length 9 must lie between 0 and max_length 5"):
        Beam(min_length=9, max_length=5)
    with pytest.raises(ValueError, match="0 beams"):
        Beam(beams=0)
    with pytest.raises(ValueError, match=r"p 0 must lie in \(0, 1\]"):
        Nucleus(p=0)
    with pytest.raises(ValueError, match="max_length 5 leaves no room after 5 first tokens"):
        write(writer[0], writer[2], Beam(max_length=5), prompt=(11, 12, 13, 14))
