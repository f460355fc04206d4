"""Kind quality: measures of pictures and captions, against other libraries and values worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.ndimage
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipeline import columns
from pipeline.errors import ConfigError
from pipeline.selection import Selection
from pipeline.stages.score import ScoreConfig, ScoreStage
from pipeline.stages.score.quality_picture import SIDE, at_one_size, picture_facts
from pipeline.stages.score.text_boilerplate import PATTERNS, boilerplate
from pipeline.stages.score.text_repetition import repeated_runs, repeated_words, tokens
from tests.pipeline.folders import crawled, jpeg, make_candidates, make_foreign, make_images, run_here

PREFIX = "quality_"


def _photo() -> Image.Image:
    return Image.fromarray(skimage.data.astronaut())  # 512 x 512


def _facts(image: Image.Image) -> Any:
    return picture_facts(np.array(image.convert("RGB")))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_sharpness_is_the_variance_of_the_laplacian_as_scipy_computes_it() -> None:
    grey = Image.fromarray(skimage.data.camera()).resize((SIDE, 100))
    values = scipy.ndimage.laplace(np.array(grey, np.float64), mode="mirror")
    facts = _facts(grey)
    assert facts.sharpness == pytest.approx(values.var(), rel=1e-12)
    assert facts.brightness == pytest.approx(np.array(grey, np.float64).mean() / 255, rel=1e-12)
    assert facts.contrast == pytest.approx(np.array(grey, np.float64).std() / 255, rel=1e-12)


def test_blurring_takes_sharpness_away_and_nothing_else() -> None:
    found = [_facts(_photo().filter(ImageFilter.GaussianBlur(r))) for r in (0, 1, 2, 4, 8)]
    assert [f.sharpness for f in found] == sorted((f.sharpness for f in found), reverse=True)
    assert found[0].sharpness > 1000
    assert found[3].sharpness < 50
    assert all(abs(f.brightness - found[0].brightness) < 0.01 for f in found)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5, 3])
def test_a_picture_says_the_same_at_another_size(scale: float) -> None:
    before, photo = _facts(_photo()), _photo()
    after = _facts(photo.resize((round(512 * scale), round(512 * scale)), Image.Resampling.BICUBIC))
    assert after.sharpness == pytest.approx(before.sharpness, rel=0.35)
    assert after.flatness == pytest.approx(before.flatness, abs=0.02)
    assert after.contrast == pytest.approx(before.contrast, abs=0.01)


def test_pictures_without_content_and_with_nothing_but_noise() -> None:
    blank = _facts(Image.new("RGB", (300, 200), (200, 200, 200)))
    assert (blank.sharpness, blank.contrast, blank.flatness) == (0.0, 0.0, 1.0)
    assert blank.brightness == pytest.approx(200 / 255)
    halves = np.zeros((SIDE, SIDE, 3), np.uint8)
    halves[: SIDE // 2] = 255
    facts = picture_facts(halves)
    assert (facts.brightness, facts.contrast, facts.flatness) == (0.5, 0.5, 0.5)
    assert facts.sharpness == pytest.approx(2 * 255**2 / SIDE)  # one row of +255 and one of -255, of SIDE
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert picture_facts(noise).sharpness > 10_000


@given(st.integers(1, 2000), st.integers(1, 2000))
@settings(max_examples=30, deadline=None)
def test_any_shape_has_measures(width: int, height: int) -> None:
    facts = picture_facts(np.full((height, width, 3), 7, np.uint8))
    assert (facts.width, facts.height, facts.flatness, facts.sharpness) == (width, height, 1.0, 0.0)
    assert max(at_one_size(np.zeros((height, width), np.uint8)).shape) == SIDE


REPEATED: list[tuple[str, float | None, float | None]] = [
    ("", None, None),
    ("!!! ...", None, None),
    ("one", 0.0, 0.0),
    ("a red car", 0.0, 0.0),
    ("photo Photo PHOTO photo", 0.75, 0.75),  # the second run of three overlaps the first
    ("cheap shoes, shoes cheap; (shoes)", 0.6, 0.0),
    ("red car now red car now blue", 3 / 7, 9 / 22),  # the second `red car now`: 9 of 22 characters
    ("写真写真", 0.5, 0.0),
    ("写真館写真館", 0.5, 0.5),
    ("ภาพภาพ", 0.5, 0.5),
]


@pytest.mark.parametrize(("text", "again", "runs"), REPEATED)
def test_repetition(text: str, again: float | None, runs: float | None) -> None:
    words = tokens(text)
    assert repeated_words(words) == (None if again is None else pytest.approx(again))
    assert repeated_runs(words) == (None if runs is None else pytest.approx(runs))


BOILERPLATE: dict[str, tuple[str, ...]] = {
    "no_letters": ("", "  ", "1234", "$19.99", "★★★★☆", "12/05/2020", "20190101_123456", "🍎", "- | -"),
    "file_name": ("IMG_1234.jpg", "DSC00012.JPEG", "red-car.webp", "my holiday.png", "фото.jpg"),
    "camera_name": (
        *("IMG_1234", "DSC_0042", "DSCN1234", "P1010101", "PXL_20210101_101010", "IMG-20190101-WA0001"),
        *("Screenshot 2020-01-01 at 10.10.10", "WhatsApp Image 2020-01-01 at 10.10.10", "untitled (3)"),
        "Bildschirmfoto 2020-01-01 um 10.10.10",
    ),
    "numbered": ("Image 1 of 5", "photo 3/12", "figure 1", "Bild 2 von 9", "slide #4", "фото 3", "図1"),
    "address": (
        *("http://a.example/b", "https://x.y", "www.example.com/a?b", "example.com", "me@mail.example"),
        "//cdn.x/i",
    ),
    "placeholder": (
        *("image", "Image.", "LOGO", "«photo»", "no image available", "Bild", "imagen", "картинка", "写真"),
        *("图片", "사진", "صورة", "ảnh", "null", "[object Object]", "image for", "thumbnail for"),
    ),
    "action": (
        *("Click here", "click here!", "» Read more", "Klicken Sie hier", "lire la suite", "leer más"),
        *("Подробнее", "もっと見る", "点击查看", "더보기", "Next >"),
    ),
    "site": ("Facebook", "twitter icon", "Share on Facebook", "Follow us on Instagram"),
    "date": (
        "May 2020",
        "12 May 2020",
        "May 12, 2020",
        "Monday, 3rd June 2019",
        "1. Mai",
        "12 de mayo de 2020",
    ),
    "hash": ("5f4dcc3b5aa765d61d8327deb882cf99", "123e4567-e89b-12d3-a456-426614174000"),
    "template": ("{{ item.title }}", "${alt}", "%alt%", "<img src=x>"),
}
#: what looks like it and says something
MEANT = (
    *(
        "a dog",
        "Nike logo",
        "photo of a dog",
        "march of the penguins",
        "Route 66 sign",
        "sunset",
        "IMG of a cat",
    ),
    *("Picture of Dorian Gray", "click beetle on a leaf", "May flowers", "visit us at example.com", "Apple"),
    *("iPhone 12", "size 10 shoes", "facebook founder Mark", "deadbeef", "100% cotton", "写真館", "собака"),
)


def test_boilerplate_is_known_by_its_reason() -> None:
    for reason, texts in BOILERPLATE.items():
        assert {text: boilerplate(text) for text in texts} == dict.fromkeys(texts, reason)
    assert {text: boilerplate(text) for text in MEANT} == dict.fromkeys(MEANT)
    assert set(PATTERNS) <= set(BOILERPLATE)


@given(st.text(max_size=60) | st.text("img_1-. /:@[]{}%年月", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_measured(text: str) -> None:
    words = tokens(text)
    for share in (repeated_words(words), repeated_runs(words)):
        assert (share is None) == (not words)
        assert share is None or 0 <= share <= 1
    assert boilerplate(text) == boilerplate(f"  {text}\n")


def _rows() -> list[dict[str, Any]]:
    shown = {"original_width": 4000, "original_height": 1000}
    return [
        crawled(0, 0, picture=_png(_photo()), caption="A man in a red suit, a red suit", **shown),
        crawled(0, 1, picture=b"no picture", caption="IMG_1234.jpg", **shown),
        crawled(0, 2, picture=None, caption=None),
        crawled(0, 3, picture=jpeg(5)[:300], original_width=None, original_height=None),
        crawled(0, 4, reason="timeout"),
        crawled(0, 5, picture=jpeg(6), original_width=None, original_height=None, caption="two words"),
    ]


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(folder / "00000000.parquet")
    return {row["key"][-1]: row for row in table.to_pylist()}


def test_every_row_has_what_can_be_said_of_it(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", {0: _rows()})
    counts = run_here(ScoreStage(ScoreConfig(input=str(images), kind="quality")), tmp_path / "out")
    assert counts.to_json() == {"in": 5, "out": 5, "dropped": {}}
    rows = _read(tmp_path / "out")
    measured = ["sharpness", "brightness", "contrast", "flatness"]
    facts = _facts(_photo())
    for name in measured:
        assert rows["0"][PREFIX + name] == pytest.approx(getattr(facts, name), rel=1e-6)
    assert (rows["0"]["quality_side"], rows["0"]["quality_aspect"]) == (1000, 4.0)  # before the crawl
    assert rows["0"]["quality_picture_error"] is None
    said = ("chars", "words", "boilerplate", "boilerplate_reason")
    assert [rows["0"][PREFIX + n] for n in said] == [31, 9, False, None]
    assert rows["0"]["quality_repeated_words"] == pytest.approx(4 / 9)
    assert rows["0"]["quality_repeated_runs"] == pytest.approx(8 / 22)  # `a red suit` again
    assert (rows["1"]["quality_side"], rows["1"]["quality_picture_error"]) == (1000, "undecodable")
    assert [rows["1"][PREFIX + n] for n in said] == [12, 1, True, "file_name"]
    assert rows["2"]["quality_picture_error"] == "missing_in_shard"
    assert [rows["2"][PREFIX + n] for n in said] == [0, 0, True, "no_letters"]
    assert rows["2"]["quality_repeated_words"] is None
    assert [rows["3"][PREFIX + n] for n in ("side", "aspect", *measured)] == [None] * 6
    assert (rows["5"]["quality_side"], rows["5"]["quality_aspect"]) == (48, 1.0)  # of the stored picture
    # rules read the columns
    table = columns.read_joined(str(images / "00000000.parquet"), [str(tmp_path / "out/00000000.parquet")])
    rule = Selection(where="quality_sharpness >= 100 AND NOT quality_boilerplate")
    reasons = rule.reasons(table).to_pylist()
    assert reasons == [None, "predicate", "predicate", "predicate_null", "timeout", "predicate"]


def test_the_same_bits_with_any_number_of_threads_and_another_name(tmp_path: Path) -> None:
    rows = [crawled(0, i, picture=jpeg(i, 40 + 9 * i)) for i in range(12)]
    images = make_images(tmp_path / "images", {0: rows})
    for threads in (1, 4):
        stage = ScoreStage(ScoreConfig(input=str(images), kind="quality", decode_threads=threads))
        run_here(stage, tmp_path / str(threads))
    one, four = (tmp_path / str(n) / "00000000.parquet" for n in (1, 4))
    assert one.read_bytes() == four.read_bytes()
    run_here(ScoreStage(ScoreConfig(input=str(images), kind="quality", name="q")), tmp_path / "named")
    named = pq.read_table(tmp_path / "named/00000000.parquet").column_names
    assert named == [n.replace("quality_", "q_") for n in pq.read_table(one).column_names]


def test_a_folder_of_another_maker_without_sizes(tmp_path: Path) -> None:
    folder = make_foreign(tmp_path / "foreign", {0: [crawled(0, i) for i in range(2)]})
    table = pq.read_table(folder / "00000.parquet").drop_columns(["original_width", "original_height"])
    pq.write_table(table, folder / "00000.parquet")
    run_here(ScoreStage(ScoreConfig(input=str(folder), kind="quality")), tmp_path / "out")
    found = pq.read_table(tmp_path / "out/00000000.parquet")
    assert found["quality_side"].to_pylist() == [48, 48]
    assert found.schema.field("quality_words").type == pa.int32()


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    folder = make_candidates(tmp_path / "candidates", {0: [("http://a/1", "x")]})
    for changes, message in (
        ({}, "looks at pictures; crawl them first"),
        ({"decode_threads": 0}, "decode_threads 0 must be at least 1"),
        ({"model": "ViT-B-32"}, "means nothing to kind 'quality'"),
        ({"gpus": 1.0}, "means nothing to kind 'quality'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ScoreStage(ScoreConfig(**{"input": str(folder), "kind": "quality", **changes})).plan([])
