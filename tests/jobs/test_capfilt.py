"""The CapFilt experiment: its chains, its world and its judgement in seconds; the whole of it as a proof."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from jobs.chain import load_chain
from jobs.demo import capfilt
from jobs.demo.capfilt_figure import draw
from jobs.demo.capfilt_table import FIGURES, table
from jobs.demo.capfilt_truth import ASPECTS, auc, judge_filter, read_caption, right_in
from jobs.demo.capfilt_world import Truth, WorldSize, build_capfilt_world, shuffle_some
from jobs.demo.captions import TEMPLATES, caption
from jobs.demo.learn_world import two_captions
from jobs.demo.objects import load_things
from jobs.demo.scenes import COLOURS, RELATIONS, Scene, draw_scenes
from models.training.config import check, semantic_config
from pipeline.errors import ConfigError

THINGS = load_things()
CHAINS = Path(capfilt.__file__).parents[1] / "chains"


def scene(**changes: object) -> Scene:
    """Two of the first kind left of one of the second, on red."""
    facts = {"kind_a": 0, "count_a": 2, "kind_b": 1, "count_b": 1, "relation": "left", "colour": "red"}
    return Scene(number=0, part="web", **{**facts, **changes})  # type: ignore[arg-type]


def test_both_chains_are_blips_loop() -> None:
    small = load_chain(str(capfilt.CHAIN))
    real = load_chain(str(CHAINS / "capfilt.yaml"), variables={"columns": '["columns/clip"]'})
    for steps, anew in ((small, "bootstrapped"), (real, "anew")):
        by_name = {step.name: step.config for step in steps}
        order = [step.name for step in steps]
        loop = ["human", "raw", "captioner", "filter", "caption", anew, "evaluate_bootstrapped"]
        assert [name for name in order if name in loop] == loop
        for name in ("raw", "captioner", "filter", anew):
            check(by_name[name])
            assert by_name[name].recipe == "blip"
        captioner, judge, caption_step = by_name["captioner"], by_name["filter"], by_name["caption"]
        assert captioner.model["objectives"] == ["lm"]
        assert judge.model["objectives"] == ["itc", "itm"]
        assert captioner.init_from == judge.init_from == f"{by_name['raw'].output}/model"
        assert captioner.shards == judge.shards
        assert caption_step.captioner == f"{captioner.output}/model"
        assert caption_step.filter == f"{judge.output}/model"
        packs = [s for s in steps if s.job == "pack" and s.config.captions.policy == "capfilt"]
        assert packs[0].config.columns == (next(s for s in steps if s.name == "caption").output,)
        assert by_name[anew].mix[0].shards == packs[0].output
        # the new pre-training differs from the first in the web's pairs alone
        assert [entry.shards for entry in by_name["raw"].mix][1] == by_name[anew].mix[1].shards
        assert [entry.weight for entry in by_name["raw"].mix] == [e.weight for e in by_name[anew].mix]
        first, second = (semantic_config(by_name[name]) for name in ("raw", anew))
        assert {**first, "tokenizer": ""} == {**second, "tokenizer": ""}
    assert by_name["caption"].columns == ["columns/clip"]
    assert real[3].config.size == "base"


def test_steps_of_models_that_are_not_asked_for_are_left_out(tmp_path: Path) -> None:
    steps = capfilt.load_steps(capfilt.Plan(steps=7), tmp_path, seed=5)
    every = [step.name for step in steps]
    assert {f"evaluate_{arm}" for arm in capfilt.ARMS} < set(every)
    raw = next(step.config for step in steps if step.name == "raw")
    assert (raw.steps, raw.seed, raw.output) == (7, 5, str(tmp_path / "runs/raw"))
    few = capfilt.load_steps(capfilt.Plan(arms=("raw", "bootstrapped")), tmp_path, seed=5)
    gone = {"pack_filtered", "filtered", "evaluate_filtered", "right", "clean", "evaluate_clean"}
    assert [step.name for step in few] == [name for name in every if name not in gone]
    grouped = list(capfilt.groups(few))
    assert [name for name, _ in grouped][:3] == ["web+human+heldout", "raw", "captioner"]
    assert [step for _, group in grouped for step in group] == few


def test_a_world_is_wrong_in_as_many_captions_as_it_says(tmp_path: Path) -> None:
    size = WorldSize(web=50, human=6, heldout=8)
    truth = build_capfilt_world(tmp_path / "world", seed=3, size=size)
    assert Counter(t.wrong for t in truth.values()) == {True: 20, False: 30}
    rows = {name: json.loads((tmp_path / "world" / name / "captions.json").read_text()) for name in
            ("web", "clean", "human", "heldout")}  # fmt: skip
    assert [len(rows[name]) for name in ("web", "clean", "human", "heldout")] == [50, 50, 12, 16]
    for row, own in zip(rows["web"], rows["clean"], strict=True):
        fact = truth[row["file_name"]]
        assert (row["file_name"], row["caption"]) == (own["file_name"], fact.caption)
        assert (row["caption"] != own["caption"]) == fact.wrong
        assert right_in(own["caption"], fact.scene, THINGS)["all"]
        assert right_in(row["caption"], fact.scene, THINGS)["all"] != fact.wrong
        assert (tmp_path / "world/web/images" / row["file_name"]).is_file()
    together = {
        kind: {frozenset(k for k, _ in read_caption(r["caption"], THINGS).groups) for r in rows[kind]}  # type: ignore[union-attr]
        for kind in ("clean", "human", "heldout")
    }
    assert not together["clean"] & together["heldout"]
    assert not together["human"] & (together["heldout"] | together["clean"])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")}
    assert build_capfilt_world(tmp_path / "world", seed=3, size=size) == truth
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")} == before
    with pytest.raises(ConfigError, match="choose another --folder"):
        build_capfilt_world(tmp_path / "world", seed=4, size=size)


def test_shuffled_texts_are_those_of_others() -> None:
    texts = [str(n) for n in range(200)]
    given_texts = shuffle_some(texts, 0.4, seed=1)
    assert sorted(given_texts) == sorted(texts)
    assert sum(a != b for a, b in zip(texts, given_texts, strict=True)) == 80
    assert shuffle_some(texts, 0.4, seed=1) == given_texts != shuffle_some(texts, 0.4, seed=2)


@settings(max_examples=200, deadline=None)
@given(
    kinds=st.permutations(range(len(THINGS))),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    relation=st.sampled_from(RELATIONS),
    colour=st.sampled_from(COLOURS),
    style=st.integers(0, len(TEMPLATES["en"]) - 1),
)
def test_every_caption_of_the_world_can_be_read(
    kinds: list[int], counts: tuple[int, int], relation: str, colour: str, style: int
) -> None:
    shown = scene(
        kind_a=kinds[0],
        kind_b=kinds[1],
        count_a=counts[0],
        count_b=counts[1],
        relation=relation,
        colour=colour,
    )
    told = read_caption(caption(shown, THINGS, language="en", style=style), THINGS)
    assert told is not None
    assert told.groups == ((kinds[0], counts[0]), (kinds[1], counts[1]))
    assert (told.relation, told.colour) == (relation, colour)


def test_captions_are_right_in_parts() -> None:
    a, b = THINGS[0].english(2), THINGS[1].english(1)
    other = THINGS[2].english(1)
    right = dict.fromkeys((*ASPECTS, "all"), True)
    for text, wrong in (
        (f"two {a} left of one {b}, red background", ()),
        (f"One {b} right of two {a} on RED.", ()),
        (f"red picture of two {a} right of one {b}", ("relation", "all")),
        (f"blue picture of two {a} left of one {b}", ("colour", "all")),
        (f"red picture of one {THINGS[0].english(1)} left of one {b}", ("numbers", "all")),
        (f"two {a} left of one {other} on red", ("objects", "numbers", "relation", "all")),
        (f"two {a} left of one {THINGS[0].english(1)} on red", ("objects", "numbers", "relation", "all")),
        (f"two {a} left of one {b}", tuple(right)),
        (f"red picture of two {a} left of one {b} on red", tuple(right)),
        ("two left of one", tuple(right)),
        ("", tuple(right)),
    ):
        assert right_in(text, scene(), THINGS) == {**right, **dict.fromkeys(wrong, False)}, text
    for one in draw_scenes("web", 20, kinds=len(THINGS), seed=1):
        assert all(right_in(text, one, THINGS)["all"] for text in two_captions(one, THINGS, seed=1))


def test_the_filter_is_judged_by_the_truth() -> None:
    right, wrong = (caption(s, THINGS, language="en") for s in (scene(), scene(colour="blue")))
    rows = [
        # (web's caption is wrong, its probability, what was written, its probability)
        (False, 0.9, right, 0.9), (False, 0.5, wrong, 0.6), (False, 0.2, wrong, 0.1), (True, 0.6, right, 0.4),
        (True, 0.1, right, 0.7),
    ]  # fmt: skip
    truth = {str(n): Truth(scene=scene(), caption="", wrong=row[0]) for n, row in enumerate(rows)}
    columns = {
        "url": [str(n) for n in range(len(rows))],
        "web_itm": pa.array([row[1] for row in rows], pa.float32()),
        "synthetic_captions": [[row[2]] for row in rows],
        "synthetic_itm": pa.array([[row[3]] for row in rows], pa.list_(pa.float32())),
    }
    found = judge_filter(pa.table(columns), truth, THINGS, threshold=0.5)
    assert found["web"] == {
        "right_kept": 2, "right_dropped": 1, "wrong_kept": 1, "wrong_dropped": 1, "precision": 0.5,
        "recall": 0.5, "auc": pytest.approx(4 / 6),
    }  # fmt: skip
    assert found["written"]["before"] == {
        "objects": 1,
        "colour": 0.6,
        "numbers": 1,
        "relation": 1,
        "all": 0.6,
    }
    assert found["written"]["after"]["all"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["written"]["kept"] == 0.6
    assert found["packed"] == {
        "pictures": 4, "web_right_before": 0.6, "web_right": pytest.approx(2 / 3, abs=1e-4),
        "texts_right": pytest.approx(4 / 6, abs=1e-4),
    }  # fmt: skip


def test_auc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.integers(0, 6, rng.integers(1, 30)) / 6 for _ in range(2))
        labels = np.r_[np.ones(len(a)), np.zeros(len(b))]
        assert auc(a, b) == pytest.approx(roc_auc_score(labels, np.r_[a, b]))


def test_the_table_shows_every_seed_and_the_spread() -> None:
    shares = dict.fromkeys((*ASPECTS, "all"), 0.5)
    judged = {
        "web": {"recall": 0.9, "precision": 0.8, "auc": 0.95},
        "written": {"before": shares, "after": {**shares, "all": 0.75}, "kept": 0.3},
        "packed": {"pictures": 1771, "web_right_before": 0.6, "web_right": 0.95, "texts_right": 0.6},
    }
    results = [
        {"seed": n, "models": {"raw": dict.fromkeys(FIGURES, n / 10)}, "filter": judged} for n in (1, 2, 6)
    ]
    text = table(results)
    assert "| raw | picture to text R@1 | 0.100 | 0.200 | 0.600 | 0.300 | 0.100 to 0.600 |" in text
    assert "| pictures with a text left | 1,771 | 1,771 | 1,771 |" in text
    assert "| written: right in everything, before and after | 0.500, 0.750 |" in text


def test_the_figure_has_a_dot_for_every_seed_and_model() -> None:
    results = [{"models": {m: dict.fromkeys(FIGURES, n / 10) for m in ("raw", "clean")}} for n in (1, 2, 6)]
    root = ElementTree.fromstring(draw(results))
    dots = [e for e in root.iter() if e.get("class") == "dot"]
    assert len(dots) == 2 * 2 * 3
    assert {float(e.get("cx", "")) for e in dots} == {120.0, 140.0, 220.0}
    assert {float(e.get("x1", "")) for e in root.iter() if e.get("class") == "mean"} == {160.0}


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert capfilt.main(["--arms", "raw,magic"]) == 2
    assert "no model magic; there are raw, bootstrapped, filtered, clean" in capsys.readouterr().err
    assert capfilt.main(["--seeds", "0"]) == 2
    (tmp_path / "seed-1/world").mkdir(parents=True)
    (tmp_path / "seed-1/world/WORLD.json").write_text("{}")
    assert capfilt.main(["--folder", str(tmp_path), "--quick"]) == 2
    assert "choose another --folder or remove it" in capsys.readouterr().err


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_the_whole_loop_runs_and_a_second_start_finds_it_done(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "jobs.demo.capfilt",
        "--quick",
        "--seeds",
        "1",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads((tmp_path / "capfilt.json").read_text())
    assert found["models"].keys() == capfilt.ARMS.keys()
    counts = found["filter"]["web"]
    assert sum(counts[f"{a}_{b}"] for a in ("right", "wrong") for b in ("kept", "dropped")) == 160
    before = {
        p: p.stat().st_mtime_ns for p in [*tmp_path.rglob("model.safetensors"), *tmp_path.rglob("*.tar")]
    }
    assert len([path for path in before if path.suffix == ".safetensors"]) >= 6
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    tables = [text[text.index("| model |") :] for text in (done.stdout, again.stdout)]
    assert tables[0] == tables[1]
