"""CLIP and BLIP for open_clip and transformers: their libraries load the folders and compute what we do."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from models.exported import ExportedConfig, write_exported
from models.inference.load import LoadedModel, load_exported
from models.published.files import read_state_dict
from models.published.reading import Reading, convert
from models.published.sizes import plain
from models.published.tokenizers import clip_tokenizer
from models.published.writing import write
from models.recipes import RECIPES
from models.tokenizer import Tokenizer, load_tokenizer, train_wordpiece
from models.training.config import CLIP_MEAN, CLIP_STD
from tests.models.published_world import bert_tokenizer

TEXTS = ["a red car on the left", "two dogs", "a painting of the sea at night"]
CLIP = RECIPES["clip"].Config(
    image_size=32, patch_size=8, vision_width=128, vision_depth=2, vision_heads=4, text_width=64,
    text_depth=2, text_heads=2, embed_dim=24, max_text_length=16,
)  # fmt: skip


def export(folder: Path, recipe: str, config: Any, tokenizer: Tokenizer) -> Path:
    """A model folder with random weights, large enough that each one matters."""
    torch.manual_seed(0)
    fitted = tokenizer.fit(config)
    model: nn.Module = RECIPES[recipe].build(fitted).model
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    facts = ExportedConfig(
        recipe=recipe, size="tiny", model=plain(fitted), image_mean=CLIP_MEAN, image_std=CLIP_STD,
        max_text_tokens=fitted.max_text_length, training={},
    )  # fmt: skip
    write_exported(folder, model=model, config=facts, tokenizer=tokenizer)
    return folder


#: OpenAI's vocabulary takes seconds to load, many times over
SLOW = [pytest.mark.prove, pytest.mark.prove_ci]


@pytest.fixture(scope="module", params=[pytest.param("openai", marks=SLOW), "wordpiece"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With OpenAI's vocabulary and activation, and with a WordPiece of ours."""
    folder = tmp_path_factory.mktemp("clip")
    if request.param == "openai":
        return export(folder / "model", "clip", replace(CLIP, activation="quick_gelu"), clip_tokenizer())
    return export(
        folder / "model", "clip", CLIP, train_wordpiece(TEXTS * 3, vocab_size=90, folder=folder / "t")
    )


def inputs(loaded: LoadedModel) -> tuple[Tensor, Tensor, Tensor]:
    ids_BT, mask_BT = loaded.tokenizer.encode(TEXTS, loaded.exported.max_text_tokens)
    side = loaded.config.image_size
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1)), ids_BT, mask_BT


def assert_near(found: Tensor, expected: Tensor) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, f"relative error {error:.2e}"


def test_open_clip_loads_the_folder_and_gives_our_features(clip: Path, tmp_path: Path) -> None:
    write(clip, tmp_path / "oc", "open_clip")
    loaded = load_exported(clip, device="cpu")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'oc'}")
    model.eval()
    image_BCHW, ids_BT, mask_BT = inputs(loaded)
    network: Any = loaded.model
    with torch.no_grad():
        assert_near(
            model.encode_image(image_BCHW, normalize=True), network.encode_image(image_BCHW).feature_BE
        )
        theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'oc'}")(TEXTS)
        ours = network.encode_text(ids_BT, mask_BT).feature_BE
        assert_near(model.encode_text(theirs, normalize=True), ours)
    assert model.logit_scale.item() == network.logit_scale.item()
    from PIL import Image

    picture = Image.radial_gradient("L").convert("RGB").resize((60, 40))
    assert (
        preprocess(picture) - loaded.preprocess(picture)
    ).abs().max() < 0.05  # their resampling is torch's


def test_an_open_clip_folder_is_read_bit_by_bit(clip: Path, tmp_path: Path) -> None:
    write(clip, tmp_path / "oc", "open_clip")
    loaded = load_exported(clip, device="cpu")
    loaded.tokenizer.save(tmp_path / "t")
    convert(tmp_path / "oc", tmp_path / "back", Reading(source="open_clip", tokenizer=str(tmp_path / "t")))
    assert_equal_models(load_exported(tmp_path / "back", device="cpu"), loaded)


def assert_equal_models(found: LoadedModel, expected: LoadedModel) -> None:
    assert found.config == expected.config
    ours = found.model.state_dict()
    wrong = [n for n, v in expected.model.state_dict().items() if not torch.equal(v, ours[n])]
    assert wrong == []


def test_transformers_loads_a_clip_and_gives_our_logits(clip: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, CLIPModel

    write(clip, tmp_path / "hf", "transformers")
    loaded = load_exported(clip, device="cpu")
    model, info = CLIPModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    image_BCHW, ids_BT, mask_BT = inputs(loaded)
    network: Any = loaded.model
    with torch.no_grad():
        found = model.eval()(input_ids=ids_BT, pixel_values=image_BCHW, attention_mask=mask_BT)
        image = network.encode_image(image_BCHW).feature_BE
        text = network.encode_text(ids_BT, mask_BT).feature_BE
        assert_near(found.image_embeds, image)
        assert_near(found.text_embeds, text)
        assert_near(found.logits_per_image, network.logit_scale.exp() * image @ text.T)
    convert(tmp_path / "hf", tmp_path / "back", Reading(source="transformers"))
    assert_equal_models(load_exported(tmp_path / "back", device="cpu"), loaded)
    from PIL import Image

    picture = Image.radial_gradient("L").convert("RGB").resize((60, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = AutoProcessor.from_pretrained(tmp_path / "hf")(
            images=picture, return_tensors="pt"
        ).pixel_values
    assert (pixels[0] - loaded.preprocess(picture)).abs().max() < 0.05


@pytest.mark.prove
@pytest.mark.prove_ci
def test_clip_from_openais_names_has_openais_activation(tmp_path: Path) -> None:
    """A state dict of half precision with OpenAI's extra facts, read and written back."""
    torch.manual_seed(0)
    reference = open_clip.model.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "head_width": 64},
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": 64, "layers": 2, "heads": 1},
        quick_gelu=True,
    )
    weights = {name: value.half() for name, value in reference.state_dict().items()}
    facts = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16)}
    torch.save(weights | facts, tmp_path / "x.pt")
    remarks = convert(tmp_path / "x.pt", tmp_path / "out", Reading(source="clip"))
    assert any("vision_heads 2 assumed" in remark for remark in remarks)
    loaded = load_exported(tmp_path / "out", device="cpu")
    assert (loaded.config.activation, loaded.config.text_heads) == ("quick_gelu", 1)
    reference.load_state_dict({name: value.float() for name, value in weights.items()})
    image_BCHW, ids_BT, mask_BT = inputs(loaded)
    network: Any = loaded.model
    with torch.no_grad():
        expected = reference.eval().encode_text(open_clip.tokenizer.tokenize(TEXTS, 16), normalize=True)
        assert_near(network.encode_text(ids_BT, mask_BT).feature_BE, expected)
        expected = reference.encode_image(image_BCHW, normalize=True)
        assert_near(network.encode_image(image_BCHW).feature_BE, expected)
    write(tmp_path / "out", tmp_path / "back.pt", "clip")
    back = read_state_dict(tmp_path / "back.pt")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], value.float()) for name, value in weights.items())
    facts = json.loads((tmp_path / "out/config.json").read_text())
    facts["model"]["activation"] = "gelu"
    (tmp_path / "out/config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="quick_gelu, this model with gelu"):
        write(tmp_path / "out", tmp_path / "no.pt", "clip")


def test_openais_vocabulary_gives_open_clips_ids(tmp_path: Path) -> None:
    clip_tokenizer().save(tmp_path / "t")
    texts = [*TEXTS, "Ein Käfer—fährt über die Straße, 20% don't!!", "日本語 emoji 😀 x", ""]
    ids_BT, mask_BT = load_tokenizer(tmp_path / "t").encode(texts, 77)
    for row, mask, expected in zip(ids_BT, mask_BT, open_clip.tokenizer.tokenize(texts), strict=True):
        assert row[mask.bool()].tolist() == expected[expected != 0].tolist()


def test_transformers_loads_a_blip_in_both_of_its_classes(tmp_path: Path) -> None:
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    tokenizer = load_tokenizer(bert_tokenizer(tmp_path / "bert", tokens=300))
    config = RECIPES["blip"].Config(
        image_size=32, patch_size=8, vision_width=48, vision_depth=2, vision_heads=4, text_width=32,
        text_depth=2, text_heads=4, text_mlp_ratio=3, embed_dim=24, max_text_length=9, text_positions=40,
        queue_size=8, vocab_size=302, dec_id=300, enc_id=301, dropout=0.0,
    )  # fmt: skip
    folder = export(tmp_path / "model", "blip", config, tokenizer)
    write(folder, tmp_path / "hf", "transformers")
    loaded = load_exported(folder, device="cpu")
    network: Any = loaded.model
    image_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ids_BT = torch.tensor([[101, 120, 130, 140, 102], [101, 150, 102, 0, 0]])
    mask_BT = (ids_BT > 0).long()
    matcher, said = BlipForImageTextRetrieval.from_pretrained(tmp_path / "hf", output_loading_info=True)
    captioner, told = BlipForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    for info in (said, told):
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
    with torch.no_grad():
        image, text = network.encode_image(image_BCHW), network.encode_text(ids_BT, mask_BT)
        found = matcher.eval()(ids_BT, image_BCHW, attention_mask=mask_BT, use_itm_head=False)
        assert_near(found.itm_score, image.feature_BE @ text.feature_BE.T)
        grounded = ids_BT.clone()
        grounded[:, 0] = loaded.config.enc_id
        found = matcher(grounded, image_BCHW, attention_mask=mask_BT, use_itm_head=True)
        assert_near(found.itm_score, network.match(image.tokens_BND, text.states_BTD, mask_BT))
        ids_BT[:, 0] = loaded.config.dec_id
        logits = captioner.eval()(pixel_values=image_BCHW, input_ids=ids_BT, attention_mask=mask_BT).logits
        ours = network.lm_logits(ids_BT, mask_BT, image.tokens_BND)
        assert_near(logits[mask_BT.bool()], ours[mask_BT.bool()])
    convert(tmp_path / "hf", tmp_path / "back", Reading(source="transformers"))
    again = load_exported(tmp_path / "back", device="cpu")
    expected = network.state_dict()
    wrong = [n for n, v in again.model.state_dict().items() if not torch.equal(v, expected[n])]
    assert wrong == ["temperature"]  # transformers has no place for it
