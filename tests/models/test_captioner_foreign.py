"""Any captioner of transformers: keyed draws in any batch, its own beam search, each picture encoded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.inference.captioner import load_writer
from models.inference.foreign import ForeignCaptioner
from models.inference.generation import Beam, Nucleus
from tests.models.foreign_folders import write_foreign

KINDS = ("git", "vision-encoder-decoder", "blip-2")
PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)) for i in range(3)
]
KEYS = ["a", "b", "c"]
HOW = Nucleus(candidates=3, min_length=4, max_length=12)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("foreign") / "model", request.param)


@pytest.mark.parametrize("prompt", [None, "a picture of"])
def test_draws_know_no_batch(folder: Path, prompt: str | None) -> None:
    writer = load_writer(folder, device="cpu", prompt=prompt)
    assert isinstance(writer, ForeignCaptioner)
    prepared = [writer.prepare(picture) for picture in PICTURES]
    together = writer.write_prepared(prepared, how=HOW, keys=KEYS)
    assert [len(set(texts)) for texts in together] == [3, 3, 3]
    assert writer.write_prepared(prepared[1:], how=HOW, keys=KEYS[1:]) == together[1:]
    assert writer.write_prepared(prepared, how=HOW, keys=KEYS, rows=2) == together
    torch.manual_seed(99)  # transformers' own generator decides nothing
    assert writer.write_prepared(prepared, how=HOW, keys=KEYS) == together
    other = Nucleus(candidates=3, min_length=4, max_length=12, seed=1)
    assert writer.write_prepared(prepared, how=other, keys=KEYS) != together
    if prompt:
        assert not any(text.startswith(prompt) for texts in together for text in texts)


def test_a_beam_search_is_transformers_own(folder: Path) -> None:
    writer: Any = load_writer(folder, device="cpu")
    prepared = [writer.prepare(picture) for picture in PICTURES]
    found = writer.write_prepared(prepared, how=Beam(min_length=1, max_length=9), keys=KEYS)
    for picture, [text] in zip(prepared, found, strict=True):
        ids = writer.model.generate(**picture, num_beams=3, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert writer.tokenizer.decode(ids[0], skip_special_tokens=True).strip() == text


def test_each_picture_is_encoded_once(folder: Path) -> None:
    writer: Any = load_writer(folder, device="cpu")
    model = writer.model
    tower = next(
        part for part in (
            getattr(getattr(model, "git", None), "image_encoder", None),
            getattr(model, "encoder", None), getattr(model, "vision_model", None),
        ) if part is not None
    )  # fmt: skip
    embedded: list[int] = []
    patches = next(m for m in tower.modules() if isinstance(m, torch.nn.Conv2d))
    patches.register_forward_pre_hook(lambda _, args: embedded.append(len(args[0])))
    writer.write_prepared([writer.prepare(picture) for picture in PICTURES], how=HOW, keys=KEYS)
    assert embedded == [3]


def test_a_folder_that_cannot_write_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in sorted(weights) if name.endswith("weight") and "layer" in name)
    del weights[lost]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        load_writer(broken, device="cpu")
    facts = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**facts, "model_type": "bert"}))
    with pytest.raises(ValueError, match="holds no captioner"):
        load_writer(broken, device="cpu")
