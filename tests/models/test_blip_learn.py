"""A small BLIP learns a world of coloured squares in seconds; from its folder it captions and filters."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.batch import Batch, StepContext
from models.exported import ExportedConfig, write_exported
from models.images import ImageTransform
from models.inference.captioner import load_captioner
from models.inference.generation import Beam, Nucleus
from models.inference.load import load_exported
from models.inference.matcher import load_matcher
from models.recipes import blip
from models.tokenizer import train_wordpiece

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 230), "yellow": (230, 220, 30)}
PLACES = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}
WORLD = list(itertools.product(COLOURS, PLACES))
CAPTIONS = [f"a {colour} square at the {place}" for colour, place in WORLD]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def scene(index: int, seed: int) -> Image.Image:
    """The square on a grey ground with noise."""
    g = torch.Generator().manual_seed(100 * index + seed)
    pixels = 128 + torch.randint(-20, 21, (16, 16, 3), generator=g)
    colour, place = WORLD[index]
    top, left = PLACES[place]
    pixels[top : top + 8, left : left + 8] = torch.tensor(COLOURS[colour])
    return Image.fromarray(pixels.to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model after some seconds of training on all three objectives."""
    place = tmp_path_factory.mktemp("blip")
    tokenizer = train_wordpiece(CAPTIONS, vocab_size=80, folder=place / "tokenizer")
    config = tokenizer.fit(
        blip.Config(
            image_size=16, patch_size=4, vision_width=48, vision_depth=2, vision_heads=4, text_width=48,
            text_depth=2, text_heads=4, embed_dim=24, vocab_size=80, sep_id=3, dec_id=78, enc_id=79,
            max_text_length=12, text_positions=24, queue_size=64, momentum=0.98, dropout=0.0,
            prompt="a picture of ",
        )
    )  # fmt: skip
    transform = ImageTransform(size=16, mean=MEAN, std=STD)
    ids_PT, mask_PT = tokenizer.encode(CAPTIONS, config.max_text_length)
    torch.manual_seed(0)
    system = blip.build(config)
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=1e-3)
    g = torch.Generator().manual_seed(0)
    shown = torch.stack([torch.stack([transform(scene(i, s)) for s in range(8)]) for i in range(len(WORLD))])
    for step in range(240):
        rows = torch.randperm(len(WORLD), generator=g)[:12]
        batch = Batch(
            image_BCHW=shown[rows, torch.randint(0, 8, (12,), generator=g)],
            text_ids_BT=ids_PT[rows],
            text_mask_BT=mask_PT[rows],
            image_id_B=rows,
        )
        context = StepContext(seed=0, step=step, epoch_steps=50)
        system.begin_step(context, system.model)
        [extras] = system.prepare([batch], context)
        system.model(batch, context, extras)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        system.after_micro_step(batch, extras)
    exported = ExportedConfig(
        recipe="blip", size="tiny", model=asdict(config), image_mean=MEAN, image_std=STD,
        max_text_tokens=config.max_text_length, training={},
    )  # fmt: skip
    write_exported(place / "model", model=system.model, config=exported, tokenizer=tokenizer)
    return place / "model"


def test_it_writes_what_it_sees(folder: Path) -> None:
    captioner = load_captioner(folder, device="cpu")
    assert captioner.first_ids == (captioner.loaded.config.dec_id, *captioner.loaded.config.prompt_ids)
    assert len(captioner.first_ids) > 3
    unseen = [scene(i, 50) for i in range(len(WORLD))]
    for how in (None, Beam(beams=1), Beam(beams=5, max_length=24)):
        written = captioner.caption(unseen, how=how)
        assert [len(texts) for texts in written] == [1] * len(WORLD)
        right = [texts[0] == caption for texts, caption in zip(written, CAPTIONS, strict=True)]
        assert sum(right) >= 15, written


def test_samples_are_keyed_by_the_pictures_name(folder: Path) -> None:
    captioner = load_captioner(folder, device="cpu")
    how = Nucleus(candidates=3, p=0.9, min_length=5, max_length=20, repetition_penalty=1.0)
    pictures, names = [scene(i, 51) for i in range(6)], [f"0000{i}" for i in range(6)]
    together = captioner.caption(pictures, how=how, keys=names)
    assert captioner.caption(pictures[3:5], how=how, keys=names[3:5]) == together[3:5]
    right = [text == CAPTIONS[i] for i, texts in enumerate(together) for text in texts]
    assert sum(right) > len(right) / 2
    with pytest.raises(ValueError, match="0 keys for 6 pictures"):
        captioner.caption(pictures, how=how)
    with pytest.raises(ValueError, match="max_length 30 exceeds the model's 24 positions"):
        captioner.caption(pictures, how=Nucleus(), keys=names)


def test_the_filter_tells_right_from_wrong(folder: Path) -> None:
    matcher = load_matcher(folder, device="cpu")
    pictures = [scene(i, 52) for i in range(len(WORLD))]
    right = matcher.score(pictures, CAPTIONS)
    # near misses: the same place in another colour, the same colour at another place
    wrong_colour = matcher.score(pictures, CAPTIONS[4:] + CAPTIONS[:4])
    order = [i - i % 4 + (i + 1) % 4 for i in range(len(WORLD))]
    wrong_place = matcher.score(pictures, [CAPTIONS[i] for i in order])
    assert (right.matched_P > 0.5).float().mean() > 0.9
    assert (wrong_colour.matched_P < 0.5).float().mean() > 0.9
    assert (wrong_place.matched_P < 0.5).float().mean() > 0.9
    assert (right.similarity_P > wrong_colour.similarity_P).all()
    assert right.similarity_P.abs().max() <= 1.0001
    # many texts of few pictures are scored alike
    both = matcher.score(pictures[:2], [CAPTIONS[0], CAPTIONS[4], CAPTIONS[1]], picture=[0, 0, 1])
    expected = torch.stack([right.matched_P[0], wrong_colour.matched_P[0], right.matched_P[1]])
    torch.testing.assert_close(both.matched_P, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="1 texts for 2 pictures"):
        matcher.score(pictures[:2], CAPTIONS[:1])


def test_a_folder_serves_what_it_was_trained_for(folder: Path, tmp_path: Path) -> None:
    loaded = load_exported(folder, device="cpu")
    for objectives, load, complaint in (
        (("itc", "itm"), load_captioner, "was not trained to write"),
        (("lm",), load_matcher, "was not trained to match"),
    ):
        config = replace(loaded.config, objectives=objectives)
        exported = replace(loaded.exported, model=asdict(config))
        write_exported(
            tmp_path / "model", model=blip.BlipModel(config), config=exported, tokenizer=loaded.tokenizer
        )
        with pytest.raises(ValueError, match=complaint):
            load(tmp_path / "model", device="cpu")
