"""`pairmill inspect`: which samples a contact sheet shows, of which shards, and what it refuses."""

from __future__ import annotations

import inspect as standard
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import jobs.inspect
from jobs import cli
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stages.pack import Pack, PackConfig
from tests.jobs.report_world import HOSTILE
from tests.jobs.test_report import Reader
from tests.pipeline.folders import crawled, jpeg, make_columns, make_foreign, make_images, run_here
from tests.pipeline.object_store import s3_bucket


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    shards = {
        n: [crawled(n, i, **({"reason": "timeout"} if i == 3 else {})) for i in range(20)] for n in (0, 4)
    }
    shards[4][1] = crawled(4, 1, caption=HOSTILE)
    shards[4][2] = crawled(4, 2, picture=b"no picture at all")
    make_images(root / "images", shards)
    scores = {
        n: {
            "key": [r["key"] for r in rows if r["status"] == "success"],
            "clip_score": [i / 100 for i, r in enumerate(rows) if r["status"] == "success"],
        }
        for n, rows in shards.items()
    }
    make_columns(root / "columns" / "clip", scores)
    make_foreign(root / "foreign", {7: shards[0]})
    return root


def sheet(world: Path, *words: str, output: str = "s.html") -> Reader:
    path = world / output
    assert cli.main(["inspect", *words, "--output", str(path)]) == 0
    return Reader(path.read_text(encoding="utf-8"))


def keys_on(page: Reader) -> list[str]:
    return [word for word in page.words if len(word) == 12 and word.isdigit()]


def test_all_of_a_shard_in_its_order_with_its_columns(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = sheet(world, str(world / "images"), "4", "--columns", str(world / "columns" / "clip"))
    assert keys_on(page) == [f"00000004{i:04d}" for i in range(20) if i != 3]
    assert "clip_score 0.010" in page.text
    assert page.text.count("picture cannot be shown") == 1
    assert len(page.all("img")) == 18
    line = capsys.readouterr().out
    assert f"s.html: 19 of 19 pictures of {world / 'images' / '00000004.tar'}, 1 unreadable, " in line


def test_a_predicate_an_order_and_chosen_values(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--columns",
        str(world / "columns" / "clip"),
        "--where",
        "clip_score > 0.1",
        "--by",
        "clip_score",
    ]
    tar = str(world / "images" / "00000004.tar")
    page = sheet(world, tar, *options, "--show", "url", "http_status")
    assert keys_on(page) == [f"00000004{i:04d}" for i in range(19, 10, -1)]
    assert "url http://site.example/4/19.jpg" in page.text
    assert "http_status 200" in page.text
    assert "clip_score" not in page.text
    assert "9 of 19 pictures (9 match)" in capsys.readouterr().out


def test_a_seeded_choice_and_named_samples(world: Path) -> None:
    tar = str(world / "images" / "00000000.tar")
    some = keys_on(sheet(world, tar, "--sample", "5"))
    assert len(some) == 5
    assert some == sorted(some) == keys_on(sheet(world, tar, "--sample", "5"))
    assert some != keys_on(sheet(world, tar, "--sample", "5", "--seed", "1"))
    assert keys_on(sheet(world, tar, "--keys", "000000000007", "000000000002")) == [
        "000000000007",
        "000000000002",
    ]


def test_hostile_text_is_text_and_nothing_is_loaded(world: Path) -> None:
    page = sheet(world, str(world / "images"), "4")
    assert HOSTILE in page.text
    assert page.all("script") == []
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in page.all("img"))


@pytest.mark.parametrize(("ending", "kind"), [("jpg", "JPEG"), ("png", "PNG")])
def test_a_sheet_as_a_picture(
    world: Path, ending: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / f"sheet.{ending}"
    words = ["inspect", str(world / "images"), "4", "--columns", str(world / "columns" / "clip")]
    assert cli.main([*words, "--output", str(path)]) == 0
    assert "19 of 19 pictures" in capsys.readouterr().out
    with Image.open(io.BytesIO(path.read_bytes())) as found:
        assert found.format == kind
        assert found.width == 6 * 228 + 18
        assert len(found.convert("RGB").getcolors(1 << 24)) > 1000  # pictures are in it


def test_foreign_shards_lone_tars_and_packed_ones(world: Path, tmp_path: Path) -> None:
    page = sheet(world, str(world / "foreign"))  # the only shard of its folder
    assert "000070002" in page.words
    path = tmp_path / "lone.tar"
    with ShardWriter(path) as shard:
        meta = json.dumps({"clip_score": 0.25, "list": [1]}).encode()
        shard.write(Sample("a_b", {"jpg": jpeg(1), "txt": b"a lone tar", "json": meta}))
        shard.write(Sample("a_c", {"jpg": jpeg(2), "json": b"no json"}))
    page = sheet(world, str(path))
    assert "a lone tar clip_score 0.250" in page.text
    assert "a_c" in page.words
    packed = tmp_path / "00000000.tar"
    packed.write_bytes(path.read_bytes())
    table = pa.table({"key": ["a_c", "a_b"], "caption": ["second", "first"], "unsafe": [0.5, 0.125]})
    pq.write_table(table, tmp_path / "00000000.parquet")
    page = sheet(world, str(packed), "--where", "unsafe < 0.2")
    assert "first unsafe 0.125" in page.text
    assert "second" not in page.text


def test_a_shard_in_an_object_store(world: Path) -> None:
    from s3fs import S3FileSystem

    with s3_bucket("inspect") as bucket:
        for name in ("images", "columns"):
            S3FileSystem().put(str(world / name), f"{bucket}/{name}", recursive=True)
        words = [f"{bucket}/images/00000004.tar", "--columns", f"{bucket}/columns/clip", "--sample", "4"]
        assert cli.main(["inspect", *words, "--output", f"{bucket}/sheet.html"]) == 0
        page = Reader(S3FileSystem().cat_file(f"{bucket}/sheet.html").decode())
    assert len(keys_on(page)) == 4
    assert page.text.count("clip_score 0.") == 4


def test_a_view_names_the_folder_of_its_pictures(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(Pack(PackConfig(input=str(world / "images"), view=True)), tmp_path / "view")
    assert cli.main(["inspect", str(tmp_path / "view"), "0"]) == 2
    assert f"is a view: its pictures lie in the image folder '{world / 'images'}" in capsys.readouterr().err


def test_the_sheet_is_named_after_its_shard(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", str(world / "images" / "00000000.tar")]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["00000000.html"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{w}/nothing"], 2, "is neither a .tar nor a folder"),
        (["{w}/images/00000009.tar"], 2, "does not exist"),
        (["{w}/images"], 2, "has 2 shards; say which"),
        (["{w}/images", "9"], 2, "has no finished shard 9; it has 2, 0 to 4"),
        (["{w}/images/00000000.tar", "0"], 2, "is one shard already"),
        (["{w}/images", "0", "--keys", "7"], 2, "key '7' has no picture in the shard; a key here is '0000"),
        (["{w}/images", "0", "--where", "clip_scor > 1"], 2, "unknown column 'clip_scor'"),
        (["{w}/images", "0", "--show", "nope"], 2, "column 'nope' is not there; known columns: bytes"),
        (["{w}/images", "0", "--by", "nope"], 2, "column 'nope' is not there"),
        (["{w}/images", "0", "--columns", "{w}/none"], 2, "does not exist"),
        (["{w}/images", "0", "--sample", "0"], 2, "sample 0 must be in 1..1000"),
        (["{w}/images", "0", "--output", "s.pdf"], 2, "must end in .html"),
        (["{w}/torn/00000000.tar"], 1, "the shard was cut off"),
        (["{w}/empty/00000000.tar"], 1, "no picture in it"),
        (["{w}/mixed/00000004.tar"], 1, "it belongs to another shard"),
    ],
)
def test_what_it_refuses(
    world: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (world / "images" / "00000000.tar").read_bytes()
    for name, data in (("torn", whole[: len(whole) // 2 // 512 * 512]), ("empty", bytes(10240))):
        (world / name).mkdir(exist_ok=True)
        (world / name / "00000000.tar").write_bytes(data)
    (world / "mixed").mkdir(exist_ok=True)
    (world / "mixed" / "00000004.tar").write_bytes(whole)
    parquet = (world / "images" / "00000004.parquet").read_bytes()
    (world / "mixed" / "00000004.parquet").write_bytes(parquet)
    assert cli.main(["inspect", *(word.format(w=world) for word in words)]) == code
    assert message in capsys.readouterr().err


def test_the_standard_module_of_this_name_is_not_hidden() -> None:
    assert standard.signature(jobs.inspect.main).parameters.keys() == {"argv"}
