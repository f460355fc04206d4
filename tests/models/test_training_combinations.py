"""What cannot be had together is refused before anything is started; what the refusals claim is so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from jobs.cli import main, parse_verb
from jobs.train import CONFIGS
from models.batch import Batch, StepContext
from models.recipes import RECIPES
from models.training.assemble import check_model, resolve_model_config
from models.training.combinations import CONTRAST_OVER_STEP, TEACHERS
from models.training.config import TrainConfig, ZeroConfig, check
from models.training.engine import check_devices

OFFLOADED = {"offload_optimizer": "cpu"}


def config(**changes: object) -> TrainConfig:
    options = {"shards": "-", "output": "run", "recipe": "clip", "steps": 10}
    return TrainConfig(**{**options, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero": ZeroConfig(stage=4)}, r"zero\.stage 4: use 0, 1, 2 or 3"),
        ({"recipe": "albef", "zero": ZeroConfig(stage=3)}, r"momentum teacher of albef.*use zero\.stage 2"),
        ({"recipe": "blip", "zero": ZeroConfig(stage=3)}, r"momentum teacher of blip.*use zero\.stage 2"),
        ({"zero": ZeroConfig(stage=0, offload_optimizer="cpu")}, r"use zero\.stage 1, 2 or 3"),
        ({"zero": ZeroConfig(stage=2, offload_parameters="cpu")}, r"zero\.stage is 2; use zero\.stage 3"),
        ({"zero": ZeroConfig(offload_optimizer="nvme")}, r"offload_optimizer 'nvme': use none or cpu"),
        ({"contrast": "step", "zero": ZeroConfig(stage=3)}, r"contrast step .* use zero\.stage 2"),
        ({"contrast": "all"}, r"contrast 'all': use micro or step"),
        ({"compile": "on", "zero": ZeroConfig(stage=3)}, r"compile on: zero\.stage 3 .* use compile off"),
        ({"compile": "yes"}, r"compile 'yes': use auto, on or off"),
        ({"precision": "fp16"}, r"precision 'fp16': use auto, fp32 or bf16"),
        ({"schedule": "step"}, r"schedule 'step': use cosine, linear or exponential"),
        ({"lr_multipliers": {"head": -1.0}}, r"lr_multipliers .*at least 0"),
        ({"lr_decay": 1.5}, r"lr_decay 1\.5 must be above 0 and at most 1"),
        ({"eps": 0.0}, r"eps 0\.0 must be above 0"),
    ],
)
def test_impossible_combinations_are_named_with_what_works(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(config(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"zero": ZeroConfig(stage=3, offload_optimizer="cpu", offload_parameters="cpu")},
        {"zero": ZeroConfig(stage=3), "recompute": True, "precision": "bf16"},
        {"recipe": "albef", "zero": ZeroConfig(stage=2, offload_optimizer="cpu"), "contrast": "step"},
        {"recipe": "vlmo", "zero": ZeroConfig(stage=3)},
    ],
)
def test_possible_combinations_pass(changes: dict) -> None:
    check(config(**changes))


def test_compilation_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"no g\+\+ or clang\+\+ here.*apt install g"):
        check(config(compile="on"))


@pytest.mark.parametrize(
    ("gpus", "bf16", "changes", "answer"),
    [
        (0, False, {}, False),
        (0, False, {"precision": "bf16"}, True),
        (8, True, {}, True),
        (8, True, {"precision": "fp32"}, False),
        (8, False, {}, False),
        (8, False, {"precision": "bf16"}, r"has no bfloat16; use --precision fp32"),
        (1, True, {}, r"processes 2: this machine shows 1 GPUs.*use --processes 1"),
    ],
)
def test_precision_and_processes_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, bf16: bool, changes: dict, answer: bool | str
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    if isinstance(answer, bool):
        assert check_devices(config(**changes)) is answer
        return
    with pytest.raises(ValueError, match=answer):
        check_devices(config(**changes))


def test_the_command_ends_with_2_before_anything_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "--recipe", "albef", "--zero.stage", "3", "--steps", "5", "--shards", "nowhere"]
    assert main([*words, "--output", str(run)]) == 2
    assert "momentum teacher" in capsys.readouterr().err
    assert not run.exists()


SMALL = {
    "image_size": 16, "patch_size": 8, "embed_dim": 8, "max_text_length": 6, "vocab_size": 64,
    "vision_width": 16, "vision_depth": 1, "vision_heads": 2, "text_width": 16, "text_depth": 2,
    "text_heads": 2,
    "width": 16, "depth": 2, "heads": 2, "joint_start": 1, "fusion_start": 1, "text_positions": 8,
    "queue_size": 0, "dec_id": 60, "enc_id": 61,
}  # fmt: skip


def small_system(recipe: str):  # type: ignore[no-untyped-def]
    start = RECIPES[recipe].SIZES["tiny"]
    torch.manual_seed(0)
    return RECIPES[recipe].build(replace(start, **{k: v for k, v in SMALL.items() if hasattr(start, k)}))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_table_of_teachers_and_of_contrasts_is_true(recipe: str) -> None:
    system = small_system(recipe)
    assert hasattr(system, "teacher") == (recipe in TEACHERS)
    batches = []
    for micro in range(2):
        g = torch.Generator().manual_seed(micro)
        rows = torch.arange(4) + 4 * micro
        batches.append(
            Batch(
                image_BCHW=torch.randn(4, 3, 16, 16, generator=g),
                text_ids_BT=torch.randint(5, 60, (4, 6), generator=g),
                text_mask_BT=torch.ones(4, 6, dtype=torch.int64),
                image_id_B=rows, row_B=rows,
            )
        )  # fmt: skip
    context = StepContext(seed=0, step=3)
    with torch.no_grad():
        together = system.prepare(batches, context)[1]
        [alone] = system.prepare(batches[1:], context)
        contrasts = [float(system.model(batches[1], context, extras)["itc"]) for extras in (together, alone)]
    assert (contrasts[0] > contrasts[1] + 0.1) == (recipe in CONTRAST_OVER_STEP), contrasts


class AnyVocabulary:
    def fit(self, model):  # type: ignore[no-untyped-def]
        return model


def test_the_models_own_limits() -> None:
    with pytest.raises(ValueError, match="max_text_tokens 99 exceeds the 32 positions"):
        resolve_model_config(config(max_text_tokens=99), AnyVocabulary())  # type: ignore[arg-type]
    random = SimpleNamespace(max_text_length=9, dropout=0.1)
    with pytest.raises(ValueError, match=r"computes features twice.*dropout 0\.1; set it to 0"):
        check_model(config(contrast="step", recipe="clip"), random)
    by_sample = SimpleNamespace(max_text_length=9, drop_path=0.1)
    check_model(config(contrast="step", recipe="vlmo"), by_sample)  # drawn by sample, the same twice
    check_model(config(contrast="step", recipe="albef"), random)  # its keys are the teacher's
    recomputed = resolve_model_config(config(recompute=True), AnyVocabulary())  # type: ignore[arg-type]
    assert recomputed.gradient_checkpointing


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_published_settings_are_found_by_name_and_complete(name: str) -> None:
    words = ["--config", name, "--shards", "s", "--output", "o", "--lr=0.5"]
    _, found, _ = parse_verb("train", words)
    said = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    check(replace(found, batch_size=1))
    assert found.lr == 0.5, "the command line wins"
    assert found.weight_decay == said["weight_decay"]
    assert found.betas == tuple(said["betas"])
    assert name.startswith(("albef", "blip", "clip", "flip", "vlmo"))
    model = resolve_model_config(found, AnyVocabulary())  # type: ignore[arg-type]
    for field, value in said.get("model", {}).items():
        assert getattr(model, field) == value
