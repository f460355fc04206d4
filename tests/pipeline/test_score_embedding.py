"""Kind embedding: unit vectors of pictures and captions, and that every reader of columns copes with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.exported import ExportedConfig, write_exported
from models.images import decode
from models.inference.clip import load_clip
from models.recipes import RECIPES
from models.tokenizer import train_wordpiece
from pipeline import columns, embeddings
from pipeline.errors import ConfigError
from pipeline.predicate import Predicate
from pipeline.shards.reader import iter_samples
from pipeline.stages.pack.stage import Pack, PackConfig
from pipeline.stages.score import ScoreConfig, ScoreStage
from pipeline.stages.score.embedding import EmbeddingOptions
from tests.pipeline.folders import crawled, make_images, run_here
from tests.pipeline.test_score import write_model

BOTH = ["key", "image_embedding", "text_embedding"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("run") / "model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [
        *(crawled(0, i) for i in range(5)),
        crawled(0, 5, picture=b"no picture at all"),
        crawled(0, 6, caption=" "),
        crawled(0, 7, picture=None),
        crawled(0, 8, picture=b"none", caption=None),
        crawled(0, 9, reason="timeout"),
    ]
    return str(make_images(tmp_path_factory.mktemp("world") / "images", {0: rows, 1: [crawled(1, 0)]}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, images: str, model: str) -> Path:
    """The column folder of both towers."""
    folder = tmp_path_factory.mktemp("columns") / "embedding"
    counts = run_here(ScoreStage(_config(images, model)), folder)
    assert counts.to_json() == {"in": 10, "out": 9, "dropped": {"undecodable": 1}}
    return folder


def _config(images: str, model: str, **changes: Any) -> ScoreConfig:
    config = ScoreConfig(kind="embedding", input=images, model=model, batch_size=2)
    return dataclasses.replace(config, **changes)


def test_vectors_are_what_the_model_says_and_each_tower_stands_alone(
    made: Path, images: str, model: str
) -> None:
    table = pq.read_table(made / "00000000.parquet")
    assert table.column_names == BOTH
    size = len(table["image_embedding"][0])
    assert [f.type for f in table.schema][1:] == [pa.list_(pa.field("element", pa.float16()), size)] * 2
    missing = {name: [at for at, v in enumerate(table[name].to_pylist()) if v is None] for name in BOTH[1:]}
    assert missing == {"image_embedding": [5, 7, 8], "text_embedding": [6, 8]}
    scorer = load_clip(model, device="cpu")
    samples = {s.key: s.members for s in iter_samples(f"{images}/00000000.tar")}
    for at in (0, 4, 6):
        picture = scorer.preprocess(decode(samples[f"{at:012d}"]["jpg"]))
        expected = scorer.encode_images(picture[None])[0].numpy()
        np.testing.assert_allclose(np.array(table["image_embedding"][at].as_py()), expected, atol=2e-3)
    expected = scorer.encode_texts(["picture 7 of shard 0"])[0].numpy()
    np.testing.assert_allclose(np.array(table["text_embedding"][7].as_py()), expected, atol=2e-3)


def test_their_inner_products_are_the_scores_of_kind_clip(
    tmp_path: Path, made: Path, images: str, model: str
) -> None:
    run_here(ScoreStage(ScoreConfig(input=images, model=model)), tmp_path / "clip")
    scores = dict(
        zip(*pq.read_table(tmp_path / "clip" / "00000000.parquet").to_pydict().values(), strict=True)
    )
    image, text = (next(embeddings.read(str(made), name)) for name in BOTH[1:])
    captions = dict(zip(text.keys, text.vectors_NE.astype(np.float32), strict=True))
    assert image.keys == [f"{i:012d}" for i in (0, 1, 2, 3, 4, 6)]
    assert image.vectors_NE.dtype == np.float16
    for key, vector_E in zip(image.keys, image.vectors_NE.astype(np.float32), strict=True):
        assert np.linalg.norm(vector_E) == pytest.approx(1, abs=1e-3)
        if key in captions:
            assert vector_E @ captions[key] == pytest.approx(scores[key], abs=1e-3)


def test_one_tower_under_another_name_and_again_the_same_bits(
    tmp_path: Path, made: Path, images: str, model: str
) -> None:
    config = _config(images, model, embedding=EmbeddingOptions(of=("image",)), name="b32")
    counts = run_here(ScoreStage(config), tmp_path / "one")
    assert counts.to_json()["dropped"] == {"missing_in_shard": 1, "undecodable": 2}
    table = pq.read_table(tmp_path / "one" / "00000000.parquet")
    assert table.column_names == ["key", "image_b32"]
    run_here(ScoreStage(_config(images, model, decode_threads=7)), tmp_path / "again")
    for name in ("00000000.parquet", "00000001.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_columns_keep_the_type_and_a_shard_without_any_has_it_too(
    tmp_path: Path, made: Path, images: str, model: str
) -> None:
    written = pq.read_schema(made / "00000000.parquet").field("image_embedding").type
    joined = columns.read_joined(f"{images}/00000000.parquet", [str(made / "00000000.parquet")])
    assert joined.schema.field("image_embedding").type == written
    assert joined["image_embedding"].null_count == 4  # the failed download as well
    empty = make_images(tmp_path / "images", {0: [crawled(0, 0, reason="timeout")]})
    run_here(ScoreStage(_config(str(empty), model)), tmp_path / "none")
    none = columns.read_column(str(tmp_path / "none" / "00000000.parquet"))
    assert none.schema.field("image_embedding").type == written
    assert len(columns.concat([none, columns.read_column(str(made / "00000001.parquet"))])) == 1
    frame = joined.to_pandas()
    assert frame["image_embedding"][0].dtype == np.float16
    assert frame["image_embedding"][5] is None


def test_rules_look_at_other_columns_and_at_whether_there_is_one(made: Path, images: str) -> None:
    table = columns.read_joined(f"{images}/00000000.parquet", [str(made / "00000000.parquet")])
    assert Predicate("width > 3").evaluate(table).to_pylist() == [True] * 9 + [None]
    found = Predicate("image_embedding IS NOT NULL AND text_embedding IS NOT NULL").evaluate(table)
    assert found.to_pylist() == [True] * 5 + [False] * 5
    with pytest.raises(ConfigError, match="image_embedding"):
        Predicate("image_embedding > 3").check(table.schema)


def test_pack_keeps_them_in_the_parquet_and_out_of_the_json(tmp_path: Path, made: Path, images: str) -> None:
    where = "image_embedding IS NOT NULL AND width > 3"
    config = PackConfig(input=images, columns=(str(made),), where=where, group=2)
    counts = run_here(Pack(config), tmp_path / "shards")
    assert (counts.taken, counts.kept) == (11, 7)
    (path,) = (tmp_path / "shards").glob("*.parquet")
    table = pq.read_table(path)
    assert (
        table.schema.field("image_embedding").type == pq.read_schema(made / "00000000.parquet").field(1).type
    )
    assert table["image_embedding"].null_count == 0
    for sample in iter_samples(str(path.with_suffix(".tar"))):
        assert not {"image_embedding", "text_embedding"} & json.loads(sample.members["json"]).keys()


@pytest.mark.parametrize("of", [(), ("image", "image"), ("sound",)])
def test_what_is_no_tower_is_refused(images: str, model: str, of: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"embedding.of .* must be \[image\], \[text\] or"):
        ScoreStage(_config(images, model, embedding=EmbeddingOptions(of=of)))


def test_other_kinds_refuse_its_options(images: str, model: str) -> None:
    with pytest.raises(ConfigError, match=r"embedding .* means nothing to kind 'clip'"):
        ScoreStage(_config(images, model, kind="clip", embedding=EmbeddingOptions(of=("image",))))


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("blip", {"objectives": ("lm",)}, "no common space: it was trained for lm alone"),
        ("vlmo", {"stage": "image"}, "no common space: it comes from stage 'image'"),
    ],
)
def test_a_model_without_a_joint_space_is_refused(
    tmp_path: Path, images: str, recipe: str, changes: dict[str, Any], message: str
) -> None:
    folder = _write(tmp_path / "model", recipe, changes)
    for kind in ("embedding", "clip"):
        with pytest.raises(ConfigError, match=message):
            ScoreStage(_config(images, str(folder), kind=kind)).start()


def _write(folder: Path, recipe: str, changes: dict[str, Any]) -> Path:
    tokenizer = train_wordpiece(["a picture"], vocab_size=60, folder=folder.with_name("tokenizer"))
    module = RECIPES[recipe]
    config = tokenizer.fit(dataclasses.replace(module.SIZES["tiny"], **changes))
    torch.manual_seed(0)
    exported = ExportedConfig(
        recipe=recipe, size="tiny", model=dataclasses.asdict(config), image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5), max_text_tokens=16, training={},
    )  # fmt: skip
    write_exported(folder, model=module.build(config).model, config=exported, tokenizer=tokenizer)
    return folder
