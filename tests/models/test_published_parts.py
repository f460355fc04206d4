"""A ViT and a BERT become the start of an ALBEF or a BLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.blocks.embedders import resize_positions
from models.inference.load import load_exported
from models.published.parts import Parts, convert_parts
from tests.models.published_world import bert_tokenizer

DIMENSIONS: dict[str, Any] = {
    "vision_width": 32, "vision_depth": 2, "vision_heads": 4, "patch_size": 8, "image_size": 48,
    "text_width": 32, "text_depth": 2, "text_heads": 4, "text_positions": 40, "embed_dim": 16,
    "queue_size": 8,
}  # fmt: skip
CHANGES = {"albef": {"fusion_start": 1}, "blip": {}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A ViT of timm at 32 px with its classifier, and transformers' BERT with all its heads."""
    from timm.models.vision_transformer import VisionTransformer
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts")
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=10)
    bert = BertForPreTraining(
        BertConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=40,
        )
    )  # fmt: skip
    torch.save({"model": vit.state_dict()}, folder / "deit.pth")
    words = {n: v.clone() for n, v in bert.state_dict().items()}
    # as the published file has them
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for n, v in words.items()}  # fmt: skip
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(old, folder / "bert.safetensors")
    return {
        "vision": str(folder / "deit.pth"), "text": str(folder / "bert.safetensors"),
        "tokenizer": str(bert_tokenizer(folder / "bert", tokens=300)), "vit": vit.state_dict(), "bert": words,
    }  # fmt: skip


def parts(files: Mapping[str, Any], system: str, **changes: Any) -> Parts:
    options = {name: files[name] for name in ("vision", "text", "tokenizer")}
    overrides = DIMENSIONS | CHANGES[system] | changes.pop("overrides", {})
    return Parts(**{"recipe": system, "size": "base", "overrides": overrides, **options, **changes})


@pytest.mark.parametrize("recipe", ["albef", "blip"])
def test_both_parts_are_taken_and_the_rest_begins_fresh(
    recipe: str, files: dict[str, Any], tmp_path: Path
) -> None:
    remarks = convert_parts(tmp_path / "out", parts(files, recipe))
    loaded = load_exported(tmp_path / "out", device="cpu")
    found: dict[str, Tensor] = loaded.model.state_dict()
    vit, bert = files["vit"], files["bert"]
    assert torch.equal(found["vision.blocks.1.attention.qkv.weight"], vit["blocks.1.attn.qkv.weight"])
    assert torch.equal(found["vision.embed.positions"], resize_positions(vit["pos_embed"], 6))
    key = bert["bert.encoder.layer.1.attention.self.key.weight"]
    assert torch.equal(found["text.layers.1.attention.key.weight"], key)
    assert torch.equal(found["text.embed.norm.weight"], bert["bert.embeddings.LayerNorm.weight"])
    words = bert["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(found["text.embed.word.weight"][:300], words)
    head = {"albef": "mlm_head", "blip": "lm_head"}[recipe]
    assert torch.equal(found[f"{head}.dense.weight"], bert["cls.predictions.transform.dense.weight"])
    begin = set(loaded.exported.training["fresh"])
    assert {"itm_head.weight", "image_projection.weight", "text.layers.1.cross_attention.key.weight"} <= begin
    assert not any(n.startswith("vision.") or ".attention" in n or "feed_forward" in n for n in begin)
    assert any("resized from 16 to 36 patches" in remark for remark in remarks)
    if recipe == "blip":
        assert torch.equal(found["text.layers.1.decoder_attention.key.weight"], key)
        assert len(found["text.embed.word.weight"]) == 302
        assert loaded.config.dec_id == 300


def test_one_part_alone(files: dict[str, Any], tmp_path: Path) -> None:
    convert_parts(tmp_path / "out", parts(files, "albef", text=None))
    loaded = load_exported(tmp_path / "out", device="cpu")
    assert any(name.startswith("text.embed") for name in loaded.exported.training["fresh"])
    found = loaded.model.state_dict()
    assert torch.equal(found["vision.norm.weight"], files["vit"]["norm.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"overrides": {"text_depth": 3}},
            r"bert\.safetensors as the text of albef: missing text\.layers\.2",
        ),
        ({"overrides": {"text_depth": 1}}, r"no place for text\.layers\.1"),
        (
            {"overrides": {"vision_width": 64}},
            r"deit\.pth as the vision of albef: shapes: .*\(32,\) instead of \(64,\)",
        ),
        ({"overrides": {"depth": 64}}, "depth"),
        ({"vision": None, "text": None}, "give --vision FILE"),
        ({"tokenizer": None}, "give --tokenizer"),
        ({"size": "huge"}, "no size 'huge'"),
        ({"recipe": "clip"}, "parts of 'clip' are unknown"),
    ],
)
def test_parts_that_do_not_fit_are_named_and_nothing_written(
    changes: dict[str, Any], message: str, files: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert_parts(tmp_path / "out", parts(files, "albef", **changes))
    assert not list(tmp_path.iterdir())


def test_swapped_parts_are_refused(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown names: .*cls_token"):
        convert_parts(tmp_path / "out", parts(files, "albef", text=files["vision"], vision=None))
    with pytest.raises(ValueError, match=r"unknown names: .*visual_encoder\.bert"):
        convert_parts(tmp_path / "out", parts(files, "albef", vision=files["text"], text=None))
