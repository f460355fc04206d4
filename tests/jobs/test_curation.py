"""The planted table: what it plants, how it judges, and what the stages find on photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.bench import curation
from jobs.bench.curation_judge import Figure, _duplicates, table
from jobs.bench.curation_pictures import GEOMETRIES, Photograph, photographs
from jobs.bench.curation_plan import SAME, _exchanged, plant
from jobs.chain import load_chain
from pipeline.errors import ConfigError


def picture(seed: int, width: int = 100, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def test_copies_have_the_geometry_that_is_stated() -> None:
    original = picture(0)
    sizes = {name: change(original).size for name, (change, _) in GEOMETRIES.items()}
    assert sizes == {
        "resized to 50 %": (50, 30),
        "JPEG quality 50": (100, 60),
        "centre crop 5 %": (96, 56),
        "corner crop 5 %": (95, 57),
        "mirrored": (100, 60),
    }
    mirrored = np.asarray(GEOMETRIES["mirrored"][0](original))
    assert (mirrored[:, ::-1] == np.asarray(original)).all()


def test_every_exchanged_caption_goes_to_another_picture() -> None:
    wrong = _exchanged(24, seed=0)
    assert len(wrong) == 10
    assert set(wrong) == set(wrong.values())
    assert all(place != source for place, source in wrong.items())


def test_what_is_planted_can_be_run(tmp_path: Path) -> None:
    photos = [Photograph(name=f"p{n}", image=picture(n), captions=("a", "b")) for n in range(6)]
    planted = plant(tmp_path, photos, seed=0)
    steps = [step.name for step in load_chain(str(planted.chain))]
    assert {"near-mirrored", "contamination-mirrored", "exact-the-same-file", "language", "score"} <= set(
        steps
    )
    rows = pq.read_table(tmp_path / "mirrored/list.parquet").to_pylist()
    assert len(rows) == 12
    assert sum(row["planted_in_benchmark"] for row in rows) == 6
    assert {p.stem for p in (tmp_path / "benchmark").iterdir()} == {"p0", "p2", "p4"}
    same = tmp_path / planted.geometries[SAME] / "pictures"
    assert (same / "p1.original.jpg").read_bytes() == (same / "p1.copy.jpg").read_bytes()


def test_a_mark_counts_when_it_names_the_other_of_its_group() -> None:
    rows = [
        {"key": "0", "planted_group": "a", "near": None},
        {"key": "1", "planted_group": "a", "near": "0"},
        {"key": "2", "planted_group": "b", "near": "0"},
        {"key": "3", "planted_group": "b", "near": None},
    ]
    figure = _duplicates("near", "x", rows, "near")
    assert (figure.planted, figure.found, figure.right) == (2, 2, 1)
    assert (figure.precision, figure.recall) == (0.5, 0.5)
    assert "| near | x | 2 | 2 | 1 | 0.500 | 0.500 |" in table([figure])
    assert Figure("s", "w", 0, 0, 0).precision is None


def test_too_few_pictures_or_wrong_captions_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no"):
        photographs((str(tmp_path),), (), quarters=False)
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(ConfigError, match="COCO's caption format"):
        photographs((), (str(tmp_path / "captions.json"),), quarters=False)


@pytest.mark.prove
@pytest.mark.prove_ci
@pytest.mark.timeout(1500)
def test_stages_find_what_was_planted_among_photographs(tmp_path: Path) -> None:
    assert curation.main(["--folder", str(tmp_path / "work"), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    found = {(f["stage"], f["what"]): f for f in figures}
    for what in (SAME, "resized to 50 %", "JPEG quality 50", "centre crop 5 %"):
        for stage in ("near duplicates", "contamination"):
            assert found[stage, what]["recall"] >= 0.95, (stage, what, found[stage, what])
            assert found[stage, what]["precision"] >= 0.99, (stage, what, found[stage, what])
    exact = found["exact duplicates", SAME]
    assert (exact["precision"], exact["recall"]) == (1.0, 1.0)
    language = found["language", "not English: sentences"]
    assert language["precision"] >= 0.95
    assert language["recall"] >= 0.95
    assert found["clip", "exchanged captions"]["recall"] >= 0.7
