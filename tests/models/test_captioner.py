"""The captioner and the filter: of our folders and of transformers', in parts, and what cannot be either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.inference.captioner import Captioner, load_captioner, load_writer, parts
from models.inference.folders import describe, local_folder
from models.inference.generation import Beam, Nucleus
from models.inference.matcher import load_matcher
from models.published.reading import Reading, convert
from models.published.writing import write
from tests.models.blip_folders import write_blip, write_clip

PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((40, 40))
    for i in range(4)
]
KEYS = [f"{i:012d}" for i in range(4)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("ours") / "model", seed=3)


@pytest.fixture(scope="module")
def theirs(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as transformers has them, in both classes."""
    folder = tmp_path_factory.mktemp("theirs") / "model"
    write(ours, folder, "transformers")
    return folder


def captioning_alone(folder: Path, out: Path) -> Path:
    """What transformers' own captioner saves: no matching head."""
    from transformers import BlipForConditionalGeneration

    BlipForConditionalGeneration.from_pretrained(folder).save_pretrained(out)
    tokenizer_in(folder).save_pretrained(out)
    return out


def tokenizer_in(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@given(
    pictures=st.integers(0, 9), candidates=st.integers(1, 12), rows=st.integers(1, 30), beams=st.booleans()
)
def test_parts_cover_every_text_once_and_hold_few(
    pictures: int, candidates: int, rows: int, beams: bool
) -> None:
    how = Beam(beams=candidates) if beams else Nucleus(candidates=candidates)
    seen = []
    for which, part in parts(pictures, how, rows):
        cells = [(p, c) for p in range(pictures)[which] for c in range(candidates)[part]]
        assert 0 < len(cells) <= (max(rows, candidates) if beams else rows)
        seen += cells
    assert sorted(seen) == [(p, c) for p in range(pictures) for c in range(candidates)]
    assert len(set(seen)) == len(seen)


def test_texts_are_the_same_in_parts_and_in_any_batch(ours: Path) -> None:
    captioner = load_captioner(ours, device="cpu")
    how = Nucleus(candidates=7, min_length=3, max_length=14, seed=5)
    image = torch.stack([captioner.prepare(picture) for picture in PICTURES])
    whole = captioner.write(image, how=how, keys=KEYS)
    assert len({len(text.split()) for texts in whole for text in texts}) > 2  # some end early
    for rows in (1, 3, 7, 15):
        assert captioner.write(image, how=how, keys=KEYS, rows=rows) == whole
    back = captioner.write(image.flip(0), how=how, keys=KEYS[::-1])
    assert back == whole[::-1]


def test_a_blip_of_transformers_writes_the_same_tokens_here(ours: Path, theirs: Path) -> None:
    """Beam searches against transformers' own generate(), and against the folder it was made from."""
    from transformers import BlipForConditionalGeneration

    writer = load_writer(theirs, device="cpu")
    assert isinstance(writer, Captioner)
    reference = BlipForConditionalGeneration.from_pretrained(theirs).eval()
    image = torch.stack([writer.prepare(picture) for picture in PICTURES])
    for how in (
        Beam(scoring="generated"),
        Beam(beams=1, scoring="generated"),
        Beam(beams=5, min_length=2, max_length=12, repetition_penalty=1.2, scoring="generated"),
    ):
        ids = reference.generate(
            pixel_values=image, num_beams=how.beams, do_sample=False, min_length=how.min_length,
            max_length=how.max_length, repetition_penalty=how.repetition_penalty, early_stopping=False,
        )  # fmt: skip
        expected = [[writer.loaded.tokenizer.decode(row).strip()] for row in ids]
        assert writer.write(image, how=how) == expected
    how = Nucleus(candidates=3, min_length=3, max_length=14)
    assert writer.write(image, how=how, keys=KEYS) == load_captioner(ours, device="cpu").write(
        image, how=how, keys=KEYS
    )


def test_a_captioner_alone_is_no_filter(theirs: Path, tmp_path: Path) -> None:
    folder = captioning_alone(theirs, tmp_path / "alone")
    assert load_captioner(folder, device="cpu").caption(PICTURES[:1]) == load_captioner(
        theirs, device="cpu"
    ).caption(PICTURES[:1])
    with pytest.raises(ValueError, match="not trained to match"):
        load_matcher(folder, device="cpu")
    convert(folder, tmp_path / "converted", Reading(source="transformers"))
    with pytest.raises(ValueError, match="not trained to match"):
        load_matcher(tmp_path / "converted", device="cpu")


def test_the_filter_is_transformers_itm_and_needs_no_text_mode(theirs: Path) -> None:
    from transformers import BlipForImageTextRetrieval

    matcher = load_matcher(theirs, device="cpu")
    reference = BlipForImageTextRetrieval.from_pretrained(theirs).eval()
    texts = ["a red car", "the green house by the river", "two dogs", "", "old town"]
    owner = [0, 0, 1, 3, 3]
    image = torch.stack([matcher.loaded.preprocess(picture) for picture in PICTURES])
    found = matcher.matched(image, texts, picture=owner, rows=2)
    known = matcher.score_prepared(image, texts, picture=owner).matched_P.tolist()
    assert found == pytest.approx(known, abs=1e-6)
    for text, at, value in zip(texts, owner, found, strict=True):
        ids, mask = matcher.loaded.tokenizer.encode([text], 24)
        ids[:, 0] = matcher.loaded.config.enc_id
        with torch.no_grad():
            logits = reference(ids, image[at : at + 1], attention_mask=mask, use_itm_head=True).itm_score
        assert logits.softmax(-1)[0, 1].item() == pytest.approx(value, abs=1e-5)


def test_a_prompt_is_read_and_not_repeated(tmp_path: Path, ours: Path) -> None:
    trained = load_captioner(write_blip(tmp_path / "m", prompt="a picture of"), device="cpu")
    assert load_captioner(tmp_path / "m", device="cpu", prompt="").first_ids == trained.first_ids[:1]
    given = load_captioner(ours, device="cpu", prompt="a picture of")
    assert given.first_ids == (given.loaded.config.dec_id, *trained.first_ids[1:])
    [[text]] = given.caption(PICTURES[:1], how=Beam(max_length=12))
    assert not text.startswith("a picture of")
    with pytest.raises(ValueError, match="leaves no room after 4 first tokens"):
        given.check(Beam(min_length=1, max_length=4))
    with pytest.raises(ValueError, match="exceeds the model's 40 positions"):
        given.check(Beam(max_length=41))


def test_folders_say_what_they_are(ours: Path, theirs: Path, tmp_path: Path) -> None:
    writer = describe(write_blip(tmp_path / "w", objectives=("lm",)))
    assert (writer.writes, writer.matches, writer.kind) == (True, False, "blip")
    clip = describe(write_clip(tmp_path / "c"))
    assert (clip.writes, clip.matches) == (False, False)
    assert (describe(theirs).ours, describe(theirs).kind) == (False, "blip")
    for name, text, message in (
        ("a", None, "has no config.json"),
        ("b", "{", "no JSON"),
        ("d", "{}", "neither"),
    ):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            describe(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        local_folder(str(tmp_path / "nowhere"))


def test_the_hubs_copy_is_found_without_the_network(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    cache = tmp_path / "models--some--blip"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / ("0" * 40)).symlink_to(theirs)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants", constants)
    found = local_folder("hf:some/blip@main")
    assert found.resolve() == theirs.resolve()
    assert load_captioner("hf:some/blip", device="cpu").first_ids
    with pytest.raises(ValueError, match="'hf:some/other' cannot be fetched"):
        local_folder("hf:some/other")
    with pytest.raises(ValueError, match="cannot be fetched"):
        local_folder("hf:")


def test_weights_for_another_picture_size_are_refused(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "m")
    facts = json.loads((tmp_path / "m" / "config.json").read_text())
    facts["model"]["image_size"] = 64
    (tmp_path / "m" / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="does not fit the model"):
        load_captioner(tmp_path / "m", device="cpu")
