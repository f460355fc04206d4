"""`pairmill verify --fix` redoes exactly what is damaged, to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import cli
from pipeline import manifest, session, storage
from tests.pipeline import folders, web_archives


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain without a web: candidates/ (2 units), images/ of local pictures (3), columns/, shards/ (3)."""
    root = tmp_path_factory.mktemp("world")
    for n in range(2):
        page = f'<img src="/{n}.jpg" alt="a picture of number {n}">'.encode()
        (root / f"{n}.warc.gz").write_bytes(web_archives.warc({f"http://site.example/{n}": page}))
    (root / "pictures").mkdir()
    lines = ["file,caption"]
    for n in range(9):
        (root / f"pictures/{n}.jpg").write_bytes(folders.jpeg(n, 64))
        lines.append(f"{n}.jpg,picture number {n}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    run("discover", "--input", f"{root}/*.warc.gz", "--output", f"{root}/candidates", "--rules", "none")
    run(
        *("crawl", "--input", f"{root}/list.csv", "--local_pictures", f"{root}/pictures"),
        *("--output", f"{root}/images", "--shard_size", "3"),
    )
    run("dedup", "--input", f"{root}/images", "--output", f"{root}/columns/dedup", "--buckets", "2")
    run("pack", "--input", f"{root}/images", "--output", f"{root}/shards", "--group", "1")
    return root


def run(*argv: str) -> None:
    assert cli.main([*argv, "--workers", "1"]) == 0


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """(mtime, sha256) of every part."""
    return {
        p.name: (p.stat().st_mtime_ns, storage.sha256_file(p))
        for p in folder.iterdir()
        if p.is_file() and p.suffix != ".json"
    }


CASES = [
    ("candidates", "part-00000001.parquet"),
    ("images", "00000001.tar"),
    ("images", "00000002.parquet"),
    ("images", "00000000_stats.json"),
    ("columns/dedup", "00000001.parquet"),
    ("columns/dedup/_sketch", "00000001_keys.parquet"),
    ("shards", "00000001.tar"),
    ("shards", "00000002.parquet"),
]


@pytest.mark.parametrize(("name", "part"), CASES)
def test_one_flipped_byte_one_unit_redone(
    world: Path, name: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world / name
    before = state(folder)
    books = {d.number: Path(d.url).stat().st_mtime_ns for d in manifest.list_manifests(str(folder))}
    data = bytearray((folder / part).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / part).write_bytes(data)
    number = int(part.removeprefix("part-")[:8])
    capsys.readouterr()
    assert cli.main(["verify", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert f"{number:08d}: {part}: " in lines[0]
    assert f"pairmill verify {folder} --fix --unit {number}" in lines[0]
    assert "1 damaged" in lines[1]
    assert cli.main(["verify", str(folder), "--fix", "--json"]) == 0
    found, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["unit"], whole["damaged"], whole["clean"]) == (number, [number], False)
    after = state(folder)
    assert {n: s for n, (_, s) in after.items()} == {n: s for n, (_, s) in before.items()}
    touched = {n for n in after if after[n] != before[n]}
    assert part in touched or part.endswith(".json")  # stats say when they were made
    assert all(f"{number:08d}" in n for n in touched)
    redone = {
        d.number
        for d in manifest.list_manifests(str(folder))
        if Path(d.url).stat().st_mtime_ns != books[d.number]
    }
    assert redone == {number}
    # what depends on the unit is as it was, since the bytes are
    assert cli.main(["verify", *(str(world / n) for n, _ in CASES)]) == 0


def test_other_damage_is_mended_too(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = world / "shards"
    before = {n: s for n, (_, s) in state(shards).items()}
    sizes = (shards / "sizes.json").read_bytes()
    for done in manifest.list_manifests(str(shards)):
        if done.number == 0:
            Path(done.url).unlink()
        elif done.number == 1:
            Path(done.url).write_text("{")
    (shards / "00000002.parquet").unlink()
    (shards / "sizes.json").write_text("{}\n")
    assert cli.main(["verify", str(shards)]) == 1
    out = capsys.readouterr().out
    assert "there is no manifest" in out
    assert "sizes.json: lists other tars" in out
    assert cli.main(["verify", str(shards), "--fix"]) == 0
    assert {n: s for n, (_, s) in state(shards).items()} == before
    assert (shards / "sizes.json").read_bytes() == sizes
    assert cli.main(["verify", str(shards), "--quick"]) == 0


def test_a_picture_that_is_gone_is_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A redo that gives other content: said, and what was made of it stands until it is run again."""
    shutil.copytree(world / "images", tmp_path / "images")
    kept = (world / "pictures/4.jpg").read_bytes()
    (tmp_path / "images/00000001.tar").write_bytes(b"")
    (world / "pictures/4.jpg").unlink()
    try:
        assert cli.main(["verify", str(tmp_path / "images"), "--fix"]) == 0
    finally:
        (world / "pictures/4.jpg").write_bytes(kept)
    out = capsys.readouterr().out
    assert "1 units (3 rows) will be read from the folder of pictures again" in out
    assert "other content now (00000001)" in out


def test_what_cannot_be_mended_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.make_foreign(tmp_path / "foreign", {0: [folders.crawled(0, 0)]})
    tar = tmp_path / "foreign/00000.tar"
    tar.write_bytes(tar.read_bytes()[:512])
    assert cli.main(["verify", str(tmp_path / "foreign"), "--fix"]) == 1
    assert "make it again" in capsys.readouterr().out
    folders.make_images(tmp_path / "images", {0: [folders.crawled(0, 0)]})
    assert cli.main(["verify", str(tmp_path / "images")]) == 0
    assert cli.main(["verify", str(tmp_path / "images"), "--fix"]) == 2
    assert "how it was made is not known" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    assert cli.main(["verify", str(tmp_path / "empty")]) == 2
