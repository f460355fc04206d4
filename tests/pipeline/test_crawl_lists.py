"""Lists of every kind, as they are published, become the same rows, whoever read a piece before."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, InputError
from pipeline.stage import Unit
from pipeline.stages.crawl.config import ColumnOptions, CrawlConfig
from pipeline.stages.crawl.lists import ListReader
from pipeline.stages.crawl.local import LocalPictures
from pipeline.stages.crawl.sources import Rows, list_files, plan_pieces, split_columns
from pipeline.stages.crawl.stage import CrawlStage
from tests.pipeline.crawl_server import picture

PAIRS = [("http://a.example/1.jpg", "a dog"), ("http://b.example/2.jpg", 'a "small" cat, asleep')]


def rows_of(path: Path, columns: ColumnOptions | None = None, *, local: bool = False) -> Rows:
    columns = columns or ColumnOptions()
    reader = ListReader(str(path), columns)
    return split_columns(reader.read(0, reader.count()), columns, path.name, local=local)


def pairs_of(path: Path, columns: ColumnOptions | None = None) -> list[tuple[str | None, str | None]]:
    rows = rows_of(path, columns)
    return list(zip(rows.urls, rows.captions, strict=True))


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_laion_and_coyo(tmp_path: Path) -> None:
    urls, texts = zip(*PAIRS, strict=True)
    laion = pa.table({"URL": urls, "TEXT": texts, "WIDTH": [640, 320], "similarity": [0.3, 0.31]})
    pq.write_table(laion, tmp_path / "laion.parquet")
    rows = rows_of(tmp_path / "laion.parquet")
    assert list(zip(rows.urls, rows.captions, strict=True)) == PAIRS
    assert rows.carried.to_pylist()[0] == {"source_WIDTH": 640, "similarity": 0.3}

    coyo = pa.table(
        {"id": [1, 2], "url": urls, "text": texts, "width": [1, 2], "clip_similarity_vitb32": [0.2, 0.3]}
    )
    pq.write_table(coyo, tmp_path / "coyo.parquet")
    assert pairs_of(tmp_path / "coyo.parquet") == PAIRS
    only = ColumnOptions(carry=["id"])
    assert rows_of(tmp_path / "coyo.parquet", only).carried.column_names == ["id"]


def test_conceptual_captions_have_no_header(tmp_path: Path) -> None:
    cc3m = write(tmp_path / "cc3m.tsv", "".join(f"{c}\t{u}\n" for u, c in PAIRS))
    assert pairs_of(cc3m, ColumnOptions(names=["caption", "url"])) == PAIRS
    cc12m = write(tmp_path / "cc12m.tsv.gz", "".join(f"{u}\t{c}\n" for u, c in PAIRS))
    assert pairs_of(cc12m, ColumnOptions(names=["url", "caption"])) == PAIRS


def test_sbu_in_both_its_shapes(tmp_path: Path) -> None:
    urls, texts = zip(*PAIRS, strict=True)
    captions = write(tmp_path / "captions.txt", "\n".join(texts) + "\n")
    listed = write(tmp_path / "urls.txt", "\n".join(urls) + "\n")
    assert pairs_of(listed, ColumnOptions(captions=str(captions))) == PAIRS
    whole = write(
        tmp_path / "sbu.json", json.dumps({"image_urls": urls, "user_ids": [1, 2], "captions": texts})
    )
    assert pairs_of(whole) == PAIRS
    write(captions, texts[0] + "\n")
    with pytest.raises(ConfigError, match=r"captions\.txt ends at line 1"):
        pairs_of(listed, ColumnOptions(captions=str(captions)))


def test_csv_with_quotes_breaks_and_other_names(tmp_path: Path) -> None:
    text = 'id;Bild;Text\n1;http://a.example/1.jpg;"two\nlines; ""quoted"""\n\n2;http://b.example/2.jpg\n'
    columns = ColumnOptions(url="Bild", caption="Text", delimiter=";")
    rows = rows_of(write(tmp_path / "a.csv", "\ufeff" + text), columns)
    assert rows.captions == ['two\nlines; "quoted"', None]
    assert rows.carried.to_pylist() == [{"id": "1"}, {"id": "2"}]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        json.dumps({"url": PAIRS[0][0], "alt": PAIRS[0][1], "n": 1, "tags": ["x"], "sha256": "ab"}),
        "",
        "{broken",
        '{"url": "http://b.example/2.jpg", "alt": "half \\ud800 pair", "n": null}',
    ]
    rows = rows_of(write(tmp_path / "a.jsonl.gz", "\n".join(lines)))
    assert rows.urls == [PAIRS[0][0], None, PAIRS[1][0]], "a broken line is a row that is counted"
    assert rows.captions == ["a dog", None, "half ? pair"]
    assert rows.carried.to_pylist()[0] == {"n": 1, "tags": '["x"]', "source_sha256": "ab"}


def test_caption_files_of_datasets(tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "7.jpg", "coco_url": "http://c.example/7.jpg"}],
        "annotations": [{"image_id": 7, "id": i, "caption": f"caption {i}"} for i in range(3)],
    }
    path = write(tmp_path / "captions.json", json.dumps(coco))
    assert pairs_of(path) == [("http://c.example/7.jpg", f"caption {i}") for i in range(3)]
    assert rows_of(path, local=True).urls == ["7.jpg"] * 3

    karpathy = {
        "images": [{"filename": "7.jpg", "filepath": "val", "split": "test", "sentences": [{"raw": "x"}]}]
    }
    rows = rows_of(write(tmp_path / "k.json", json.dumps(karpathy)), local=True)
    assert (rows.urls, rows.captions) == (["val/7.jpg"], ["x"])

    region = {"image_id": 9, "phrase": "a hat", "x": 1, "y": 2, "width": 3, "height": 4}
    rows = rows_of(write(tmp_path / "vg.json", json.dumps([{"id": 9, "regions": [region]}])), local=True)
    assert (rows.urls, rows.captions) == (["9.jpg"], ["a hat"])

    token = write(tmp_path / "results.token", "7.jpg#0\ta dog\n7.jpg#1\ta cat\n")
    rows = rows_of(token, local=True)
    assert (rows.urls, rows.captions) == (["7.jpg", "7.jpg"], ["a dog", "a cat"])
    table = write(tmp_path / "results.csv", "image_name| comment_number| comment\n7.jpg| 0| a dog, running\n")
    rows = rows_of(table, ColumnOptions(delimiter="|"), local=True)
    assert (rows.urls, rows.captions) == (["7.jpg"], ["a dog, running"])


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_pieces_are_the_same_in_any_order(tmp_path: Path, kind: str) -> None:
    table = pa.table({"url": [f"http://a.example/{i}" for i in range(12_001)], "text": ["x"] * 12_001})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=700)
    elif kind == "csv":
        write(path, "url,text\n" + "".join(f"{r['url']},{r['text']}\n" for r in table.to_pylist()))
    else:
        write(path, "".join(json.dumps(r) + "\n" for r in table.to_pylist()))
    reader = ListReader(str(path), ColumnOptions())
    assert reader.count() == 12_001
    for start, stop in [(0, 10), (10, 6_000), (9_000, 9_001), (12_000, 12_001), (5, 11_000), (0, 12_001)]:
        found = reader.read(start, stop)
        assert found == table.slice(start, stop - start)
        assert found["url"].num_chunks == 1
    with pytest.raises(InputError, match="ends at row 12001"):
        reader.read(12_000, 12_010)


def config(path: str | list[str], **options: object) -> CrawlConfig:
    return CrawlConfig(input=path, **options)  # type: ignore[arg-type]


def test_units_are_pieces_of_files_and_append_only(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", "url,text\n" + "u,t\n" * 25)
    pieces = plan_pieces(config(str(tmp_path), shard_size=10), [])
    assert [p[0] for p in pieces] == [
        {"file": "b.csv", "rows": [0, 10]},
        {"file": "b.csv", "rows": [10, 20]},
        {"file": "b.csv", "rows": [20, 25]},
    ]
    planned = [Unit(number=i, source=source, inputs=()) for i, (source, _) in enumerate(pieces)]
    write(tmp_path / "a.csv", "url,text\n" + "u,t\n" * 5)
    assert len(plan_pieces(config(str(tmp_path), shard_size=10), planned)) == 4
    with pytest.raises(ConfigError, match="the same lists and shard_size"):
        plan_pieces(config(str(tmp_path), shard_size=12), planned)
    with pytest.raises(ConfigError, match="the same lists and shard_size"):
        plan_pieces(config(str(tmp_path / "a.csv"), shard_size=10), planned)


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.xml", "x", {}, "unknown format"),
        ("a.csv", "foo,bar\n1,2\n", {}, "no column is known to be the url among foo, bar"),
        ("a.csv", "url,bar\n1,2\n", {}, "pass --columns.caption NAME"),
        ("a.csv", "url,text\n1,2\n", {"columns": ColumnOptions(url="URL")}, "columns.url"),
        ("a.csv", "url,url,text\n1,2,3\n", {}, "a name twice"),
        ("a.csv", 'url,text\n1,"' + "x" * (5 << 20), {}, "not a readable list"),
        ("a.parquet", "PAR1 is not all of it", {}, "not a readable list"),
        ("a.json", "{", {}, "not a readable list"),
        ("a.json", '{"a": 1}', {}, "neither a list of objects"),
        ("a.csv", "url,text\n1,2\n", {"shard_size": 20_000}, "shard_size 20000"),
        ("a.csv", "url,text\n1,2\n", {"encode_format": "png", "encode_quality": 95}, "encode_quality 95"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_starts(
    tmp_path: Path, name: str, text: str, options: dict, message: str
) -> None:
    stage = CrawlStage(config(str(write(tmp_path / name, text)), **options))
    with pytest.raises(ConfigError, match=message):
        stage.plan([])


def test_folders_that_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"")
    (tmp_path / "00000.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="has pictures already"):
        list_files(config(str(tmp_path)))
    with pytest.raises(ConfigError, match="names no file"):
        list_files(config(str(tmp_path / "missing.csv")))


def test_local_pictures_stay_below_their_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "val").mkdir(parents=True)
    (tmp_path / "pictures" / "val" / "7.jpg").write_bytes(picture(7))
    (tmp_path / "secret.jpg").write_bytes(picture(8))
    pictures = LocalPictures(str(tmp_path / "pictures"), max_bytes=100_000)
    assert pictures.read("val/7.jpg").body == picture(7)
    assert pictures.read("7.jpg").body == picture(7), "looked for one folder below"
    assert pictures.read("8.jpg").reason == "not_found"
    for name in (
        "../secret.jpg",
        "val/../../secret.jpg",
        f"{tmp_path}/secret.jpg",
        "file:///etc/passwd",
        "val\\..",
        "",
    ):
        assert pictures.read(name).reason == "bad_url"
    assert LocalPictures(str(tmp_path / "pictures"), max_bytes=10).read("7.jpg").reason == "too_large"
    with pytest.raises(ConfigError, match="is not a folder"):
        LocalPictures(str(tmp_path / "nothing"), max_bytes=10)
