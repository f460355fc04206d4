"""What a run saves of its configuration is enough to build the same stage again, from any folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from jobs import cli
from jobs.saved import load_saved
from pipeline import manifest, session, storage
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from tests.pipeline import folders


@pytest.fixture(scope="module", autouse=True)
def _one_ray():
    with session.shared_session():
        yield


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """images/ with two shards in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = {n: [folders.crawled(n, i) for i in range(3)] for n in range(2)}
    folders.make_images(tmp_path / "images", rows)
    return tmp_path


def test_pack_is_built_again_from_another_folder(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["pack", "--input", "images", "--output", "shards", "--where", "width > 1", "--group", "1"]
    assert cli.main([*argv, "--limit", "1", "--workers", "1"]) == 0
    elsewhere = world / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    saved = load_saved("../shards")
    assert (saved.verb, saved.stage.name) == ("pack", "pack")
    assert saved.config.input == str(world / "images")
    assert (saved.options.limit, saved.options.workers) == (None, 1)
    # the limit belonged to that run: the rest follows, and what was done is known as done
    summary = run_stage(saved.stage, saved.output, saved.options)
    assert (summary.done_before, summary.done) == (1, 1)
    # the file is still what the command takes
    assert cli.main(["pack", "--config", str(world / "shards/_pairmill/config.yaml")]) == 0


def test_each_of_dedups_folders_knows_its_stage(world: Path) -> None:
    assert (
        cli.main(["dedup", "--input", str(world / "images"), "--output", str(world / "columns/dedup")]) == 0
    )
    for folder, name in (("_sketch", "dedup-sketch"), ("_resolve", "dedup-resolve"), ("", "dedup")):
        place = f"columns/dedup/{folder}".rstrip("/")
        saved = load_saved(place)
        assert (saved.verb, saved.stage.name) == ("dedup", name)
        assert saved.output == str(world / "columns/dedup")
        assert run_stage(saved.stage, place, saved.options).done == 0
    shutil.move("columns", "moved")
    assert load_saved("moved/dedup/_sketch").output == str(world / "moved/dedup")


def test_locations_become_absolute_and_names_stay(world: Path) -> None:
    _, _, request = cli.parse_verb(
        "crawl",
        ["--input", '["lists/*.csv", "s3://bucket/list.csv"]', "--output", "out", "--shard_size", "7"],
    )
    values = yaml.safe_load(request.resolved)
    assert values["input"] == [f"{world}/lists/*.csv", "s3://bucket/list.csv"]
    assert values["output"] == str(world / "out")
    assert request.resolved.startswith("# pairmill crawl\n")
    _, _, request = cli.parse_verb("score", ["--model", "ViT-B-32", "--input", "images", "--output", "x"])
    values = yaml.safe_load(request.resolved)
    assert (values["model"], values["input"]) == ("ViT-B-32", str(world / "images"))


def test_a_refused_plan_does_not_touch_the_saved_configuration(world: Path) -> None:
    argv = ["pack", "--input", "images", "--output", "shards", "--where"]
    assert cli.main([*argv, "width > 1"]) == 0
    before = Path("shards/_pairmill/config.yaml").read_text()
    assert cli.main([*argv, "width > 2"]) == 2
    assert Path("shards/_pairmill/config.yaml").read_text() == before
    assert load_saved("shards").config.where == "width > 1"


def test_the_configuration_stands_before_the_first_unit(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def killed(*_: object) -> None:
        seen.append(load_saved("shards").verb)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.execution.execute", killed)
    assert cli.main(["pack", "--input", "images", "--output", "shards"]) == 75
    assert seen == ["pack"]


def test_what_no_command_made_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match="how it was made is not known"):
        load_saved("images")
    url = manifest.config_url("images")
    storage.write_bytes(url, b"input: x\n")
    with pytest.raises(ConfigError, match="does not say which command"):
        load_saved("images")
    storage.write_bytes(url, b"# pairmill os: x\n")
    with pytest.raises(ConfigError, match="names the command 'os'"):
        load_saved("images")
    storage.write_bytes(url, b"# pairmill pack: pack\nno_such_option: 1\n")
    with pytest.raises(ConfigError, match="no_such_option"):
        load_saved("images")


def test_every_verb_of_stages_can_be_built_again() -> None:
    for name in cli.VERBS:
        if name in cli.POSITIONAL:
            continue
        verb = cli.importlib.import_module(f"jobs.{name}").VERB
        assert verb.stage == (verb.stages is not None), name
