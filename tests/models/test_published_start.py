"""`--init_from`: what carries over into a new model, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.blocks.embedders import resize_positions
from models.blocks.relative_positions import image_rows, resize_table
from models.inference.load import load_exported
from models.published.reading import Reading, convert
from models.published.starting import start_from
from models.recipes import RECIPES
from models.tokenizer import Tokenizer, load_tokenizer
from models.training.assemble import resolve_model_config
from models.training.config import TrainConfig
from tests.models.published_world import bert_tokenizer, config_file, state_dict


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders made of published checkpoints."""
    root, found = tmp_path_factory.mktemp("start"), {}
    for system in ("albef", "blip", "vlmo"):
        (root / system).mkdir()
        torch.save(state_dict(system), root / system / "x.pth")
        tokenizer = bert_tokenizer(root / system / "bert", tokens=298 if system == "blip" else 300)
        size = str(config_file(root / system, system))
        found[system] = root / system / "model"
        convert(
            root / system / "x.pth",
            found[system],
            Reading(source=system, tokenizer=str(tokenizer), size=size),
        )
    return found


def begin(folder: Path, tokenizer: Tokenizer | None = None, **changes: Any) -> tuple[Any, list[str]]:
    """A new system of the folder's dimensions with changes, started from it."""
    loaded = load_exported(folder, device="cpu")
    tokenizer = tokenizer or loaded.tokenizer
    torch.manual_seed(5)
    config = tokenizer.fit(replace(loaded.config, **changes))
    system = RECIPES[loaded.exported.recipe].build(config)
    return system, start_from(system, folder, tokenizer)


def test_weights_teacher_and_queue_carry_over(folders: dict[str, Path]) -> None:
    weights = state_dict("albef")
    system, remarks = begin(folders["albef"])
    assert torch.equal(system.model.itm_head.weight, weights["itm_head.weight"])
    state = system.state_dict()
    assert torch.equal(state["teacher.vision.embed.cls"], weights["visual_encoder_m.cls_token"])
    assert torch.equal(state["queue.text"], weights["text_queue"].T)
    assert len(system.queue.read()[0]) == 32
    assert remarks == ["the queue of init_from is used", "the teacher of init_from is used"]


def test_a_folder_without_a_state_copies_the_student_into_the_teacher(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(folders["albef"], tmp_path / "m")
    (tmp_path / "m/state.safetensors").unlink()
    system, remarks = begin(tmp_path / "m")
    weights = state_dict("albef")
    assert torch.equal(system.state_dict()["teacher.vision.embed.cls"], weights["visual_encoder.cls_token"])
    assert len(system.queue.read()[0]) == 0
    assert remarks == []


def test_another_picture_size_resizes_positions_of_student_and_teacher(folders: dict[str, Path]) -> None:
    weights = state_dict("albef")
    system, remarks = begin(folders["albef"], image_size=96)
    expected = resize_positions(weights["visual_encoder.pos_embed"], 6)
    assert torch.equal(system.model.vision.embed.positions, expected)
    expected = resize_positions(weights["visual_encoder_m.pos_embed"], 6)
    assert torch.equal(system.state_dict()["teacher.vision.embed.positions"], expected)
    assert "vision.embed.positions resized from 16 to 36 patches" in remarks
    assert system.model.encode_image(torch.zeros(1, 3, 96, 96)).feature_BE.isfinite().all()


def test_another_queue_starts_empty_and_is_told(folders: dict[str, Path]) -> None:
    system, remarks = begin(folders["albef"], queue_size=16)
    assert len(system.queue.read()[0]) == 0
    assert any("queue of init_from does not fit" in r and "starts empty" in r for r in remarks)
    assert "the teacher of init_from is used" in remarks


def test_vlmo_goes_on_in_another_stage_and_size(folders: dict[str, Path]) -> None:
    weights = state_dict("vlmo")
    system, remarks = begin(folders["vlmo"], stage="text")
    table = weights["relative_position_bias_table"]
    assert torch.equal(system.model.state_dict()["transformer.positions.table"], table)
    assert remarks == []
    system, remarks = begin(folders["vlmo"], image_size=96, max_text_length=20)
    found = system.model.state_dict()["transformer.positions.table"]
    assert torch.equal(found, resize_table(table, grid=(4, 6), window=(196, 196)))
    assert torch.equal(found[image_rows(6) - 3 :], table[image_rows(4) - 3 :])
    sizes = "64 pixels and 196 tokens to 96 pixels and 196 tokens"
    assert remarks == [f"transformer.positions.table resized from {sizes}"]
    wider, _ = begin(folders["vlmo"], text_window=250)
    assert len(wider.model.state_dict()["transformer.positions.table"]) == image_rows(4) + 2 + 2 * 250


def test_added_tokens_begin_fresh_and_the_others_are_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folders["albef"] / "tokenizer")
    tokenizer.backend.add_special_tokens({"additional_special_tokens": ["[A]", "[B]"]})
    system, remarks = begin(folders["albef"], tokenizer)
    assert system.config.vocab_size == 302
    words = state_dict("albef")["text_encoder.bert.embeddings.word_embeddings.weight"]
    assert torch.equal(system.model.text.embed.word.weight[:300], words)
    assert system.model.text.embed.word.weight[300:].abs().sum() > 0
    assert "text.embed.word.weight: 2 new rows for added tokens" in remarks


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        ("albef", {"text_depth": 3}, r"unknown .*text\.layers\.3.*text_depth 4 -> 3"),
        ("albef", {"embed_dim": 16}, r"image_projection.*embed_dim 32 -> 16"),
        ("albef", {"text_heads": 2}, r"text_heads 4 -> 2: its weights would mean something else"),
        (
            "albef",
            {"text_positions": 60},
            r"40 positions of text, the model 60.*--max_text_tokens \(at most 40\)",
        ),
        ("blip", {"text_mlp_ratio": 4}, r"feed_forward.*text_mlp_ratio 2 -> 4"),
        ("vlmo", {"joint_start": 3}, r"joint_start 2 -> 3"),
    ],
)
def test_whatever_else_differs_is_refused_by_name(
    folders: dict[str, Path], system: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        begin(folders[system], **changes)


def test_a_tokenizer_with_other_tokens_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    vocabulary = (folders["albef"].parent / "bert/vocab.txt").read_text().splitlines()
    other = bert_tokenizer(tmp_path / "bert", tokens=300)
    vocabulary[250], vocabulary[251] = vocabulary[251], vocabulary[250]
    (other / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    with pytest.raises(ValueError, match=r"another vocabulary.*token 250 differs\); leave --tokenizer away"):
        begin(folders["albef"], load_tokenizer(other))


def test_pictures_normalised_otherwise_are_refused(folders: dict[str, Path]) -> None:
    config = TrainConfig(shards="x", output="y", recipe="vlmo", init_from=str(folders["vlmo"]), steps=1)
    tokenizer = load_tokenizer(folders["vlmo"] / "tokenizer")
    with pytest.raises(ValueError, match=r"image_mean .*learnt with \[0\.5, 0\.5, 0\.5\]; pass --image_mean"):
        resolve_model_config(config, tokenizer)
    same = replace(config, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    assert resolve_model_config(same, tokenizer).width == 64
