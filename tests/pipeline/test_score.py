"""Score with real models of random weights: our own tiny CLIP, and a tiny one of open_clip."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from models.exported import ExportedConfig, write_exported
from models.recipes import RECIPES
from models.tokenizer import train_wordpiece
from pipeline import manifest
from pipeline.errors import ConfigError
from pipeline.stages.score import ScoreConfig, ScoreStage
from pipeline.weights import model_fingerprint
from tests.pipeline.folders import crawled, jpeg, make_foreign, make_images, run_here

OPEN_CLIP = "pairmill-test"
OPEN_CLIP_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def write_model(folder: Path, seed: int = 0) -> Path:
    """A model/ folder as training exports it, of random weights."""
    tokenizer = train_wordpiece(
        [f"picture {n} of shard {n}" for n in range(9)], vocab_size=80, folder=folder.with_name("tok")
    )
    recipe = RECIPES["clip"]
    config = dataclasses.replace(
        recipe.SIZES["tiny"], image_size=32, vision_depth=1, text_depth=1, vocab_size=tokenizer.vocab_size
    )
    torch.manual_seed(seed)
    exported = ExportedConfig(
        recipe="clip",
        size="tiny",
        model=dataclasses.asdict(config),
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        max_text_tokens=16,
        training={},
    )
    write_exported(folder, model=recipe.build(config).model, config=exported, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny open_clip model, whose name open_clip knows after this."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / f"{OPEN_CLIP}.json").write_text(json.dumps(OPEN_CLIP_CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model(OPEN_CLIP).state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def _png_bomb() -> bytes:
    """A small file that says it holds 10 gigapixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


def _world() -> dict[int, list[dict[str, Any]]]:
    line = io.BytesIO()
    Image.new("RGB", (2000, 1)).save(line, "JPEG")
    return {
        0: [crawled(0, i) for i in range(7)] + [crawled(0, 7, reason="timeout")],
        1: [
            crawled(1, 0),
            crawled(1, 1, picture=b"no picture at all"),
            crawled(1, 2, picture=jpeg(5)[:300]),
            crawled(1, 3, picture=_png_bomb()),
            crawled(1, 4, picture=line.getvalue()),
            crawled(1, 5, picture=None),
            crawled(1, 6, caption=None),
            crawled(1, 7),
        ],
    }


def _scores(folder: Path, name: str = "clip_score") -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        assert table.column_names == ["key", name]
        assert str(table.schema.field(name).type) == "float"
        found |= dict(zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True))
    return found


def test_a_row_for_every_success_and_a_reason_for_every_null(tmp_path: Path, model: Path) -> None:
    make_images(tmp_path / "images", _world())
    stage = ScoreStage(ScoreConfig(input=str(tmp_path / "images"), model=str(model), batch_size=3))
    counts = run_here(stage, tmp_path / "out")
    reasons = {"undecodable": 4, "missing_in_shard": 1, "no_caption": 1}
    assert counts.to_json() == {"in": 15, "out": 9, "dropped": reasons}
    scores = _scores(tmp_path / "out")
    assert list(scores) == [f"{0:08d}{i:04d}" for i in range(7)] + [f"{1:08d}{i:04d}" for i in range(8)]
    given = [key for key, score in scores.items() if score is not None]
    assert given == [f"{0:08d}{i:04d}" for i in range(7)] + ["000000010000", "000000010007"]
    values = [scores[key] for key in given]
    assert len(set(values)) == len(values)
    assert all(-1 <= v <= 1 for v in values if v is not None)
    (_, record) = manifest.read_all(str(tmp_path / "out"))
    here = {"device": "cpu", "threads": 1, "torch": torch.__version__}
    assert record["notes"] == {"model": "clip-tiny", **here}


def test_equals_open_clip_computed_by_hand(tmp_path: Path, checkpoint: Path) -> None:
    rows = [crawled(0, i) for i in range(5)]
    make_images(tmp_path / "images", {0: rows})
    config = ScoreConfig(
        input=str(tmp_path / "images"), model=OPEN_CLIP, pretrained=str(checkpoint), name="b32", batch_size=2
    )
    run_here(ScoreStage(config), tmp_path / "out")
    network, _, preprocess = open_clip.create_model_and_transforms(OPEN_CLIP, pretrained=str(checkpoint))
    tokenizer = open_clip.get_tokenizer(OPEN_CLIP)
    network.eval()
    with torch.no_grad():
        pictures = torch.stack([preprocess(Image.open(io.BytesIO(r["picture"]))) for r in rows])
        image_BE = network.encode_image(pictures, normalize=True)
        text_BE = network.encode_text(tokenizer([r["caption"] for r in rows]), normalize=True)
        expected = (image_BE * text_BE).sum(dim=1).numpy()
    found = list(_scores(tmp_path / "out", "b32").values())
    np.testing.assert_allclose(np.array(found, np.float32), expected, atol=1e-5)


def test_img2dataset_folder_is_scored(tmp_path: Path, model: Path) -> None:
    folder = make_foreign(tmp_path / "images", {2: [crawled(2, 0), crawled(2, 1, reason="x"), crawled(2, 2)]})
    counts = run_here(ScoreStage(ScoreConfig(input=str(folder), model=str(model))), tmp_path / "out")
    assert (counts.taken, counts.kept) == (2, 2)
    assert list(_scores(tmp_path / "out")) == ["000020000", "000020002"]


def test_bf16_is_near_fp32(tmp_path: Path, model: Path) -> None:
    make_images(tmp_path / "images", {0: [crawled(0, i) for i in range(4)]})
    config = ScoreConfig(input=str(tmp_path / "images"), model=str(model))
    run_here(ScoreStage(config), tmp_path / "full")
    run_here(ScoreStage(dataclasses.replace(config, precision="bf16")), tmp_path / "half")
    full, half = _scores(tmp_path / "full"), _scores(tmp_path / "half")
    assert full != half
    for key, score in full.items():
        assert half[key] == pytest.approx(score, abs=0.02)


def test_other_weights_are_another_score(tmp_path: Path, model: Path) -> None:
    make_images(tmp_path / "images", {0: [crawled(0, 0)]})
    config = ScoreConfig(input=str(tmp_path / "images"), model=str(model))
    run_here(ScoreStage(config), tmp_path / "out")
    other = write_model(tmp_path / "other", seed=1)
    changed = ScoreStage(dataclasses.replace(config, model=str(other)))
    with pytest.raises(ConfigError, match=r"inputs changed \(model\).*--overwrite"):
        run_here(changed, tmp_path / "out")
    copy = write_model(tmp_path / "copy", seed=0)
    assert model_fingerprint(str(copy), None) == model_fingerprint(str(model), None)
    assert run_here(ScoreStage(dataclasses.replace(config, model=str(copy))), tmp_path / "out").taken == 0


def test_bad_options_are_refused_before_anything_runs(tmp_path: Path, model: Path) -> None:
    make_images(tmp_path / "images", {0: [crawled(0, 0)]})
    images = str(tmp_path / "images")
    for changes, message in (
        ({"kind": "beauty"}, "must be one of clip"),
        ({"precision": "fp8"}, "fp32, bf16"),
        ({"name": "key"}, "column name"),
        ({"name": "a b; DROP"}, "column name"),
        ({"batch_size": 0}, "batch_size"),
        ({"model": ""}, "give --model"),
        ({"model": "runs/nothing/model"}, "does not exist"),
        ({"pretrained": "laion2b"}, "leave pretrained"),
        ({"model": "ViT-B-32", "pretrained": "/nowhere/weights.pt"}, "is no file"),
        ({"model": "ViT-B-32"}, "needs --pretrained"),
        ({"input": str(tmp_path / "nothing")}, "does not exist"),
    ):
        given: dict[str, Any] = {"input": images, "model": str(model), **changes}
        with pytest.raises(ConfigError, match=message):
            ScoreStage(ScoreConfig(**given)).plan([])


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [("ViT-B-99", "x", "knows no model"), ("ViT-B-32", None, "needs pretrained"), ("ViT-B-32", "x", "tags:")],
)
def test_a_model_that_cannot_be_loaded_is_a_mistake_of_the_user(
    name: str, pretrained: str | None, message: str
) -> None:
    stage = ScoreStage(ScoreConfig(model=name, pretrained=pretrained))
    with pytest.raises(ConfigError, match=message):
        stage.start()
