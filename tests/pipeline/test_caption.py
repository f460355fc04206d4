"""Caption with tiny models of random weights: columns, counts, digests, the same bits, and bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.cli import main
from models.images import decode
from models.inference.captioner import load_captioner
from models.inference.clip import load_clip
from models.inference.generation import Beam, Nucleus
from models.inference.matcher import load_matcher
from pipeline import manifest, session
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.stages.caption import BeamOptions, CaptionConfig, CaptionStage, NucleusOptions
from pipeline.stages.caption.captioned import SCHEMA, Captioned, sidecar
from pipeline.stages.caption.worker import best_places
from tests.models.blip_folders import write_blip, write_clip
from tests.models.foreign_folders import write_foreign
from tests.pipeline.folders import crawled, jpeg, make_candidates, make_columns, make_images, run_here

SHORT = NucleusOptions(min_length=3, max_length=12)


class World(NamedTuple):
    images: Path
    captioner: str
    filter: str
    clip: str
    clip2: str

    def config(self, **changes: Any) -> CaptionConfig:
        """A small run with all models."""
        given: dict[str, Any] = {
            "input": str(self.images), "captioner": self.captioner, "filter": self.filter,
            "clip": self.clip, "clip2": self.clip2, "candidates": 4, "clip2_top": 2, "nucleus": SHORT,
            "batch_size": 3, "rows": 8,
        }  # fmt: skip
        return CaptionConfig(**{**given, **changes})


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("world")
    images = make_images(
        place / "images",
        {
            0: [crawled(0, i) for i in range(5)] + [crawled(0, 5, reason="timeout")],
            1: [
                crawled(1, 0),
                crawled(1, 1, picture=b"no picture at all"),
                crawled(1, 2, picture=None),
                crawled(1, 3, caption=None),
                crawled(1, 4),
            ],
        },
    )
    return World(
        images,
        str(write_blip(place / "captioner", objectives=("lm",), seed=1)),
        str(write_blip(place / "filter", objectives=("itc", "itm"), seed=2)),
        str(write_clip(place / "clip", seed=3)),
        str(write_clip(place / "clip2", seed=4)),
    )


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        assert table.schema.remove_metadata().equals(pa.schema([("key", pa.string()), *SCHEMA]))
        found |= {row.pop("key"): row for row in table.to_pylist()}
    return found


def test_every_column_is_what_the_models_say(world: World, tmp_path: Path) -> None:
    counts = run_here(CaptionStage(world.config()), tmp_path / "out")
    assert counts.to_json() == {"in": 10, "out": 8, "dropped": {"undecodable": 1, "missing_in_shard": 1}}
    rows = rows_in(tmp_path / "out")
    assert list(rows) == [f"{0:08d}{i:04d}" for i in range(5)] + [f"{1:08d}{i:04d}" for i in range(5)]
    assert {key for key, row in rows.items() if not any(row.values())} == {"000000010001", "000000010002"}

    # one picture by hand, each model alone
    key, image = "000000000003", decode(jpeg(3))
    how = Nucleus(candidates=4, min_length=3, max_length=12)
    [texts] = load_captioner(world.captioner, device="cpu").caption([image], how=how, keys=[key])
    row = rows[key]
    assert row["synthetic_captions"] == texts
    both = [*texts, "picture 3 of shard 0"]
    matched = (
        load_matcher(world.filter, device="cpu").score([image], both, picture=[0] * 5).matched_P.tolist()
    )
    assert [*row["synthetic_itm"], row["web_itm"]] == pytest.approx(matched, abs=1e-5)
    cosines = []
    for model in (world.clip, world.clip2):
        scorer = load_clip(model, device=torch.device("cpu"))
        image_BE = scorer.encode_images(scorer.preprocess(image)[None])
        cosines.append((image_BE * scorer.encode_texts(both)).sum(1).tolist())
    assert [*row["synthetic_clip"], row["web_clip"]] == pytest.approx(cosines[0], abs=1e-5)
    best = sorted(range(4), key=lambda i: -cosines[0][i])[:2]
    assert [i for i, v in enumerate(row["synthetic_clip2"]) if v is not None] == sorted(best)
    assert [row["synthetic_clip2"][i] for i in best] == pytest.approx([cosines[1][i] for i in best], abs=1e-5)
    # a text of the web's that is missing has no scores, its picture has captions
    alone = rows["000000010003"]
    assert (alone["web_itm"], alone["web_clip"]) == (None, None)
    assert len(alone["synthetic_captions"]) == len(alone["synthetic_itm"]) == 4
    (_, record) = manifest.read_all(str(tmp_path / "out"))
    names = {"captioner": "blip-tiny", "filter": "blip-tiny", "clip": "clip-tiny", "clip2": "clip-tiny"}
    assert record["notes"] == names


def test_what_is_written_about_a_picture_hangs_on_its_key_and_the_seed(world: World, tmp_path: Path) -> None:
    config = world.config(filter="", clip="", clip2="", clip2_top=5)
    run_here(CaptionStage(config), tmp_path / "a")
    run_here(CaptionStage(dataclasses.replace(config, batch_size=2, rows=3)), tmp_path / "b")
    texts = {name: {k: r["synthetic_captions"] for k, r in rows_in(tmp_path / name).items()} for name in "ab"}
    assert texts["a"] == texts["b"]
    # the same pictures in the other order, under the same keys
    rows = [crawled(0, i) for i in (4, 2, 0, 1, 3)]
    make_images(tmp_path / "turned", {0: rows})
    run_here(CaptionStage(dataclasses.replace(config, input=str(tmp_path / "turned"))), tmp_path / "c")
    turned = {k: r["synthetic_captions"] for k, r in rows_in(tmp_path / "c").items()}
    assert turned == {key: texts["a"][key] for key in turned}
    run_here(CaptionStage(dataclasses.replace(config, seed=1)), tmp_path / "d")
    assert all(
        row["synthetic_captions"] != texts["a"][key]
        for key, row in rows_in(tmp_path / "d").items()
        if texts["a"][key]
    )


def test_where_leaves_the_others_null(world: World, tmp_path: Path) -> None:
    scores = {0: [0.1, 0.9, None, 0.2, 0.5], 1: [0.1, 0.1, 0.9, None, 0.2]}
    folder = make_columns(
        tmp_path / "clip",
        {s: {"key": [f"{s:08d}{i:04d}" for i in range(5)], "clip_score": v} for s, v in scores.items()},
    )
    config = world.config(where="clip_score < 0.3", columns=[str(folder)], clip="", clip2="", clip2_top=5)
    counts = run_here(CaptionStage(config), tmp_path / "out")
    dropped = {"not_selected": 3, "not_selected_null": 2, "undecodable": 1}
    assert counts.to_json() == {"in": 10, "out": 4, "dropped": dropped}
    given = [key for key, row in rows_in(tmp_path / "out").items() if row["synthetic_captions"]]
    assert given == ["000000000000", "000000000003", "000000010000", "000000010004"]
    assert all(row["synthetic_clip"] is None for row in rows_in(tmp_path / "out").values())
    with pytest.raises(ConfigError, match="clip_scor"):
        CaptionStage(dataclasses.replace(config, where="clip_scor < 0.3")).plan([])


def test_a_filter_alone_judges_the_webs_texts(world: World, tmp_path: Path) -> None:
    config = CaptionConfig(input=str(world.images), filter=world.filter, clip=world.clip)
    counts = run_here(CaptionStage(config), tmp_path / "out")
    dropped = {"undecodable": 1, "missing_in_shard": 1, "no_caption": 1}
    assert counts.to_json() == {"in": 10, "out": 7, "dropped": dropped}
    rows = rows_in(tmp_path / "out").values()
    assert all(row[name] is None for row in rows for name in SCHEMA.names if name.startswith("synthetic"))
    assert sum(row["web_itm"] is not None and row["web_clip"] is not None for row in rows) == 7


def test_the_content_of_every_model_is_in_the_digest(world: World, tmp_path: Path) -> None:
    def digests(**changes: Any) -> tuple[str, ...]:
        stage = CaptionStage(world.config(**changes))
        return tuple(unit.digest(stage) for unit in stage.plan([]))

    base = digests()
    copy = write_blip(tmp_path / "copy", objectives=("lm",), seed=1)
    assert digests(captioner=str(copy)) == base
    assert digests(decode_threads=7, cpus=2.0, device="cpu") == base
    other = str(write_blip(tmp_path / "other", objectives=("lm", "itc", "itm"), seed=9))
    other_clip = str(write_clip(tmp_path / "other-clip", seed=9))
    changed = [
        digests(captioner=other), digests(filter=other), digests(clip=other_clip), digests(clip2=other_clip),
        digests(clip2="", clip2_top=5), digests(filter=""), digests(candidates=5), digests(seed=1),
        digests(prompt="a"), digests(batch_size=4), digests(rows=9), digests(precision="bf16"),
        digests(nucleus=NucleusOptions()), digests(where="width > 1"), digests(clip2_top=3),
        digests(sampling="beam", candidates=1, nucleus=NucleusOptions()),
    ]  # fmt: skip
    assert len({base, *changed}) == len(changed) + 1
    assert digests(captioner=other, filter=world.filter) != digests(captioner=other, filter=other)


def test_beams_bf16_and_other_architectures(world: World, tmp_path: Path) -> None:
    beam = BeamOptions(beams=2, min_length=2, max_length=9)
    config = CaptionConfig(input=str(world.images), captioner=world.captioner, sampling="beam", beam=beam)
    run_here(CaptionStage(config), tmp_path / "beam")
    row = rows_in(tmp_path / "beam")["000000000001"]
    expected = load_captioner(world.captioner, device="cpu").caption(
        [decode(jpeg(1))], how=Beam(beams=2, min_length=2, max_length=9)
    )
    assert [row["synthetic_captions"]] == expected
    run_here(CaptionStage(world.config(precision="bf16")), tmp_path / "low")
    row = rows_in(tmp_path / "low")["000000000001"]
    assert len(row["synthetic_captions"]) == len(row["synthetic_itm"]) == len(row["synthetic_clip"]) == 4
    git = str(write_foreign(tmp_path / "git", "git"))
    run_here(CaptionStage(world.config(captioner=git)), tmp_path / "git-out")
    assert len(rows_in(tmp_path / "git-out")["000000000001"]["synthetic_captions"]) == 4


def test_bad_options_are_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    clip_alone: dict[str, Any] = {"captioner": "", "candidates": 1, "nucleus": NucleusOptions()}
    make_candidates(tmp_path / "candidates", {0: [("http://a.example/1.jpg", "a")]})
    for changes, message in (
        ({"sampling": "greedy"}, "must be one of nucleus, beam"),
        ({"precision": "fp8"}, "fp32, bf16"),
        ({"candidates": 0}, "candidates 0 must be at least 1"),
        ({"rows": 0}, "rows 0"),
        ({"cpus": 0}, "cpus 0"),
        ({"captioner": "", "filter": "", "clip": "", "clip2": ""}, "no model"),
        ({**clip_alone}, "clip2 .* judges the best"),
        ({**clip_alone, "clip2": "", "clip2_top": 5, "seed": 3}, "seed means nothing without --captioner"),
        ({"sampling": "beam"}, "writes one caption"),
        ({"beam": BeamOptions(beams=5)}, "--beam.* means nothing to sampling nucleus"),
        ({"clip": "", "clip2": "", "clip2_top": 5, "clip_pretrained": "x"}, "needs --clip"),
        ({"nucleus": NucleusOptions(min_length=31)}, "min_length 31"),
        ({"nucleus": NucleusOptions(p=0)}, "nucleus.p 0"),
        ({"nucleus": NucleusOptions(repetition_penalty=0)}, "repetition_penalty 0"),
        ({"captioner": "runs/nothing/model"}, "captioner: model folder 'runs/nothing/model' does not exist"),
        ({"captioner": world.filter}, "trained for itc, itm, which does not write"),
        ({"captioner": world.clip}, "is a clip, which does not write"),
        ({"filter": world.captioner}, "trained for lm, which has no matching head"),
        ({"filter": str(world.images)}, "filter: .* has no config.json"),
        ({"clip": "ViT-B-32"}, "needs --pretrained"),
        ({"columns": [str(tmp_path)]}, "there for --where"),
        ({"input": str(tmp_path / "candidates")}, "holds candidates"),
        ({"input": str(tmp_path / "nothing")}, "does not exist"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            CaptionStage(world.config(**changes)).plan([])
    with pytest.raises(ConfigError, match="max_length 50 exceeds the model's 40 positions"):
        CaptionStage(world.config(nucleus=NucleusOptions(max_length=50))).start()


def test_the_command_line_gives_the_same_bits_with_two_workers(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "caption", "--input", str(world.images), "--output", str(tmp_path / "two"), "--captioner",
        world.captioner, "--filter", world.filter, "--candidates", "2", "--nucleus.max_length", "12",
        "--where", "width >= 1", "--workers", "2", "--batch_size", "2",
    ]  # fmt: skip
    assert main(words) == 0
    config = CaptionConfig(
        input=str(world.images), captioner=world.captioner, filter=world.filter, candidates=2,
        nucleus=NucleusOptions(max_length=12), where="width >= 1", batch_size=2,
    )  # fmt: skip
    run_here(CaptionStage(config), tmp_path / "one")
    run_here(CaptionStage(dataclasses.replace(config, decode_threads=4)), tmp_path / "threads")
    for shard in ("00000000.parquet", "00000001.parquet"):
        assert len({(tmp_path / name / shard).read_bytes() for name in ("one", "two", "threads")}) == 1
    again = run_stage(CaptionStage(config), str(tmp_path / "two"), RunOptions(workers=1))
    assert (again.done, again.done_before) == (0, 2)
    capsys.readouterr()
    assert main([*words, "--seed", "1"]) == 2
    assert "seed 0 -> 1" in capsys.readouterr().err
    assert main([*words, "--filter", world.captioner, "--overwrite"]) == 2
    assert "which has no matching head" in capsys.readouterr().err


def test_rows_without_anything_are_null_and_the_best_come_first() -> None:
    table = sidecar(["a", "b"], {"b": Captioned(["x", "x"], [0.5, 0.25], None, None, 0.75, None)})
    first, second = table.to_pylist()
    assert first == {"key": "a", **dict.fromkeys(SCHEMA.names)}
    assert second["synthetic_captions"] == ["x", "x"]
    assert (second["synthetic_itm"], second["web_itm"]) == ([0.5, 0.25], 0.75)
    assert best_places([0.1, 0.3, 0.3, -1.0], 3) == [1, 2, 0]
    assert best_places([0.1], 5) == [0]
