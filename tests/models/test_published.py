"""Published checkpoints become model folders, strictly, and are written back bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.batch import Batch, StepContext
from models.inference.load import load_exported
from models.published.files import read_state_dict
from models.published.reading import Reading, convert
from models.published.writing import write
from models.recipes import RECIPES
from tests.models.published_world import bert_tokenizer, config_file, state_dict

HEADS = {"vision_heads": 4, "text_heads": 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bert", tokens=300)


@pytest.fixture(scope="module")
def albef(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path, Path]:
    """The published weights, their file, and the model folder made of it."""
    folder = tmp_path_factory.mktemp("albef")
    weights = state_dict("albef")
    torch.save({"model": weights}, folder / "albef.pth")
    reading = Reading(
        source="albef", tokenizer=str(tokenizer), size=str(config_file(folder, "albef")),
    )  # fmt: skip
    convert(folder / "albef.pth", folder / "model", reading)
    return weights, folder / "albef.pth", folder / "model"


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(110, 300, (4, 12), generator=g)
    ids_BT[:, 0] = 101
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[1, 8:], mask_BT[1, 8:] = 0, 0
    return Batch(
        image_BCHW=torch.randn(4, 3, 64, 64, generator=g), text_ids_BT=ids_BT, text_mask_BT=mask_BT,
        image_id_B=torch.arange(4),
    )  # fmt: skip


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    wrong = [n for n, v in expected.items() if not torch.equal(found[n], v) or found[n].dtype != v.dtype]
    assert wrong == []


def test_a_published_albef_becomes_a_working_model(albef: tuple[dict[str, Tensor], Path, Path]) -> None:
    weights, _, folder = albef
    loaded = load_exported(folder, device="cpu")
    config = loaded.config
    assert (config.fusion_start, config.text_depth, config.vision_depth) == (2, 4, 3)
    assert (config.text_heads, config.queue_size, config.mlm_probability) == (4, 32, 0.3)
    assert (config.vocab_size, config.cls_id, config.mask_id, config.text_positions) == (300, 101, 103, 40)
    model: Any = loaded.model
    qkv = weights["visual_encoder.blocks.1.attn.qkv.weight"]
    assert torch.equal(model.vision.blocks[1].attention.qkv.weight, qkv)
    assert torch.equal(model.temperature, weights["temp"])
    assert loaded.exported.image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    image = model.encode_image(batch().pictures)
    text = model.encode_text(batch().text_ids_BT, batch().text_mask_BT)
    logits = model.match(image.tokens_BND, text.states_BTD, batch().text_mask_BT)
    assert logits.shape == (4, 2)
    assert logits.isfinite().all()
    ids, _ = loaded.tokenizer.encode(["(10)"], 12)
    assert ids[0, 0] == 101


def test_teacher_and_queue_are_kept_beside_the_model(albef: tuple[dict[str, Tensor], Path, Path]) -> None:
    weights, _, folder = albef
    state = load_file(folder / "state.safetensors")
    assert torch.equal(state["queue.image"], weights["image_queue"].T)
    assert int(state["queue.cursor"]) == 4
    assert int(state["queue.filled"]) == 32
    teacher = weights["text_encoder_m.bert.encoder.layer.3.crossattention.self.key.weight"]
    assert torch.equal(state["teacher.text.layers.3.cross_attention.key.weight"], teacher)
    # what has no copy there is the student's
    assert torch.equal(state["teacher.itm_head.weight"], weights["itm_head.weight"])
    system = RECIPES["albef"].build(load_exported(folder, device="cpu").config)
    system.load_state_dict(state)
    [extras] = system.prepare([batch()], StepContext(seed=0, step=0))
    assert len(extras["keys"].id_K) == 4 + 32


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_back_is_what_was_read(
    albef: tuple[dict[str, Tensor], Path, Path], suffix: str, tmp_path: Path
) -> None:
    weights, _, folder = albef
    write(folder, tmp_path / f"back{suffix}", "albef")
    assert_same(read_state_dict(tmp_path / f"back{suffix}"), weights)
    if suffix == ".pth":
        assert torch.load(tmp_path / "back.pth").keys() == {"model"}


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda w: {n: v for n, v in w.items() if n not in names}


def changed(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda w: w | {name: value(w[name])}


BIAS, WORDS = "visual_encoder.blocks.0.attn.qkv.bias", "text_encoder.cls.predictions.decoder.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(BIAS, "temp"), r"missing temperature, vision\.blocks\.0\.attention\.qkv\.bias"),
        (lambda w: w | {"itm_head.extra": w["temp"]}, r"no place for itm_head\.extra"),
        (lambda w: w | {f"other.{i}": w["temp"] for i in range(20)}, r"other\.0.*7 \.\.\. \(20 in all\)"),
        (changed(BIAS, lambda v: v[:-1]), r"attention\.qkv\.bias \(191,\) instead of \(192,\)"),
        (changed(WORDS, lambda v: v + 1), r"stored twice, but with different values: .*decoder\.weight"),
        (without("visual_encoder_m.cls_token"), r"missing teacher\.vision\.embed\.cls"),
        (without("text_queue"), r"missing queue\.text"),
        (changed("text_queue", lambda v: v[:, :-1]), r"queue\.text \(31, 32\) instead of \(32, 32\)"),
        (without("vision_proj.weight", "visual_encoder.patch_embed.proj.weight"), "another system"),
        (lambda w: {n: v for n, v in w.items() if "layer.1." not in n}, r"missing .*text\.layers\.1"),
    ],
)  # fmt: skip
def test_whatever_does_not_fit_is_named_and_nothing_written(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tokenizer: Path, tmp_path: Path
) -> None:
    torch.save(change(state_dict("albef")), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        convert(
            tmp_path / "x.pth",
            tmp_path / "out",
            Reading(source="albef", tokenizer=str(tokenizer), overrides=HEADS),
        )
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "'huge' is neither one of albef"),
        ({"size": "base"}, r"vision_width 768 by --size, 64 by the shapes; .*text_depth 12 by --size, 4 by"),
        ({"overrides": {"text_depth": 5}}, "text_depth 5 by --model, 4 by the shapes"),
        ({"overrides": {"depth": 5}}, "albef has no depth; valid: .*text_depth"),
        ({"overrides": {"vision_heads": 5}}, "heads 5 must divide width 64"),
        ({"tokenizer": None}, "needs its tokenizer"),
        ({"source": "clop"}, "'clop' is unknown; there are albef"),
        ({"source": "clip"}, r"unknown names: .*is it another system"),
    ],
)
def test_sizes_that_the_shapes_contradict_are_refused(
    options: dict[str, Any], message: str, albef: tuple[dict[str, Tensor], Path, Path], tokenizer: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=message):
        convert(
            albef[1], tmp_path / "out", Reading(**{"source": "albef", "tokenizer": str(tokenizer)} | options)
        )
    assert not (tmp_path / "out").exists()


def test_dimensions_come_from_shapes_and_assumed_heads_are_told(
    albef: tuple[dict[str, Tensor], Path, Path], tokenizer: Path, tmp_path: Path
) -> None:
    remarks = convert(albef[1], tmp_path / "out", Reading(source="albef", tokenizer=str(tokenizer)))
    config = load_exported(tmp_path / "out", device="cpu").config
    assert (config.text_heads, config.vision_heads, config.image_size, config.embed_dim) == (1, 1, 64, 32)
    assert any("text_heads 1 assumed" in remark for remark in remarks)


def test_a_tokenizer_of_another_vocabulary_is_refused(
    albef: tuple[dict[str, Tensor], Path, Path], tmp_path: Path
) -> None:
    other = bert_tokenizer(tmp_path / "bert", tokens=310)
    with pytest.raises(ValueError, match="the tokenizer has 310 tokens, the weights 300"):
        convert(albef[1], tmp_path / "out", Reading(source="albef", tokenizer=str(other)))


def test_a_size_file_in_our_names_and_special_ids(
    albef: tuple[dict[str, Tensor], Path, Path], tokenizer: Path, tmp_path: Path
) -> None:
    size = tmp_path / "size.yaml"
    size.write_text("text_heads: 8\nvision_heads: 2\nspecial_token_ids: {cls: 101}\n")
    reading = Reading(source="albef", tokenizer=str(tokenizer), size=str(size))
    convert(albef[1], tmp_path / "out", reading)
    assert json.loads((tmp_path / "out/config.json").read_text())["model"]["text_heads"] == 8
    for text, message in (
        ("special_token_ids: {cls: 7}", "cls_id 101 by the tokenizer, 7"),
        ("a: 1", "has no a"),
        ("[", "YAML"),
    ):
        size.write_text(text)
        with pytest.raises(ValueError, match=message):
            convert(albef[1], tmp_path / "no", reading)


def test_a_retrieval_file_begins_with_a_fresh_word_predictor(tokenizer: Path, tmp_path: Path) -> None:
    weights = {
        name.replace(".bert.", "."): value
        for name, value in state_dict("albef").items()
        if ".cls." not in name
    }
    weights["idx_queue"] = torch.full((1, 32), -100)
    torch.save({"model": weights}, tmp_path / "x.pth")
    reading = Reading(source="albef", tokenizer=str(tokenizer), overrides=HEADS)
    remarks = convert(tmp_path / "x.pth", tmp_path / "out", reading)
    assert any("random weights: mlm_head.bias" in remark for remark in remarks)
    assert "mlm_head.bias" in json.loads((tmp_path / "out/config.json").read_text())["training"]["fresh"]
    model: Any = load_exported(tmp_path / "out", device="cpu").model
    assert torch.equal(
        model.text.embed.word.weight, weights["text_encoder.embeddings.word_embeddings.weight"]
    )


def test_names_are_left_out_or_fresh_only_when_asked(tokenizer: Path, tmp_path: Path) -> None:
    weights = without("itm_head.weight", "itm_head.bias")(state_dict("albef"))
    weights["extra.weight"] = torch.ones(1)
    torch.save(weights, tmp_path / "x.pth")
    asked = {"source": "albef", "tokenizer": str(tokenizer), "overrides": HEADS}
    with pytest.raises(ValueError, match=r"extra\.weight"):
        convert(tmp_path / "x.pth", tmp_path / "out", Reading(**asked))
    with pytest.raises(ValueError, match=r"missing itm_head\.bias, itm_head\.weight"):
        convert(tmp_path / "x.pth", tmp_path / "out", Reading(**asked, ignore=[r"extra\..*"]))
    convert(
        tmp_path / "x.pth", tmp_path / "out", Reading(**asked, ignore=[r"extra\..*"], fresh=[r"itm_head\..*"])
    )
    assert load_exported(tmp_path / "out", device="cpu").exported.training["fresh"] == [
        "itm_head.bias",
        "itm_head.weight",
    ]


def test_writing_refuses_other_systems_and_names(
    albef: tuple[dict[str, Tensor], Path, Path], tmp_path: Path
) -> None:
    for target, out, message in (
        ("clip", "x.pth", "is a albef; the format clip is of a clip"),
        ("albef", "x.zip", r"must end in one of \.pth"),
        ("open_clip", "x", "open_clip holds CLIP models"),
        ("transformers", "x", "transformers has no albef"),
        ("clop", "x.pth", "'clop' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            write(albef[2], tmp_path / out, target)
    assert not list(tmp_path.iterdir())
