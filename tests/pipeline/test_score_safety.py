"""Kind safety: the detector against its own package, heads against torch, over stored embeddings."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nudenet import NudeDetector
from nudenet import nudenet as package
from PIL import Image

from pipeline import manifest
from pipeline.errors import ConfigError
from pipeline.stages.score import ScoreConfig, ScoreStage, safety
from pipeline.stages.score.safety_detector import (
    CLASSES,
    EXPLICIT,
    SIDE,
    DetectorJudge,
    Prepared,
    _detections,
    prepare,
    summary,
)
from pipeline.stages.score.safety_head import read_head
from tests.pipeline.folders import FixedColumns, crawled, jpeg, make_candidates, make_images, run_here

WIDTH = 12


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _pictures() -> list[np.ndarray]:
    """Faces at several sizes and shapes, and pictures of nothing."""
    face = skimage.data.astronaut()
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = [
        np.array(Image.fromarray(small).resize(size)) for size in ((401, 77), (33, 640), (320, 320), (1, 9))
    ]
    return [face, face[:300, 100:400], face[50:250, 150:300], face[::2, ::2], face[:200], *smooth]


@pytest.fixture(scope="module")
def judge() -> DetectorJudge:
    return DetectorJudge(ScoreConfig(kind="safety"), safety.detector_weights())


def _best(detections: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in detections:
        found[one["class"]] = max(found.get(one["class"], 0.0), one["score"])
    return found


def test_the_detector_says_what_its_package_says(judge: DetectorJudge) -> None:
    pictures, theirs = _pictures(), NudeDetector()
    expected = [_best(theirs.detect(_png(p))) for p in pictures]
    assert any(expected), "the package finds a face"
    assert judge.detect([prepare(p) for p in pictures]) == expected, "in one batch"
    assert [judge.detect([prepare(p)])[0] for p in pictures] == expected, "and one by one"


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_what_the_network_sees_is_what_the_package_shows_it(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs_1CHW = package._read_image(_png(pixels))[0]
    ours_HWC = prepare(pixels).image_HWC
    assert np.array_equal(
        ours_HWC.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255), theirs_1CHW[0]
    )


def test_a_very_long_picture_takes_no_more_memory_than_itself() -> None:
    """On the package's black square it would be 1.2 GB."""
    found = prepare(np.full((40, 20_000, 3), 255, np.uint8))
    assert (found.image_HWC > 0).any(axis=(1, 2)).sum() == 1
    assert found.image_HWC.shape == (SIDE, SIDE, 3)


@given(st.integers(0, 10_000), st.integers(1, 900), st.integers(1, 900))
@settings(max_examples=60, deadline=None)
def test_answers_of_the_network_are_read_as_the_package_reads_them(
    seed: int, width: int, height: int
) -> None:
    """Made up, so that every class comes up, boxes overlap and lie over the edges."""
    draw = np.random.default_rng(seed)
    places_PC = np.zeros((40, 4 + len(CLASSES)), np.float32)
    places_PC[:, :2] = draw.uniform(0, SIDE, (40, 2))
    places_PC[:, 2:4] = draw.uniform(1, SIDE, (40, 2))
    places_PC[np.arange(40), 4 + draw.integers(0, len(CLASSES), 40)] = draw.uniform(0, 1, 40)
    places_PC[20:, :4] = places_PC[:20, :4] + draw.uniform(-3, 3, (20, 4))
    longer = max(width, height)
    padding = {"x_pad": longer - width, "y_pad": longer - height, "x_ratio": 1, "y_ratio": 1}
    sizes = {"image_original_width": width, "image_original_height": height}
    theirs = package._postprocess(
        [places_PC.T[None]], **padding, **sizes, model_width=SIDE, model_height=SIDE
    )
    picture = Prepared(np.zeros((SIDE, SIDE, 3), np.uint8), width, height)
    assert _detections(places_PC, picture) == _best(theirs)


def test_classes_are_those_of_the_package() -> None:
    assert list(CLASSES) == package.__dict__["__labels"]
    assert set(CLASSES) >= EXPLICIT
    assert {name for name in CLASSES if name.endswith("EXPOSED")} - EXPLICIT == {
        *("MALE_BREAST_EXPOSED", "FEET_EXPOSED", "ARMPITS_EXPOSED", "BELLY_EXPOSED")
    }


def test_the_score_is_the_highest_of_an_explicit_class() -> None:
    assert summary({}) == (0.0, None)
    assert summary({"FACE_MALE": 0.9, "BELLY_EXPOSED": 0.8}) == (0.0, "BELLY_EXPOSED,FACE_MALE")
    both = {"FEMALE_BREAST_EXPOSED": 0.6, "BUTTOCKS_EXPOSED": 0.7, "FACE_FEMALE": 0.9}
    assert summary(both) == (0.7, "BUTTOCKS_EXPOSED,FACE_FEMALE,FEMALE_BREAST_EXPOSED")


def _images(folder: Path) -> Path:
    rows = [crawled(0, i, picture=_png(p)) for i, p in enumerate(_pictures()[1:4])]
    broken = [
        crawled(0, 20, picture=b"x"),
        crawled(0, 21, picture=None),
        crawled(0, 22, picture=jpeg(1)[:300]),
    ]
    return make_images(folder, {0: [*rows, *broken, crawled(0, 23, reason="timeout")]})


def test_pictures_of_a_shard_and_those_that_cannot_be_seen(tmp_path: Path) -> None:
    images = _images(tmp_path / "images")
    for threads in (1, 3):
        config = ScoreConfig(input=str(images), kind="safety", decode_threads=threads)
        counts = run_here(ScoreStage(config), tmp_path / str(threads))
        assert counts.to_json()["dropped"] == {"undecodable": 2, "missing_in_shard": 1}
    table = pq.read_table(tmp_path / "1/00000000.parquet")
    assert (tmp_path / "1/00000000.parquet").read_bytes() == (tmp_path / "3/00000000.parquet").read_bytes()
    assert [(f.name, f.type) for f in table.schema][1:] == [
        ("unsafe", pa.float32()),
        ("unsafe_labels", pa.string()),
    ]
    assert table["unsafe"].to_pylist() == [0.0] * 3 + [None] * 3
    assert table["unsafe_labels"].to_pylist()[:2] == ["FACE_FEMALE"] * 2
    (record,) = manifest.read_all(str(tmp_path / "1"))
    assert record["notes"]["model"].startswith("nudenet 3.")
    run_here(ScoreStage(ScoreConfig(input=str(images), kind="safety", name="nsfw")), tmp_path / "named")
    assert pq.read_table(tmp_path / "named/00000000.parquet").column_names == ["key", "nsfw", "nsfw_labels"]


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _images(tmp_path / "images")
    found = importlib.util.find_spec
    for missing in ("nudenet", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda n, m=missing: None if n == m else found(n))
            with pytest.raises(ConfigError, match=r"pip install 'pairmill\[safety\]', or give --safety.head"):
                ScoreStage(ScoreConfig(input=str(images), kind="safety")).plan([])


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="device 'cuda': this onnxruntime has no CUDA"):
        DetectorJudge(ScoreConfig(kind="safety", device="cuda"), safety.detector_weights())


# heads


def _sequential(kind: str) -> torch.nn.Sequential:
    torch.manual_seed(3)
    nn = torch.nn
    return {
        "probe": nn.Sequential(nn.Linear(WIDTH, 1)),
        "deep": nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 1)),
        # LAION's H/14 head ends with two layers and nothing between them
        "adjacent": nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Linear(9, 5), nn.Linear(5, 1)),
        # and its aesthetic predictor has nothing between any
        "linear": nn.Sequential(nn.Linear(WIDTH, 9), nn.Linear(9, 5, bias=False), nn.Linear(5, 1)),
    }[kind]


def _saved(model: torch.nn.Module, path: Path) -> str:
    if path.suffix == ".npz":
        np.savez(path, **{name: value.detach().numpy() for name, value in model.state_dict().items()})
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("kind", ["probe", "deep", "adjacent", "linear"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_head_computes_what_torch_computes(tmp_path: Path, kind: str, suffix: str) -> None:
    model = _sequential(kind)
    head = read_head(_saved(model, tmp_path / f"head{suffix}"))
    vectors_BE = np.random.default_rng(0).normal(size=(2000, WIDTH)).astype(np.float32) * 3
    with torch.inference_mode():
        expected_B = model(torch.from_numpy(vectors_BE))[:, 0]
    assert np.allclose(head(vectors_BE, activation="none"), expected_B.numpy(), rtol=1e-5, atol=1e-6)
    assert np.allclose(head(vectors_BE), expected_B.sigmoid().numpy(), rtol=1e-5, atol=1e-6)
    alone = np.concatenate([head(vectors_BE[i : i + 1]) for i in range(50)])
    assert np.array_equal(alone, head(vectors_BE)[:50]), "a row has its score whatever stands beside it"


def test_one_layer_may_go_without_a_number_and_far_values_do_not_overflow(tmp_path: Path) -> None:
    head = read_head(_saved(torch.nn.Linear(WIDTH, 1), tmp_path / "probe.safetensors"))
    assert head.width == WIDTH
    with np.errstate(all="raise"):
        assert head(np.full((1, WIDTH), 1e6)).tolist() in ([0.0], [1.0])


def _f(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds nothing; layers are named 0.weight"),
        ({"linear_1.weight": _f(1, 4)}, "holds linear_1.weight; layers are named"),
        ({"layers.0.weight": _f(1, 4)}, "holds layers.0.weight"),
        ({"0.weight": _f(4)}, r"layer 0 has weight \[4\] and bias \[4\]"),
        ({"0.weight": _f(1, 4), "0.bias": _f(2)}, r"weight \[1, 4\] and bias \[2\]"),
        ({"0.bias": _f(1), "2.weight": _f(1, 1)}, r"layer 0 has weight \[0\]"),
        ({"0.weight": _f(3, 4), "2.weight": _f(1, 5)}, "layer 2 reads 5 values, the one before it gives 3"),
        ({"0.weight": _f(2, 4)}, "gives 2 values; it must give one"),
        ({"0.weight": _f(1, 4) * np.nan}, "must hold finite"),
        ({"0.weight": np.ones((1, 4), np.int32)}, "must hold finite floating-point"),
    ],
)
def test_files_that_are_no_head(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "head.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        read_head(str(tmp_path / "head.npz"))


def test_nothing_is_unpickled_and_damage_is_named(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "trap.npz", **{"0.weight": np.array([Trap()], object)})
    torch.save({"0.weight": Trap()}, tmp_path / "trap.pth")
    safetensors.numpy.save_file({"0.weight": _f(1, 4)}, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-3])
    (tmp_path / "text.npz").write_text("hello")
    for name, message in (
        ("trap.npz", "cannot be read"),
        ("trap.pth", "pickled weights .* are not read"),
        ("cut.safetensors", "cannot be read"),
        ("text.npz", "cannot be read"),
        ("none.npz", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_head(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


def _embeddings(folder: Path, rows: list[list[float] | None], *, size: int = WIDTH) -> str:
    kind = pa.list_(pa.float16(), size)
    values = [None if row is None else [np.float16(x) for x in row] for row in rows]
    keys = [f"{0:08d}{i:04d}" for i in range(len(rows))]
    table = pa.table({"key": keys, "image_embedding": pa.array(values, kind)})
    run_here(FixedColumns({0: table}), folder, overwrite=True)
    return str(folder)


def _unopened(folder: Path, rows: int) -> str:
    """Images whose pictures cannot even be found: nothing may look at them."""
    make_images(folder, {0: [crawled(0, i) for i in range(rows)]})
    (folder / "00000000.tar").unlink()
    return str(folder)


def test_stored_embeddings_are_judged_and_no_picture_is_read(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float16)
    rows: list[Any] = [*vectors.tolist(), None, [float("nan")] * WIDTH]
    model = _sequential("deep")
    given_ = {"input": _unopened(tmp_path / "images", 7), "kind": "safety"}
    given_["columns"] = _embeddings(tmp_path / "embedding", rows)
    head = _saved(model, tmp_path / "head.safetensors")
    config = ScoreConfig(**given_, safety=safety.SafetyOptions(head=head))
    counts = run_here(ScoreStage(config), tmp_path / "out")
    assert counts.to_json() == {"in": 7, "out": 5, "dropped": {"no_embedding": 1, "not_finite": 1}}
    with torch.inference_mode():
        expected = model(torch.from_numpy(vectors.astype(np.float32)))[:, 0]
    table = pq.read_table(tmp_path / "out/00000000.parquet")
    assert table.column_names == ["key", "unsafe"]
    assert table["unsafe"].to_pylist()[:5] == pytest.approx(expected.sigmoid().tolist(), rel=1e-5)
    assert table["unsafe"].to_pylist()[5:] == [None, None]
    # as an aesthetic score
    options = safety.SafetyOptions(head=head, activation="none")
    run_here(ScoreStage(ScoreConfig(**given_, name="aesthetic", safety=options)), tmp_path / "aesthetic")
    raw = pq.read_table(tmp_path / "aesthetic/00000000.parquet")["aesthetic"].to_pylist()
    assert raw[:5] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
    # the content of the head is what counts, not its place
    (tmp_path / "moved").mkdir()
    moved = safety.SafetyOptions(head=_saved(model, tmp_path / "moved/other.safetensors"))
    assert run_here(ScoreStage(ScoreConfig(**given_, safety=moved)), tmp_path / "out").taken == 0
    other = safety.SafetyOptions(head=_saved(_sequential("probe"), tmp_path / "probe.npz"))
    with pytest.raises(ConfigError, match="--overwrite"):
        run_here(ScoreStage(ScoreConfig(**given_, safety=other)), tmp_path / "out")


def test_embeddings_that_do_not_fit_are_refused_before_anything_runs(tmp_path: Path) -> None:
    images = _unopened(tmp_path / "images", 2)
    head = _saved(_sequential("probe"), tmp_path / "head.safetensors")
    short = _embeddings(tmp_path / "short", [[1.0] * 4, [2.0] * 4], size=4)
    lists = _embeddings(tmp_path / "lists", [[1.0] * WIDTH, [2.0] * 4], size=-1)
    folder = make_candidates(tmp_path / "candidates", {0: [("http://a/1", "x")]})
    for changes, message in (
        ({"columns": short}, "reads embeddings of 12 dimensions, column 'image_embedding' has 4"),
        ({}, "column 'image_embedding' is needed, which neither the input nor --columns has"),
        ({"input": str(folder)}, "column 'image_embedding' is needed"),
        ({"column": "url"}, "safety.column 'url' is string, no embedding"),
        ({"activation": "relu"}, "safety.activation 'relu' must be one of sigmoid, none"),
        ({"head": "", "activation": "none"}, "are there for --safety.head"),
        ({"device": "cuda"}, "device 'cuda' means nothing with --safety.head"),
        ({"batch_size": 3}, "batch_size 3 means nothing to kind 'safety'"),
        ({"head": str(tmp_path / "no.npz")}, "does not exist"),
    ):
        own = {name: value for name, value in changes.items() if name in ("head", "column", "activation")}
        rest = {name: value for name, value in changes.items() if name not in own}
        options = safety.SafetyOptions(**{"head": head, **own})
        with pytest.raises(ConfigError, match=message):
            ScoreStage(ScoreConfig(**{"input": images, "kind": "safety", **rest}, safety=options)).plan([])
    # lists of no fixed length show in a worker
    stage = ScoreStage(
        ScoreConfig(input=images, kind="safety", columns=lists, safety=safety.SafetyOptions(head=head))
    )
    with pytest.raises(ConfigError, match="column 'image_embedding' has 4 in row 000000000001"):
        run_here(stage, tmp_path / "out")
    with pytest.raises(ConfigError, match="looks at pictures; crawl them first"):
        ScoreStage(ScoreConfig(input=str(folder), kind="safety")).plan([])
