"""Kind clip routed by language: each caption by its model, and the same bits on every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.cli import main as command
from jobs.cli import parse_verb
from pipeline import manifest, session
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.stages.pack.stage import Pack, PackConfig
from pipeline.stages.score import ScoreConfig, ScoreStage
from pipeline.stages.score.clip import ClipOptions
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images, run_here
from tests.pipeline.test_score import write_model

#: languages go round over the rows of a shard
LANGUAGES = ("en", "de", None, "en", "zh")
SHARDS, ROWS = 3, 12


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two model folders: of English, of all languages."""
    place = tmp_path_factory.mktemp("models")
    return str(write_model(place / "a" / "model", 0)), str(write_model(place / "b" / "model", 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("world")
    shards = {shard: [crawled(shard, i, bytes=6000) for i in range(ROWS)] for shard in range(SHARDS)}
    shards[1][3] = crawled(1, 3, bytes=6000, picture=b"none")
    shards[1][4] = crawled(1, 4, bytes=6000, caption=" ")
    make_images(place / "images", shards)
    language = {
        shard: {"key": [row["key"] for row in rows], "language": [_language(i) for i in range(ROWS)]}
        for shard, rows in shards.items()
    }
    make_columns(place / "language", language)
    return place


def _language(row: int) -> str | None:
    return LANGUAGES[row % len(LANGUAGES)]


def _routed(world: Path, models: tuple[str, str], **changes: Any) -> ScoreConfig:
    config = ScoreConfig(
        input=str(world / "images"), columns=str(world / "language"), model=models[0], batch_size=4,
        clip=ClipOptions(multilingual=models[1]),
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def _read(folder: Path, number: int) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in pq.read_table(folder / f"{number:08d}.parquet").to_pylist()}


def test_each_caption_has_the_score_of_its_model(
    tmp_path: Path, world: Path, models: tuple[str, str]
) -> None:
    counts = run_here(ScoreStage(_routed(world, models)), tmp_path / "routed")
    reasons = {"undecodable": 1, "no_caption": 1}
    assert counts.to_json() == {"in": 36, "out": 34, "dropped": reasons}
    for name, model in (("english", models[0]), ("multilingual", models[1])):
        run_here(ScoreStage(ScoreConfig(input=str(world / "images"), model=model)), tmp_path / name)
    for number in range(SHARDS):
        routed = _read(tmp_path / "routed", number)
        table = pq.read_table(tmp_path / "routed" / f"{number:08d}.parquet")
        assert table.schema.names == ["key", "clip_score", "clip_score_model"]
        assert [str(t) for t in table.schema.types] == ["string", "float", "string"]
        for at, (key, row) in enumerate(routed.items()):
            role = "english" if _language(at) == "en" else "multilingual"
            if row["clip_score"] is None:
                assert row["clip_score_model"] is None
                continue
            assert row["clip_score_model"] == role
            alone = _read(tmp_path / role, number)[key]["clip_score"]
            assert row["clip_score"] == pytest.approx(alone, abs=1e-6)
    english, other = (_read(tmp_path / n, 0)[f"{0:012d}"]["clip_score"] for n in ("english", "multilingual"))
    assert abs(english - other) > 1e-3  # they are two models


def test_the_same_bits_with_any_workers_and_threads_and_again(
    tmp_path: Path, world: Path, models: tuple[str, str]
) -> None:
    """One worker in this process, two of the runner."""
    config = _routed(world, models)
    run_here(ScoreStage(config), tmp_path / "one")
    other = dataclasses.replace(config, decode_threads=5)
    summary = run_stage(ScoreStage(other), str(tmp_path / "two"), RunOptions(workers=2))
    assert (summary.exit_code, summary.done) == (0, SHARDS)
    assert _marks(tmp_path / "one") == _marks(tmp_path / "two")
    _equal_files(tmp_path / "one", tmp_path / "two")
    # one of them gone: made again, it is the same
    (tmp_path / "two" / "00000001.parquet").unlink()
    assert run_here(ScoreStage(config), tmp_path / "two").taken == ROWS
    assert _marks(tmp_path / "one") == _marks(tmp_path / "two")
    _equal_files(tmp_path / "one", tmp_path / "two")


def test_the_same_bits_of_the_rows_that_where_selects(
    tmp_path: Path, world: Path, models: tuple[str, str]
) -> None:
    config = _routed(world, models, where="position % 3 > 0")
    for name, threads in (("a", 1), ("b", 6)):
        counts = run_here(ScoreStage(dataclasses.replace(config, decode_threads=threads)), tmp_path / name)
        assert counts.dropped["not_selected"] == ROWS
    assert _marks(tmp_path / "a") == _marks(tmp_path / "b")
    _equal_files(tmp_path / "a", tmp_path / "b")


def _marks(folder: Path) -> dict[int, tuple[str, str]]:
    return {n: (done.digest, done.content) for n, done in manifest.list_done(str(folder)).items()}


def _equal_files(one: Path, two: Path) -> None:
    for number in range(SHARDS):
        name = f"{number:08d}.parquet"
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_what_decides_a_score_is_in_the_digest_and_nothing_else(world: Path, models: tuple[str, str]) -> None:
    def digest(config: ScoreConfig) -> str:
        stage = ScoreStage(config)
        return stage.plan([])[0].digest(stage)

    config = _routed(world, models)
    plain = dataclasses.replace(config, clip=ClipOptions(), columns=[])
    semantic = (
        {"batch_size": 5},
        {"precision": "bf16"},
        {"where": "width > 0"},
        {"model": models[1]},
        {"clip": ClipOptions(multilingual=models[0])},
        {"clip": ClipOptions(multilingual=models[1], english=("en", "de"))},
        {"clip": ClipOptions()},
    )
    found = [digest(dataclasses.replace(config, **c)) for c in semantic if c != {"clip": ClipOptions()}]
    assert len({digest(config), digest(plain), *found}) == len(found) + 2
    for same in ({"decode_threads": 7}, {"cpus": 2.0}, {"device": "cpu"}):
        assert digest(dataclasses.replace(config, **same)) == digest(config)


def test_the_language_may_be_carried_along_by_the_images(tmp_path: Path, models: tuple[str, str]) -> None:
    rows = [{**crawled(0, i), "lang": _language(i)} for i in range(5)]
    folder = make_foreign(tmp_path / "images", {0: rows})
    clip = ClipOptions(multilingual=models[1], language_column="lang", english=("en", "zh"))
    config = ScoreConfig(input=str(folder), model=models[0], clip=clip, name="mine")
    run_here(ScoreStage(config), tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "00000000.parquet")
    assert table.column_names == ["key", "mine", "mine_model"]
    roles = ["english", "multilingual", "multilingual", "english", "english"]
    assert table["mine_model"].to_pylist() == roles


def test_bad_options_are_refused_before_anything_runs(
    tmp_path: Path, world: Path, models: tuple[str, str]
) -> None:
    for changes, message in (
        ({"columns": []}, "column 'language' is needed, which neither the input nor --columns has"),
        ({"clip": ClipOptions(multilingual="runs/none/model")}, "clip.multilingual: model folder 'runs/none"),
        ({"clip": ClipOptions(multilingual="ViT-B-32")}, "clip.multilingual: .*needs --pretrained"),
        ({"clip": ClipOptions(english=("de",))}, "clip.english .* means nothing without --clip.multilingual"),
        ({"kind": "language", "model": ""}, "clip .* means nothing to kind 'language'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ScoreStage(_routed(world, models, **{"batch_size": 64, **changes})).plan([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"device": "cuda"}, "torch finds no GPU .*--gpus 1"), ({"gpus": 1.0}, "gpus 1.0: torch finds no GPU")],
)
def test_a_gpu_that_is_not_there_is_said_so(
    monkeypatch: pytest.MonkeyPatch, world: Path, models: tuple[str, str], changes: dict, message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        ScoreStage(_routed(world, models, **changes)).start()


def test_laion5b_reads_it_and_several_models_stand_side_by_side(
    tmp_path: Path, world: Path, models: tuple[str, str]
) -> None:
    """Two columns, one by options of the command line; packed by a rule over both, and by a preset."""
    folders = ["--input", str(world / "images"), "--output", "x", "--columns", str(world / "language")]
    routed = ["--model", models[0], "--clip.multilingual", models[1], "--clip.english", "[en]"]
    _, parsed, _ = parse_verb("score", [*folders, *routed])
    run_here(ScoreStage(parsed), tmp_path / "clip")
    second = ScoreConfig(input=str(world / "images"), model=models[1], name="second")
    run_here(ScoreStage(second), tmp_path / "second")
    columns = tuple(str(p) for p in (tmp_path / "clip", tmp_path / "second", world / "language"))
    rule = "abs(clip_score - second) < 1e-6 AND clip_score_model = 'multilingual'"
    config = PackConfig(input=str(world / "images"), columns=columns, where=rule)
    counts = run_here(Pack(config), tmp_path / "all")
    (packed,) = (pq.read_table(p) for p in (tmp_path / "all").glob("*.parquet"))
    assert {"clip_score", "clip_score_model", "second"} <= set(packed.column_names)
    others = sum(_language(i) != "en" for i in range(ROWS)) * SHARDS - 1  # one of them has no caption
    assert counts.kept == len(packed) == others
    counts = run_here(Pack(dataclasses.replace(config, where=None, preset="laion5b")), tmp_path / "laion")
    assert counts.dropped["low_clip_score"] == 34
    assert counts.dropped["low_clip_score_null"] == 1  # the picture that is none


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["score", "--help"])
    out = capsys.readouterr().out
    assert "--clip.multilingual" in out
    assert "--embedding.of" in out
