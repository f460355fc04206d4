"""Every published system in small: read, used, written back bit by bit; and what its family brings along."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.batch import Batch, StepContext
from models.inference.load import LoadedModel, load_exported
from models.published.files import read_state_dict
from models.published.reading import Reading, convert
from models.published.writing import write
from models.recipes import RECIPES, vlmo_keys
from tests.models.published_world import bert_tokenizer, config_file, state_dict


@dataclass(frozen=True)
class Published:
    weights: dict[str, Tensor]
    file: Path
    tokenizer: Path
    size: Path
    model: Path


SYSTEMS = {"albef": ("albef", 300), "blip": ("blip", 298), "vlmo": ("vlmo", 300), "vlmo_plus": ("vlmo", 300)}


@pytest.fixture(scope="module", params=SYSTEMS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return make(request.param, tmp_path_factory.mktemp(request.param))


def make(system: str, folder: Path) -> Published:
    source, tokens = SYSTEMS[system]
    weights = state_dict(system)
    torch.save({"model": weights}, folder / "x.pth")
    found = Published(
        weights, folder / "x.pth", bert_tokenizer(folder / "bert", tokens=tokens),
        config_file(folder, system), folder / "model",
    )  # fmt: skip
    reading = Reading(source=source, tokenizer=str(found.tokenizer), size=str(found.size))
    convert(found.file, found.model, reading)
    return found


def batch(loaded: LoadedModel) -> Batch:
    g = torch.Generator().manual_seed(0)
    side = loaded.config.image_size
    ids_BT, mask_BT = loaded.tokenizer.encode(["(1)", "2 3 4", "5 6", "7 8 9 ="], 12)
    return Batch(
        image_BCHW=torch.randn(4, 3, side, side, generator=g), text_ids_BT=ids_BT, text_mask_BT=mask_BT,
        image_id_B=torch.arange(4),
    )  # fmt: skip


def test_the_model_works_and_goes_on_learning(published: Published) -> None:
    loaded = load_exported(published.model, device="cpu")
    system = RECIPES[loaded.exported.recipe].build(loaded.config)
    system.model.load_state_dict(loaded.model.state_dict())
    if hasattr(system, "learn_words"):
        system.learn_words(loaded.tokenizer.continues())
    system.reset_teacher()
    here, context = batch(loaded), StepContext(seed=0, step=0)
    losses = system.model(here, context, system.prepare([here], context)[0])
    assert losses["loss"].isfinite()
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in system.model.parameters())
    image = loaded.model.encode_image(here.pictures)  # type: ignore[operator]
    assert image.feature_BE.norm(dim=1).sub(1).abs().max() < 1e-5


def test_it_is_written_back_bit_by_bit(published: Published, tmp_path: Path) -> None:
    recipe = load_exported(published.model, device="cpu").exported.recipe
    write(published.model, tmp_path / "back.pth", recipe)
    found = read_state_dict(tmp_path / "back.pth")
    assert found.keys() == published.weights.keys()
    assert [n for n, v in published.weights.items() if not torch.equal(found[n], v)] == []
    assert [n for n, v in published.weights.items() if found[n].dtype != v.dtype] == []


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return make("blip", tmp_path_factory.mktemp("blip_alone"))


def test_blip_gets_its_two_tokens(blip: Published) -> None:
    loaded = load_exported(blip.model, device="cpu")
    assert (loaded.config.dec_id, loaded.config.enc_id, loaded.config.vocab_size) == (298, 299, 300)
    assert loaded.tokenizer.tokens([298, 299]) == ["[DEC]", "[ENC]"]
    assert (loaded.config.text_mlp_ratio, loaded.config.mlp_ratio, loaded.config.label_smoothing) == (
        2,
        4,
        0.1,
    )


def test_blip_tied_weights_that_differ_are_refused(blip: Published, tmp_path: Path) -> None:
    name = "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"
    torch.save(blip.weights | {name: blip.weights[name] + 1}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"different values: text_\w+coder\S+ and text_"):
        convert(tmp_path / "x.pth", tmp_path / "out", Reading(source="blip", tokenizer=str(blip.tokenizer)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kept", "fresh"),
    [
        (lambda n: not n.startswith("text_decoder"), r"lm_head\.bias.*decoder_attention"),
        (lambda n: n.startswith(("text_decoder", "visual_encoder.")), r"image_projection.*itm_head"),
    ],
)
def test_blip_retrieval_and_captioning_files(
    kept: Callable[[str], bool], fresh: str, blip: Published, tmp_path: Path
) -> None:
    weights = {n: v for n, v in blip.weights.items() if kept(n)}
    if "image_queue" in weights:
        weights["ptr_queue"] = weights.pop("queue_ptr")
        weights["idx_queue"] = torch.full((1, 32), -100)
    torch.save({"model": weights}, tmp_path / "x.pth")
    size = Reading(source="blip", tokenizer=str(blip.tokenizer), size=str(blip.size))
    remarks = convert(tmp_path / "x.pth", tmp_path / "out", size)
    told = next(r for r in remarks if "random weights" in r)
    begin = load_exported(tmp_path / "out", device="cpu").exported.training["fresh"]
    assert begin
    assert re.search(fresh, " ".join(begin))
    assert begin[0] in told


@pytest.mark.parametrize(("system", "heads"), [("vlmo", 4), ("vlmo_plus", 1)])
def test_vlmo_dimensions_come_from_shapes(system: str, heads: int, tmp_path: Path) -> None:
    found = make(system, tmp_path)
    remarks = convert(found.file, tmp_path / "out", Reading(source="vlmo", tokenizer=str(found.tokenizer)))
    assert any("heads 1 assumed" in remark for remark in remarks) == (system == "vlmo_plus")
    loaded = load_exported(tmp_path / "out", device="cpu")
    config = loaded.config
    assert (config.width, config.depth, config.joint_start, config.image_size) == (64, 4, 2, 64)
    assert config.heads == heads  # the table of relative positions tells them
    assert config.positions == ("relative" if system == "vlmo" else "absolute")
    assert (config.layer_scale > 0) == (system == "vlmo")
    assert loaded.exported.image_mean == (0.5, 0.5, 0.5)


def test_vlmo_index_buffers_carry_nothing(tmp_path: Path) -> None:
    found = make("vlmo", tmp_path)
    more = {f"{kind}relative_position_index": torch.zeros(3, 3, dtype=torch.int64) for kind in ("", "text_")}
    torch.save(found.weights | more, tmp_path / "y.ckpt")
    convert(tmp_path / "y.ckpt", tmp_path / "out", Reading(source="vlmo", tokenizer=str(found.tokenizer)))


def test_beit_fills_the_image_experts_of_a_vlmo(tmp_path: Path) -> None:
    from timm.models.beit import Beit

    torch.manual_seed(0)
    reference = Beit(
        img_size=64, patch_size=16, embed_dim=64, depth=4, num_heads=4, num_classes=10, init_values=0.1,
        use_rel_pos_bias=True, use_abs_pos_emb=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    torch.save({"model": reference.state_dict()}, tmp_path / "beit.pth")
    tokenizer = bert_tokenizer(tmp_path / "bert", tokens=300)
    convert(tmp_path / "beit.pth", tmp_path / "out", Reading(source="beit", tokenizer=str(tokenizer)))
    loaded = load_exported(tmp_path / "out", device="cpu")
    begin = set(loaded.exported.training["fresh"])
    assert {"text_embed.word.weight", "transformer.blocks.3.experts.joint.norm.weight"} <= begin
    assert not any("experts.image" in name or "attention" in name for name in begin)
    assert (loaded.config.heads, loaded.config.image_size, loaded.config.depth) == (4, 64, 4)
    model: Any = loaded.model
    table = reference.state_dict()["blocks.2.attn.relative_position_bias_table"]
    assert torch.equal(model.transformer.positions.table[: len(table), 8:12], table)
    with pytest.raises(ValueError, match="'beit' is unknown"):
        write(tmp_path / "out", tmp_path / "x.pth", "beit")
    assert (
        vlmo_keys.BEIT_TIMM.ours("blocks.0.norm2.weight") == "transformer.blocks.0.experts.image.norm.weight"
    )
