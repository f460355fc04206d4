"""The scorer gives what the wrapped model gives, for open_clip weights and for our own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from models.exported import ExportedConfig, load_weights, unique_weights, write_exported
from models.inference.clip import load_clip
from models.inference.load import load_exported
from models.recipes import RECIPES
from models.tokenizer import train_wordpiece
from models.training.config import CLIP_MEAN, CLIP_STD, to_dict

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TEXTS = ["a red circle", "a blue square on the left of a very long caption that must be cut somewhere"]
OVERRIDES: dict[str, dict[str, Any]] = {
    "clip": {"vision_depth": 1, "text_depth": 1, "embed_dim": 16, "max_text_length": 12},
    "albef": {"vision_depth": 1, "text_depth": 2, "fusion_start": 1, "embed_dim": 16, "max_text_length": 12},
}


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def open_clip_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small architecture known to open_clip, and a file of random weights for it."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "pairmill-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    weights = folder / "weights.pt"
    torch.save(open_clip.create_model("pairmill-small").state_dict(), weights)
    return "pairmill-small", weights


def export(folder: Path, recipe: str) -> Path:
    """A model folder with random weights."""
    tokenizer = train_wordpiece(TEXTS * 3, vocab_size=80, folder=folder / "tokenizer")
    sizes = RECIPES[recipe].SIZES["tiny"]
    config = tokenizer.fit(type(sizes)(**{**to_dict(sizes), **OVERRIDES[recipe]}))
    torch.manual_seed(0)
    facts = ExportedConfig(
        recipe=recipe, size="tiny", model=to_dict(config), image_mean=CLIP_MEAN, image_std=CLIP_STD,
        max_text_tokens=12, training={"step": 3},
    )  # fmt: skip
    write_exported(
        folder / "model", model=RECIPES[recipe].build(config).model, config=facts, tokenizer=tokenizer
    )
    return folder / "model"


@pytest.fixture(scope="module", params=["clip", "albef"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exported"), request.param)


def test_open_clip_scores_are_open_clips_own(open_clip_weights: tuple[str, Path]) -> None:
    name, weights = open_clip_weights
    scorer = load_clip(name, pretrained=str(weights), device="cpu")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(weights))
    model.eval()
    images = torch.stack([preprocess(p) for p in pictures()])
    assert torch.equal(images, torch.stack([scorer.preprocess(p) for p in pictures()]))
    with torch.no_grad():
        image = model.encode_image(images, normalize=True)
        text = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
    torch.testing.assert_close(scorer.encode_images(images), image, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scorer.encode_texts(TEXTS), text, rtol=1e-6, atol=1e-6)


def test_the_fingerprint_follows_the_weights(open_clip_weights: tuple[str, Path], tmp_path: Path) -> None:
    name, weights = open_clip_weights
    again, other = tmp_path / "same.pt", tmp_path / "other.pt"
    again.write_bytes(weights.read_bytes())
    state = torch.load(weights, weights_only=True)
    torch.save({k: v + 1e-3 for k, v in state.items()}, other)
    first, same, changed = (load_clip(name, pretrained=str(p)).fingerprint for p in (weights, again, other))
    assert first == same
    assert first != changed


def test_our_own_models_score_as_the_network_does(exported: Path) -> None:
    scorer, loaded = load_clip(str(exported), device="cpu"), load_exported(exported, device="cpu")
    images = torch.stack([scorer.preprocess(p) for p in pictures()])
    ids, mask = loaded.tokenizer.encode(TEXTS, 12)
    network: Any = loaded.model
    torch.testing.assert_close(scorer.encode_images(images), network.encode_image(images).feature_BE)
    torch.testing.assert_close(scorer.encode_texts(TEXTS), network.encode_text(ids, mask).feature_BE)
    for vectors in (scorer.encode_images(images), scorer.encode_texts(TEXTS)):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert len(scorer.fingerprint) == 64


def test_preprocess_works_from_many_threads(exported: Path) -> None:
    scorer = load_clip(str(exported))
    images = pictures() * 20
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(scorer.preprocess, images))
    assert all(torch.equal(a, scorer.preprocess(b)) for a, b in zip(parallel, images, strict=True))


def test_weights_survive_the_folder_bit_by_bit(exported: Path) -> None:
    loaded = load_exported(exported, device="cpu")
    torch.manual_seed(99)
    fresh = RECIPES[loaded.exported.recipe].build(loaded.config).model
    load_weights(fresh, exported)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(3, 3, bias=False), "b": torch.nn.Linear(3, 3, bias=False)}
    )
    model["b"].weight = model["a"].weight
    weights, tied = unique_weights(model)
    assert set(weights) == {"a.weight"}
    assert tied == {"b.weight": "a.weight"}


def test_what_is_wrong_is_said(exported: Path, open_clip_weights: tuple[str, Path], tmp_path: Path) -> None:
    _, weights = open_clip_weights
    with pytest.raises(ValueError, match="does not exist"):
        load_clip("runs/nothing/model")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_clip(str(tmp_path))
    with pytest.raises(ValueError, match="knows no model 'ViT-B-33'"):
        load_clip("ViT-B-33", pretrained="openai")
    with pytest.raises(ValueError, match="needs pretrained"):
        load_clip("ViT-B-32")
    with pytest.raises(ValueError, match="neither a file nor a tag of ViT-B-32"):
        load_clip("ViT-B-32", pretrained="laion9b")
    with pytest.raises(ValueError, match="cannot be loaded from"):
        load_clip("RN50", pretrained=str(weights))
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be loaded from"):
        load_clip("RN50", pretrained=str(tmp_path / "page.pt"))
    with pytest.raises(ValueError, match="leave pretrained away"):
        load_clip(str(exported), pretrained="openai")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "vilt9"}, "unknown recipe 'vilt9'; there are albef, blip, clip, vlmo"),
        ({"format": 7}, "format 7, this version reads 1"),
        ({"model": {"image_size": 64, "wings": 2}}, "has no wings"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = export(tmp_path, "clip")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(ValueError, match=message):
        load_exported(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = export(tmp_path, "clip")
    facts = json.loads((folder / "config.json").read_text())
    facts["model"]["embed_dim"] = 32
    (folder / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"does not fit the model.*shapes \['image_projection"):
        load_exported(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        load_exported(folder)
