"""`make learn`: its shards, its plan and its judgement in seconds; the whole of it, quickly, as a proof."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jobs.demo import learn
from jobs.demo.learn_curves import draw_run
from jobs.demo.learn_plan import MARGINS, RUNS, STAGES, Margin, make_plan, train_config
from jobs.demo.learn_world import build_learn_world, two_captions
from jobs.demo.objects import load_things
from jobs.demo.scenes import draw_scenes
from jobs.evaluate import EvaluateConfig
from jobs.evaluation import build_pool
from models.inference.load import load_exported
from models.recipes import RECIPES
from models.training.config import check
from models.training.table import build_table, find_shards
from pipeline.errors import ConfigError
from pipeline.shards.reader import index_tar, read_member
from tests.models.test_inference_clip import export


def samples(folder: Path) -> list[tuple[str, str]]:
    """(sha256 of the picture, caption) of every sample."""
    found = []
    for tar in sorted(folder.glob("*.tar")):
        for sample in index_tar(str(tar)):
            text, meta = (read_member(str(tar), *sample.members[s]).decode() for s in ("txt", "json"))
            found.append((json.loads(meta)["sha256"], text))
    return found


def test_every_picture_has_two_captions_and_held_out_pairs_are_new(tmp_path: Path) -> None:
    world = build_learn_world(tmp_path, seed=3, pictures=60, heldout=20)
    train, heldout = samples(world.train), samples(world.heldout)
    assert (len(train), len(heldout)) == (120, 40)
    assert set(Counter(sha for sha, _ in train + heldout).values()) == {2}
    assert not {text for _, text in train} & {text for _, text in heldout}

    names = {thing.english(count): thing.codepoint for thing in load_things() for count in (1, 2)}

    def together(pairs: list[tuple[str, str]]) -> set[frozenset[str]]:
        return {frozenset(names[w] for w in text.replace(",", "").split() if w in names) for _, text in pairs}

    assert all(len(kinds) == 2 for kinds in together(train) | together(heldout))
    assert not together(train) & together(heldout)  # no combination of training is held out

    # found again, not built again; another world is refused
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.tar")}
    build_learn_world(tmp_path, seed=3, pictures=60, heldout=20)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.tar")} == before
    with pytest.raises(ConfigError, match="choose another --folder"):
        build_learn_world(tmp_path, seed=4, pictures=60, heldout=20)


def test_the_two_captions_tell_the_same_scene() -> None:
    things = load_things()
    for scene in draw_scenes("web", 40, kinds=len(things), seed=1):
        first, second = two_captions(scene, things, seed=1)
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        [relation] = [r for r in opposite if f" {r} " in first]
        assert f" {opposite[relation]} " in second
        a, b = (
            things[k].english(n) for k, n in ((scene.kind_a, scene.count_a), (scene.kind_b, scene.count_b))
        )
        assert first.index(a) < first.index(b)
        assert second.index(b) < second.index(a)
        assert scene.colour in first
        assert scene.colour in second


def test_the_plan_is_sound(tmp_path: Path) -> None:
    plan = make_plan(list(RUNS), stages=True, quick=False)
    assert {run.recipe for run in plan.runs} == set(RECIPES)
    names = [run.name for run in plan.runs]
    assert len(set(names)) == len(names)
    assert all(run.after is None or names.index(run.after) < names.index(run.name) for run in plan.runs)
    world = build_learn_world(tmp_path, seed=0, pictures=4, heldout=4)
    for run in plan.runs:
        check(train_config(run, world, tmp_path))
    # each of these is asked of each recipe that offers it
    asked = {(m.run, m.metric.split(" by ")[0].split(",")[0]) for m in plan.margins}
    for name in RUNS:
        assert (name, "text to picture R@1") in asked
        assert (name, "picture to text R@10") in asked
    assert {n for n, m in asked if m == "ITM accuracy"} == {"albef", "blip", "vlmo"}
    assert {n for n, m in asked if m.startswith("MLM")} == {"albef", "vlmo"}
    assert {n for n, m in asked if m.startswith("caption")} == {"blip"}
    assert all(m.least > 0 for m in MARGINS)
    # the stages that are compared end with equal steps of the last one
    compared = [run for run in (*RUNS["vlmo"], *STAGES) if run.name != "vlmo"]
    last = [run for run in compared if run.model["stage"] == "vision_language"]
    assert len(last) == 3
    assert len({(run.steps, run.lr, str(run.model)) for run in last}) == 1
    assert {m.run for m in make_plan(["clip"], stages=False, quick=True).margins} == {"clip"}


RETRIEVAL = {
    "itc": {"tr": {"r10": 0.9}},
    "withheld": {"itc": {"tr": {"r10": 0.1}}},
    "shuffled": {"itc": {"tr": {"r10": 0.2}}},
}
ITM = {"accuracy": {c: {"hard": {"mean": v}} for c, v in zip(learn.SHOWN, (0.7, 0.5, 0.5), strict=True)}}


def judged(folder: Path, least: float) -> list[dict]:
    margins = [
        Margin(run="x", metric="recall", result="retrieval", path="{condition}.itc.tr.r10", least=least),
        Margin(run="x", metric="match", result="itm", path="accuracy.{condition}.hard.mean", least=0.1),
        Margin(run="gone", metric="recall", result="retrieval", path="{condition}.itc.tr.r10", least=0.1),
    ]
    return learn.judge(margins, folder)


def test_a_margin_is_held_against_the_better_blind_figure(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "x" / "eval"
    place.mkdir(parents=True)
    (place / "retrieval.json").write_text(json.dumps(RETRIEVAL))
    (place / "itm.json").write_text(json.dumps(ITM))
    rows = judged(tmp_path, 0.69)
    assert [row["margin"] for row in rows] == [0.7, 0.2, None]
    assert [row["reached"] for row in rows] == [True, True, False]  # what is not there is missed
    assert not judged(tmp_path, 0.71)[0]["reached"]
    text = learn.table(rows)
    assert "| x | recall | 0.900 | 0.100 | 0.200 | 0.700 | 0.69 | reached |" in text
    assert text.count("MISSED") == 1


def test_curves_become_a_picture(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 5 / s, "itc": 2 / s, "lr": 0.1, "grad_norm": 1.0} for s in range(1, 60)]
    for row in rows[9::10]:
        row |= {"val_itc": 1.0, "val_tr_r1": row["step"] / 60, "val_tr_r5": 1.0}
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    root = ElementTree.fromstring(draw_run("x", tmp_path))
    assert [e.text for e in root.iter() if e.get("class") == "title"] == [
        "ITC loss (contrastive)", "held out: ITC loss (contrastive)", "held out: R@1 picture to text",
    ]  # fmt: skip
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 4  # long curves have a faint line and a smooth one
    assert len(lines[-1].get("points", "").split()) == 5


def test_an_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert learn.main(["--recipes", "clip,nothing"]) == 2
    assert "no recipe nothing; there are clip, albef, blip, vlmo" in capsys.readouterr().err


def test_the_pool_of_all_pictures_holds_both_captions_of_each(tmp_path: Path) -> None:
    world = build_learn_world(tmp_path, seed=0, pictures=2, heldout=12)
    export(tmp_path, "clip")
    loaded = load_exported(tmp_path / "model", device="cpu")
    for pool, pictures in ((0, 12), (5, 5)):
        config = EvaluateConfig(model="", shards=str(world.heldout), pool=pool)
        found, _ = build_pool(config, build_table(find_shards(config.shards)), loaded)
        assert found.pictures == pictures
        assert [len(refs) for refs in found.references()] == [2] * pictures


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_every_recipe_learns_quickly_and_a_second_start_finds_it_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.demo.learn", "--quick", "--folder", str(tmp_path / "run")]
    command += ["--docs", str(tmp_path / "docs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSED" not in done.stdout
    pictures = {path.stem for path in (tmp_path / "docs" / "learning").glob("*.svg")}
    assert pictures == {run.name for runs in RUNS.values() for run in runs}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors")}
    assert before
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors")} == before
    assert again.stdout.count("reached |") == done.stdout.count("reached |")
