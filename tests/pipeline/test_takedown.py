"""Takedown over images, columns and packed shards: everything of the row goes, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from jobs.cli import main
from pipeline import commit, locks, manifest
from pipeline.errors import ConfigError
from pipeline.planning import make_plan
from pipeline.shards.format import sample_uid
from pipeline.tombstones import BOOK, append, load, make_entry
from tests.pipeline.folders import read_tar, run_here
from tests.pipeline.takedown_world import (
    ROWS,
    SHARDS,
    CountedImages,
    World,
    everything_in,
    keys_in,
    make_world,
    picture_of,
    rows_of,
    sha256_of,
    snapshot,
)

ROW = rows_of(2)[3]
CASES = {
    "url": (["--url", ROW["url"]], [(2, 3)]),
    "other spelling": (["--url", ROW["url"].replace("http://p", "HTTP://P") + "#top"], [(2, 3)]),
    "domain": (["--domain", "site2.example"], [(2, i) for i in range(ROWS)]),
    "page": (["--page-domain", "page4.blog.example"], [(s, 4) for s in range(SHARDS)]),
    "uid": (["--uid", sample_uid(ROW["caption"], ROW["url"])], [(2, 3)]),
    "hash": (["--sha256", sha256_of(0, 1)], [(s, 1) for s in range(SHARDS)]),
    "failed row": (["--url", rows_of(1)[ROWS - 1]["url"]], [(1, ROWS - 1)]),
    "several": (["--url", ROW["url"], "--domain", "site0.example"], [(2, 3), *((0, i) for i in range(ROWS))]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return World(Path(shutil.copytree(made.base, tmp_path / "world")))


def key_of(shard: int, index: int) -> str:
    return f"{shard:08d}{index:04d}"


def takedown(world: World, *words: str) -> int:
    return main(["takedown", *world.arguments(), *words])


def rows_at(path: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in pq.read_table(path).to_pylist()}


def assert_gone(world: World, gone: Sequence[tuple[int, int]]) -> None:
    """No bytes of these rows lie anywhere; those of all others do."""
    there = everything_in(*world.folders)
    packed = {key for path in world.shards.glob("*.tar") for key in read_tar(path)}
    for shard in range(SHARDS):
        for index, row in enumerate(rows_of(shard)):
            marks = [row["url"].encode(), row["page_url"].encode(), row["caption"].encode()]
            marks += [sha256_of(shard, index).encode(), picture_of(shard, index)]
            if (shard, index) in gone:
                assert not [m for m in marks[:3] if m in there], row["key"]
                assert row["key"] not in keys_in(world.lengths) | keys_in(world.dedup) | keys_in(world.shards)
                assert row["key"] not in packed
                if index != 1 or len({s for s, i in gone if i == 1}) == SHARDS:
                    assert not [m for m in marks if m in there], row["key"]
            else:
                assert all(m in there for m in marks[:3]), row["key"]
                if index != ROWS - 1:
                    assert marks[4] in there
                    assert row["key"] in keys_in(world.lengths)


@pytest.mark.parametrize("case", CASES)
def test_each_kind_takes_all_of_a_row_and_nothing_else(world: World, case: str) -> None:
    words, gone = CASES[case]
    before = snapshot(*world.folders)
    tars = {path.name: read_tar(path) for path in world.images.glob("*.tar")}
    assert takedown(world, *words, "--note", "asked in May") == 0
    assert_gone(world, gone)
    after = snapshot(*world.folders)

    # the row stays in its place, and says no more than that
    for shard in range(SHARDS):
        rows = rows_at(world.images / f"{shard:08d}.parquet")
        assert list(rows) == [key_of(shard, i) for i in range(ROWS)]
        for index, row in enumerate(rows.values()):
            if (shard, index) not in gone:
                continue
            facts = {name: value for name, value in row.items() if value is not None}
            old = rows_of(shard)[index]
            assert facts == {
                "key": old["key"],
                "uid": old["uid"],
                "status": "failed_to_download",
                "reason": "taken_down",
                "error_message": "taken down",
            }
    # other samples are the same bytes; other shards' files were not written
    touched = {shard for shard, _ in gone}
    for name, samples in tars.items():
        assert read_tar(world.images / name) == {
            key: members for key, members in samples.items() if key not in {key_of(*g) for g in gone}
        }
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            path = Path(name)
            assert (
                path.name in ("sizes.json", "wids.json")
                or path.parent == world.shards
                or any(f"{shard:08d}" in path.name for shard in touched)
            ), name
    assert_counts_add_up(world, gone)
    if case != "several":  # it takes the winner of duplicates: see below
        assert_only_dedup_looks_again(world.rerun())


def assert_only_dedup_looks_again(done: dict[str, int]) -> None:
    """Its inner stages see all shards at once; they come to the same, and nothing else is redone."""
    assert {name for name, n in done.items() if n} <= {"_resolve", "dedup"}, done


def assert_counts_add_up(world: World, gone: Sequence[tuple[int, int]]) -> None:
    for folder in (world.images, world.lengths, world.dedup, world.shards):
        total = manifest.total_counts(manifest.read_all(str(folder)))
        total.check()
        if folder == world.images:
            assert (total.taken, total.dropped["taken_down"]) == (SHARDS * ROWS, len(gone))
        if folder == world.lengths:
            assert total.kept == sum(i < ROWS - 1 for _, i in {*all_rows()} - {*gone})
    for record in manifest.read_all(str(world.images)):
        stats = json.loads((world.images / f"{record['unit']:08d}_stats.json").read_text())
        assert stats["successes"] == record["counts"]["out"]
        assert stats["count"] == stats["successes"] + stats["failed_to_download"]
        assert stats["status_dict"].get("success", 0) == stats["successes"]
        assert stats["start_time"] == 1.5


def all_rows() -> list[tuple[int, int]]:
    return [(shard, index) for shard in range(SHARDS) for index in range(ROWS)]


def test_what_is_packed_anew_is_what_takedown_left(world: World, tmp_path: Path) -> None:
    assert takedown(world, "--domain", "site3.example", "--url", ROW["url"]) == 0
    world.rerun()
    anew = tmp_path / "anew"
    run_here(world.pack(output=anew), anew)
    for path in sorted(world.shards.glob("0*")):
        if "stats" in path.name:
            ours, theirs = (json.loads((f / path.name).read_text()) for f in (world.shards, anew))
            assert ours["successes"] == theirs["successes"]
        else:
            assert path.read_bytes() == (anew / path.name).read_bytes(), path.name
    assert (world.shards / "sizes.json").read_bytes() == (anew / "sizes.json").read_bytes()
    ours, theirs = (json.loads((f / "wids.json").read_text())["shardlist"] for f in (world.shards, anew))
    assert ours == theirs


def test_readers_of_the_packed_shards(world: World) -> None:
    import wids

    assert takedown(world, "--sha256", sha256_of(0, 1), "--url", ROW["url"]) == 0
    keys = {key for path in sorted(world.shards.glob("*.tar")) for key in read_tar(path)}
    assert len(keys) == SHARDS * (ROWS - 2) - 1
    dataset = webdataset.WebDataset(str(world.shards / "{00000000..00000001}.tar"), shardshuffle=False)
    assert {sample["__key__"] for sample in dataset} == keys
    sizes = json.loads((world.shards / "sizes.json").read_text())
    assert sizes == {p.name: len(read_tar(p)) for p in sorted(world.shards.glob("*.tar"))}
    index = wids.ShardListDataset(
        str(world.shards / "wids.json"), cache_dir=str(world.base / "cache"), keep=True
    )
    assert {index[i]["__key__"] for i in range(len(index))} == keys


def test_shards_alone_and_columns_later(world: World) -> None:
    """A folder that was not named keeps its rows until it is; its units are known by their old marks."""
    words = ["--url", ROW["url"]]
    assert main(["takedown", "--shards", str(world.shards), *words]) == 0
    assert ROW["key"] not in keys_in(world.shards)
    assert world.rerun()["shards"] == 0
    assert main(["takedown", "--images", str(world.images), *words]) == 0
    assert ROW["key"] in keys_in(world.lengths)
    assert takedown(world, "--domain", "nothing.example") == 0  # any takedown mends what was left behind
    assert_gone(world, [(2, 3)])
    assert_only_dedup_looks_again(world.rerun())


def test_what_was_made_before_a_retry_is_not_taken_for_new(world: World) -> None:
    """A shard that came to more after its takedown: what was made from it before must be made anew."""
    assert main(["takedown", "--images", str(world.images), "--url", ROW["url"]]) == 0
    (done,) = [d for d in manifest.list_manifests(str(world.images)) if d.number == 2]
    record = manifest.read(done)
    table = pq.read_table(world.images / "00000002.parquet")
    more = table.set_column(table.schema.get_field_index("exif"), "exif", pa.array(["new"] * ROWS))
    parts = {"00000002.parquet": more}
    commit.replace(str(world.images), {**record, "digest": "0" * 16}, parts, stale=[done.url])
    assert takedown(world, "--domain", "nothing.example") == 0
    with pytest.raises(ConfigError, match="inputs changed"):
        make_plan(world.stages()[0][0], str(world.lengths))


def test_shards_of_other_images_lose_nothing_by_key(world: World, tmp_path: Path) -> None:
    """Keys of two projects are alike; only what was made from the images loses rows by key."""
    other = make_world(tmp_path / "other", shards=2)
    before = snapshot(other.shards)
    words = ["--images", str(world.images), "--columns", str(other.lengths), "--shards", str(other.shards)]
    uid = sample_uid(ROW["caption"], ROW["url"])
    assert main(["takedown", *words, "--uid", uid]) == 0
    after = snapshot(other.shards)
    assert after.pop(str(other.shards / BOOK))
    assert after == before
    assert len(keys_in(other.lengths)) == 2 * (ROWS - 1)


def test_the_winner_of_duplicates_goes(world: World) -> None:
    """The next dedup promotes another; packing it needs --overwrite, as the columns say something new."""
    winner, heirs = key_of(0, 1), [key_of(s, 1) for s in (1, 2, 3)]
    assert winner in keys_in(world.shards)
    assert not {*heirs} & keys_in(world.shards)
    assert takedown(world, "--uid", sample_uid(rows_of(0)[1]["caption"], rows_of(0)[1]["url"])) == 0
    assert winner not in keys_in(world.shards)
    stages = world.stages()
    for stage, folder in stages[:-1]:
        run_here(stage, folder)
    marks = {k: r["duplicate_of"] for p in world.dedup.glob("0*.parquet") for k, r in rows_at(p).items()}
    assert [marks[key] for key in heirs] == [None, heirs[0], heirs[0]]
    pack, folder = stages[-1]
    run_here(pack, folder, overwrite=True)
    assert {*heirs} & keys_in(world.shards) == {heirs[0]}


def test_packing_from_images_that_were_not_rewritten(world: World) -> None:
    """Tombstones of the shards keep a row out although the images have it, and however they are packed."""
    assert main(["takedown", "--shards", str(world.shards), "--domain", "site1.example"]) == 0
    for path in world.shards.glob("00000001*"):
        path.unlink()
    pack = world.pack()
    assert len(make_plan(pack, str(world.shards)).todo) == 1
    counts = run_here(pack, world.shards)
    run_here(world.pack(where=None), world.shards, overwrite=True)
    assert not [key for key in keys_in(world.shards) if key.startswith("00000001")]
    assert counts.dropped["taken_down"] in (0, ROWS)
    total = manifest.total_counts(manifest.read_all(str(world.shards)))
    assert total.dropped["taken_down"] == ROWS


def test_a_shared_list_of_tombstones(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With books of the images and of the output, all of them relative paths of the command's folder."""
    (tmp_path / "shared.csv").write_text(f"kind,value\ndomain,site0.example\nurl,{ROW['url']}\n")
    append(str(world.images), [make_entry("url", rows_of(1)[0]["url"])])
    append(str(tmp_path / "more"), [make_entry("url", rows_of(1)[2]["url"])])
    monkeypatch.chdir(tmp_path)
    words = ["--input", "world/images", "--output", "more", "--tombstones"]
    assert main(["pack", *words, "missing.csv"]) == 2
    assert main(["pack", *words, "shared.csv", "--ray.cpus", "1"]) == 0
    gone = {ROW["key"], key_of(1, 0), key_of(1, 2), *(key_of(0, i) for i in range(ROWS))}
    assert keys_in(tmp_path / "more") == {key_of(s, i) for s, i in all_rows() if i < ROWS - 1} - gone


def test_tombstones_are_kept(world: World) -> None:
    words = ["--domain", "SITE9.example", "--note", "letter 12"]
    assert takedown(world, *words) == 0
    for folder in (world.images, world.shards):
        (entry,) = load(str(folder)).entries
        assert (entry.kind, entry.value, entry.note) == ("domain", "site9.example", "letter 12")
        assert entry.time.endswith("Z")
    assert not (world.lengths / BOOK).exists()
    before = snapshot(*world.folders)
    assert takedown(world, *words) == 0
    assert snapshot(*world.folders) == before


def test_folders_may_be_named_one_by_one(world: World) -> None:
    words = ["--columns", str(world.lengths), "--images", str(world.images), "--columns", f"{world.dedup}/"]
    words += ["--shards", str(world.shards), "--shards", str(world.shards)]
    assert main(["takedown", *words, "--url", ROW["url"]]) == 0
    assert_gone(world, [(2, 3)])


def test_verify_finds_nothing_wrong(world: World) -> None:
    assert takedown(world, "--domain", "site2.example", "--page-domain", "page0.blog.example") == 0
    assert main(["verify", *(str(folder) for folder in world.folders)]) == 0


def test_what_the_search_could_not_see_is_said(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {0: [{k: v for k, v in row.items() if k != "page_url"} for row in rows_of(0)]}
    images = tmp_path / "bare"
    stage = CountedImages(rows)
    run_here(stage, images)
    path = images / "00000000.parquet"
    assert pq.read_table(path)["page_url"].null_count == ROWS
    pq.write_table(pq.read_table(path).drop_columns(["page_url"]), path)
    with locks.run(str(images), {"stage": "crawl"}):
        assert main(["takedown", "--images", str(images), "--page-domain", "page1.blog.example"]) == 0
    told = capsys.readouterr().out
    assert "1 have no column page_url, so nothing is found by it there" in told
    assert f"a stage is running over {images} (process {os.getpid()}" in told


def test_dry_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(*world.folders)
    assert takedown(world, "--url", ROW["url"], "--dry-run") == 0
    assert snapshot(*world.folders) == before
    told = capsys.readouterr().out
    assert f"{world.images}  00000002  {ROW['key']}  http://pictures.site2.example/3.jpg?…" in told
    assert "secret" not in told
    for folder, what in ((world.images, "samples"), (world.lengths, "rows"), (world.shards, "samples")):
        count = 2 if folder == world.shards else 4
        line = f"{folder}: 1 {what} would be removed, 1 of {count} shards would be rewritten"
        assert line in told


def test_a_list_of_thousands(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"url:http://elsewhere.example/{i}.jpg" for i in range(3000)]
    names += [f"domain:d{i}.example" for i in range(3000)]
    (tmp_path / "list.txt").write_text("\n".join([*names, f"url:{ROW['url']}"]))
    assert takedown(world, "--list", str(tmp_path / "list.txt")) == 0
    assert_gone(world, [(2, 3)])
    assert "tombstones: 6,001 new, 0 known before" in capsys.readouterr().out
    assert takedown(world, "--url", ROW["url"]) == 0
    told = capsys.readouterr().out
    assert "nothing was found that had to go" in told
    assert "0 new, 1 known before" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "images"], "nothing to take down"),
        (["--columns", "columns/lengths", "--url", "x"], "give the images beside them"),
        (["--images", "missing", "--url", "x"], "does not exist"),
        (["--images", "foreign", "--url", "x"], "not written by pairmill"),
        (["--images", "shards", "--url", "x"], "pass it as --shards"),
        (["--shards", "columns/lengths", "--url", "x"], "pass it as --columns"),
        (["--images", "images", "--uid", "abc"], "32 hex digits"),
        (["--images", "images", "--list", "missing.txt"], "does not exist"),
        (["--images", "images", "--url", "x", "--workers", "0"], "at least 1"),
    ],
)
def test_bad_arguments(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    (world.base / "foreign").mkdir()
    (world.base / "foreign" / "00000.parquet").touch()
    before = snapshot(*world.folders)
    monkeypatch.chdir(world.base)
    assert main(["takedown", *words]) == 2
    assert message in capsys.readouterr().err
    assert snapshot(*world.folders) == before


def test_a_damaged_shard_fails_and_the_others_go_on(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.images / "00000001.parquet").write_bytes(b"no parquet")
    tar = world.images / "00000002.tar"
    tar.write_bytes(tar.read_bytes()[:-11_000])
    assert takedown(world, "--page-domain", "page3.blog.example") == 1
    told = capsys.readouterr().err
    assert "images 00000001: " in told
    assert "images 00000002: " in told
    assert "2 units failed" in told
    for shard in (0, 3):
        assert rows_at(world.images / f"{shard:08d}.parquet")[key_of(shard, 3)]["reason"] == "taken_down"
    # what knows the row by itself lost it all the same
    assert not {key_of(s, 3) for s in range(SHARDS)} & keys_in(world.shards)


def test_what_killed_runs_left(world: World) -> None:
    """Files of a unit without a manifest, and temporary files, hold pictures too."""
    [done] = [d for d in manifest.list_manifests(str(world.images)) if d.number == 3]
    Path(done.url).unlink()
    (world.images / "00000003.parquet").unlink()  # killed after the tar
    [done] = [d for d in manifest.list_manifests(str(world.shards)) if d.number == 1]
    Path(done.url).unlink()
    temp = world.images / ".00000009.tar.pairmill-tmp-abc"
    temp.write_bytes(picture_of(3, 2))
    pending = world.images / "_pairmill" / "pending" / "00000003-abc"
    pending.mkdir(parents=True)
    (pending / "00000003.tar").write_bytes(picture_of(3, 2))
    assert main(["takedown", "--images", str(world.images), "--url", "http://nothing.example/"]) == 0
    assert (world.images / "00000003.tar").exists()
    assert temp.exists()
    words = ["--images", str(world.images), "--shards", str(world.shards), "--domain", "site3.example"]
    assert main(["takedown", *words, "--leftovers-after", "-1"]) == 0
    there = everything_in(world.images, world.shards)
    assert not [i for i in range(ROWS) if rows_of(3)[i]["caption"].encode() in there]
    assert not [i for i in (0, 2, 3, 4) if picture_of(3, i) in there]
    assert not temp.exists()
    assert not pending.exists()
