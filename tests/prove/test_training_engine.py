"""Proofs of the engine that take a while: torch.compile, and a whole ZeRO 3 run by the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.cli import main
from models.batch import Batch, StepContext
from models.exported import load_weights, model_config, read_exported_config
from models.recipes import RECIPES
from models.training.checkpoint import list_complete
from models.training.compiling import blocks, compile_system
from models.training.config import TrainConfig
from tests.models.toy_shards import write_shards

pytestmark = pytest.mark.prove

SMALL = {
    "image_size": 32, "patch_size": 16, "vision_width": 32, "vision_depth": 2, "vision_heads": 2,
    "text_width": 32, "text_depth": 4, "text_heads": 2, "embed_dim": 16, "max_text_length": 16,
}  # fmt: skip


def curve(*, compiled: bool, recompute: bool) -> list[float]:
    """Losses of four steps with texts of four lengths."""
    torch.manual_seed(0)
    config = replace(
        RECIPES["albef"].SIZES["tiny"], **SMALL, fusion_start=2, text_positions=16, queue_size=32,
        vocab_size=64, gradient_checkpointing=recompute,
    )  # fmt: skip
    system = RECIPES["albef"].build(config)
    options = TrainConfig(shards="-", output="-", steps=1, compile="on" if compiled else "off")
    assert compile_system(system, options, torch.device("cpu")) is compiled
    made = [block._compiled_call_impl is not None for block in blocks(system.model)]
    assert made == [compiled] * 6
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=1e-3)
    found = []
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        length = 16 - 2 * step
        batch = Batch(
            image_BCHW=torch.randn(6, 3, 32, 32, generator=g),
            text_ids_BT=torch.randint(5, 64, (6, length), generator=g),
            text_mask_BT=torch.ones(6, length, dtype=torch.int64),
            image_id_B=torch.arange(6),
        )
        context = StepContext(seed=0, step=step)
        system.begin_step(context, system.model)
        with torch.no_grad():
            [extras] = system.prepare([batch], context)
        loss = system.model(batch, context, extras)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        system.after_micro_step(batch, extras)
        found.append(loss.item())
    return found


@pytest.mark.timeout(900)
def test_compiled_blocks_give_the_curve_of_plain_ones() -> None:
    plain = curve(compiled=False, recompute=False)
    for recompute in (False, True):
        assert curve(compiled=True, recompute=recompute) == pytest.approx(plain, rel=1e-5)
    assert max(plain) - min(plain) > 0.1


@pytest.mark.timeout(900)
def test_a_zero_3_run_stops_resumes_and_exports_what_zero_0_does(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", shards=2, samples=24)

    def train(name: str, *more: str) -> int:
        words = [
            "train", "--shards", str(shards), "--output", str(tmp_path / name), "--recipe", "clip",
            f"--model={json.dumps(SMALL)}", "--vocab_size=64", "--batch_size=8", "--accumulation=2",
            "--steps=8", "--lr=3e-3", "--warmup_steps=2", "--processes=2", "--log_every=1", *more,
        ]  # fmt: skip
        return main(words)

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    offloaded = ("--zero.stage=3", "--zero.offload_optimizer=cpu", "--zero.offload_parameters=cpu")
    assert train("whole", "--zero.stage=0", "--checkpoint_every=0") == 0
    assert train("parts", *offloaded, "--recompute", "--checkpoint_every=3") == 0
    [_, last] = list_complete(tmp_path / "parts")
    assert last.name == "step_00000006"
    # go on from step 6 as if the end had not been reached
    record = tmp_path / "parts" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "running"}))
    assert train("parts", *offloaded, "--recompute", "--checkpoint_every=3") == 0
    for a, b in zip(rows("whole"), rows("parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert abs(rows("whole")[0]["loss"] - rows("whole")[-1]["loss"]) > 0.05
    vectors = []
    for name in ("whole", "parts"):
        folder = tmp_path / name / "model"
        exported = read_exported_config(folder)
        assert exported.model["gradient_checkpointing"] is False
        model = RECIPES["clip"].build(model_config(exported)).model
        load_weights(model, folder)
        vectors.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (vectors[0] - vectors[1]).norm() < 3e-3 * vectors[0].norm()
