"""VLMo's stages as real runs over two gloo processes at ZeRO 2, each from the model of the one before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from jobs.train import train
from models.training.config import TrainConfig
from tests.models.toy_shards import write_shards

TINY = {
    "image_size": 32, "patch_size": 16, "width": 32, "depth": 3, "heads": 2, "joint_start": 2,
    "positions": "relative", "layer_scale": 0.1, "embed_dim": 16, "max_text_length": 16, "text_window": 20,
    "mlm_probability": 0.5, "drop_path": 0.1,
}  # fmt: skip
STEPS = 6
TEXT_ONLY = ("text_embed.", "mlm_head.", "experts.text.")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vlmo")
    shards = str(write_shards(folder / "shards", shards=2, samples=20))
    done: dict[str, Path] = {}
    before = None
    for stage in ("image", "text", "vision_language"):
        done[stage] = folder / stage
        config = TrainConfig(
            shards=shards, output=str(done[stage]), recipe="vlmo", model={**TINY, "stage": stage},
            vocab_size=64, batch_size=8, accumulation=2, steps=STEPS, lr=1e-2, weight_decay=0.5,
            warmup_steps=2, processes=2,
            checkpoint_every=0, log_every=1, init_from=before,
        )  # fmt: skip
        assert train(config) == 0, stage
        before = str(done[stage] / "model")
    return done


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not old[name].equal(new[name])}


@pytest.mark.prove
def test_every_stage_trains_and_its_loss_falls(runs: dict[str, Path]) -> None:
    for stage, part in (("image", "mim"), ("text", "mlm"), ("vision_language", "itc")):
        rows = [json.loads(line) for line in (runs[stage] / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert rows[-1]["loss"] < rows[0]["loss"], stage
        assert part in rows[0]
        assert all(row["grad_norm"] > 0 for row in rows)


@pytest.mark.prove
def test_stage_text_changes_the_text_parts_alone(runs: dict[str, Path]) -> None:
    moved = changed(runs["image"], runs["text"])
    table = "transformer.positions.table"
    assert {name for name in moved if not any(part in name for part in TEXT_ONLY)} == {table}
    assert {name.split(".")[0] for name in moved} == {"text_embed", "mlm_head", "transformer"}
    image_rows = (2 * 2 - 1) ** 2 + 3
    before, after = weights(runs["image"])[table], weights(runs["text"])[table]
    assert before[:image_rows].equal(after[:image_rows])
    assert before[:image_rows].abs().max() > 0
    assert not before[image_rows + 2 :].equal(after[image_rows + 2 :])


@pytest.mark.prove
def test_stage_vision_language_changes_everything_but_what_it_has_no_use_for(runs: dict[str, Path]) -> None:
    moved = changed(runs["text"], runs["vision_language"])
    idle = weights(runs["text"]).keys() - moved
    assert idle == {"pixels.weight", "pixels.bias", "image_embed.mask_token", "text_embed.position"}
