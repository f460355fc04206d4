"""The demo's small world: what is planted is what the truth says, and the real discover stage finds it."""

from __future__ import annotations

import json
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from warcio.archiveiterator import ArchiveIterator

from jobs.demo import captions, objects, scenes, website
from jobs.demo.faults import FAULTS, TRUTH_SCHEMA, quota
from jobs.demo.painting import PICTURE_SIDE, Painter, render_bitmaps
from jobs.demo.world import World, build_world
from pipeline.errors import ConfigError
from pipeline.stages.discover.stage import DiscoverConfig, DiscoverStage

SCALE = 0.06
HELDOUT = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("demo") / "world", seed=3, scale=SCALE, heldout=HELDOUT)


@pytest.fixture(scope="module")
def truth(world: World) -> list[dict]:
    table = pq.read_table(world.truth)
    assert table.schema == TRUTH_SCHEMA
    return table.to_pylist()


def test_every_object_has_a_drawing_and_a_name_in_every_language() -> None:
    things = objects.load_things()
    assert len(things) == len(set(objects.CODEPOINTS)) >= 24
    for language in objects.LANGUAGES:
        names = [thing.names[language] for thing in things]
        assert all(names)
        assert len(set(names)) == len(names), f"two objects of one {language} name"
    assert {t.english(2) for t in things}.isdisjoint({t.english(1) for t in things})


def test_no_combination_is_on_both_sides_and_every_object_is_on_all() -> None:
    split = scenes.split_combinations(32, seed=1)
    pairs = [set(split[part]) for part in scenes.PARTS]
    assert sum(map(len, pairs)) == math.comb(32, 2) == len(set.union(*pairs))
    for part in pairs:
        assert {kind for pair in part for kind in pair} == set(range(32))
    drawn = scenes.draw_scenes("heldout", 300, kinds=32, seed=1)
    assert {scene.combination for scene in drawn} <= set(split["heldout"])
    assert len({scene.content for scene in drawn}) == 300


def test_same_seed_same_scenes_other_seed_others() -> None:
    first = scenes.draw_scenes("web", 50, kinds=32, seed=1)
    assert first == scenes.draw_scenes("web", 50, kinds=32, seed=1)
    assert first != scenes.draw_scenes("web", 50, kinds=32, seed=2)


def test_captions_state_objects_count_colour_and_relation() -> None:
    things = objects.load_things()
    kind = {thing.names["en"]: number for number, thing in enumerate(things)}
    scene = scenes.Scene(
        number=0, part="web", kind_a=kind["bus"], count_a=2, kind_b=kind["owl"], count_b=1,
        relation="left", colour="yellow",
    )  # fmt: skip
    assert captions.caption(scene, things, language="en") == "two buses left of one owl, yellow background"
    assert captions.caption(scene, things, language="de") == "2x Bus links von 1x Eule, Hintergrund gelb"
    french = captions.caption(scene, things, language="fr", style=1)
    assert french == "image de 2x bus à gauche de 1x chouette sur fond jaune"
    words = captions.telling_words(things)
    assert {"bus", "buses", "owls"} <= set(words["object"])
    assert "yellow" in words["colour"]


def test_painting_puts_the_groups_where_the_caption_says(tmp_path: Path) -> None:
    render_bitmaps(tmp_path / "bitmaps.npy")
    painter = Painter(tmp_path / "bitmaps.npy", seed=1)
    middle = PICTURE_SIDE // 2
    for relation, part in {
        "left": np.s_[:, :middle],
        "right": np.s_[:, middle:],
        "above": np.s_[:middle],
        "below": np.s_[middle:],
    }.items():
        scene = scenes.Scene(
            number=1, part="web", kind_a=0, count_a=3, kind_b=1, count_b=1, relation=relation, colour="blue"
        )
        other = scenes.Scene(
            number=1, part="web", kind_a=2, count_a=3, kind_b=1, count_b=1, relation=relation, colour="blue"
        )
        changed = np.asarray(painter.paint(scene)) != np.asarray(painter.paint(other))
        assert changed.any()
        outside = changed.copy()
        outside[part] = False
        assert not outside.any(), f"an object of the first group strays over the middle ({relation})"


def test_pictures_meet_the_usual_rules(world: World) -> None:
    files = sorted((world.trusted / "images").glob("*.jpg"))
    assert len(files) == world.counts["trusted"]
    for file in files:
        assert file.stat().st_size > 5000
        with Image.open(file) as picture:
            assert min(picture.size) >= 200


def test_heldout_scenes_are_exactly_as_many_and_each_caption_is_one_of_a_kind(world: World) -> None:
    document = json.loads((world.heldout / "captions.json").read_text())
    assert len(document["images"]) == len(document["annotations"]) == HELDOUT
    assert len({row["caption"] for row in document["annotations"]}) == HELDOUT
    names = {row["file_name"] for row in document["images"]}
    assert names == {file.name for file in (world.heldout / "images").iterdir()}


def test_truth_counts_every_fault(world: World, truth: list[dict]) -> None:
    counted = Counter(row["fault"] for row in truth)
    for fault in FAULTS:
        addresses = 2 if fault == "duplicate_bytes" else 1
        assert counted[fault] == quota(fault, SCALE) * addresses == world.counts[fault]
    assert len({row["url"] for row in truth}) == len(truth)
    assert {row["pages"] for row in truth if row["fault"] == "duplicate_pair"} == {3}
    for row in truth:
        assert bool(row["is_wrong"]) == (row["fault"] == "wrong_caption")
        assert (row["is_wrong"] is None) >= (not row["is_crawlable"])
        if row["is_wrong"]:
            assert row["caption_scene"] not in ("", row["scene"])
        elif row["caption_scene"]:
            assert row["caption_scene"] == row["scene"]


def test_wrong_captions_tell_of_another_content(world: World) -> None:
    things = objects.load_things()
    drawn = scenes.draw_scenes("web", website.scenes_needed(SCALE), kinds=len(things), seed=3)
    ports = dict.fromkeys(website.HOSTS, 1)
    web = website.plan_web(drawn, things, ports=ports, scale=SCALE, seed=3)
    wrong = [planted for planted in web.planted if planted.is_wrong_caption]
    assert len(wrong) == quota("wrong_caption", SCALE)
    for planted in wrong:
        assert planted.told is not None
        assert planted.told.content != planted.scene.content
        shared = set(planted.told.combination) & set(planted.scene.combination)
        assert bool(shared) == (planted.overlap == "object")


class _Images(HTMLParser):
    """What a browser sees: the resolved address and the text of each `<img>`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.base, self.found = page, []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "base":
            self.base = urljoin(self.base, values["href"])
        elif tag == "img":
            last = values.get("srcset", "").split(", ")[-1].split(" ")[0]
            address = values.get("data-src") or last or values.get("src", "")
            self.found.append((urljoin(self.base, address), " ".join(values.get("alt", "").split())))


def test_the_pages_in_the_archives_show_what_the_truth_says(world: World, truth: list[dict]) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    forms = Counter(row["form"] for row in truth)
    for archive in sorted(world.archives.glob("*.warc.gz")):
        with archive.open("rb") as file:
            for record in ArchiveIterator(file):
                if record.rec_type != "response" or "html" not in record.http_headers["Content-Type"]:
                    continue
                encoding = record.http_headers["Content-Type"].split("charset=")[1]
                parser = _Images(record.rec_headers["WARC-Target-URI"])
                parser.feed(record.content_stream().read().decode(encoding))
                seen.update((url[:64] if url.startswith("data:") else url, alt) for url, alt in parser.found)
    expected = {(row["url"], row["alt"]) for row in truth if row["archive"] in ("warc", "both")}
    assert expected <= set(seen)
    assert set(seen) <= {(row["url"], row["alt"]) for row in truth}
    assert {"src", "data-src", "srcset"} <= set(forms)
    assert {"warc", "wat"} <= {row["archive"] for row in truth}


def test_discover_finds_every_pair_and_no_more(world: World, truth: list[dict], tmp_path: Path) -> None:
    stage = DiscoverStage(DiscoverConfig(input=[f"{world.archives}/*.gz"], rules="laion400m"))
    found = set()
    for unit in stage.plan([]):
        table = stage.run(unit, tmp_path).parts[".parquet"]
        found |= set(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True))
    expected = {(row["url"], row["alt"]) for row in truth if row["is_crawlable"]}
    assert not expected - found
    extra = {row["fault"] for row in truth if (row["url"], row["alt"]) in found - expected}
    assert not extra & {"short_alt", "data_url", "file_url"}, "these need no picture to be dropped"
    assert {"dead_link", "opt_out", "tiny", "redirect_private"} <= extra
    assert found <= {(row["url"], row["alt"]) for row in truth}


def test_a_world_is_built_once_and_is_the_same_again(tmp_path: Path, world: World) -> None:
    marker = (world.folder / "WORLD.json").stat().st_mtime_ns
    assert build_world(world.folder, seed=3, scale=SCALE, heldout=HELDOUT) == world
    assert (world.folder / "WORLD.json").stat().st_mtime_ns == marker
    with pytest.raises(ConfigError, match="holds a demo world of"):
        build_world(world.folder, seed=4, scale=SCALE, heldout=HELDOUT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="is not empty"):
        build_world(tmp_path / "mine", seed=3, scale=SCALE, heldout=HELDOUT)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    again = build_world(tmp_path / "again", seed=3, scale=SCALE, heldout=HELDOUT)
    for file in sorted((world.heldout / "images").iterdir()):
        assert (again.heldout / "images" / file.name).read_bytes() == file.read_bytes()
    picture = next((world.folder / "site").glob("web-*.jpg"))
    assert (again.folder / "site" / picture.name).read_bytes() == picture.read_bytes()
