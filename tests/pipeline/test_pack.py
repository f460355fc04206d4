"""Pack: what is kept, in which order, what is written, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import columns, manifest, session
from pipeline.errors import ConfigError, InputError
from pipeline.runner import run_stage
from pipeline.runner_options import RunOptions
from pipeline.selection import explain_rows
from pipeline.shards.format import sample_uid
from pipeline.stages.pack import Pack, PackConfig
from pipeline.stages.pack.groups import plan_groups, shuffled
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images, read_tar, run_here

FILES = ("00000000.tar", "00000000.parquet", "00000000_stats.json")


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


def _world(tmp_path: Path, shards: int = 3) -> tuple[str, str]:
    """Images of 6 rows a shard, of which row 5 failed, and scores of index / 10; row 4 has no score."""
    images = {n: [crawled(n, i) for i in range(5)] + [crawled(n, 5, reason="timeout")] for n in range(shards)}
    keys = {n: [row["key"] for row in rows[:5]] for n, rows in images.items()}
    scores = {n: {"key": k, "clip_score": [0.0, 0.1, 0.2, 0.3, None]} for n, k in keys.items()}
    make_images(tmp_path / "images", images)
    make_columns(tmp_path / "clip", scores)
    return str(tmp_path / "images"), str(tmp_path / "clip")


def _config(tmp_path: Path, **changes: Any) -> PackConfig:
    given: dict[str, Any] = {"input": str(tmp_path / "images"), "columns": (str(tmp_path / "clip"),)}
    return PackConfig(**{**given, **changes})


def _keys(folder: Path) -> list[str]:
    return [key for path in sorted(folder.glob("*.tar")) for key in read_tar(path)]


def test_keeps_what_the_rule_says_and_counts_the_rest(tmp_path: Path) -> None:
    images, _ = _world(tmp_path)
    config = _config(tmp_path, where="clip_score >= 0.2", group=2)
    counts = run_here(Pack(config), tmp_path / "out")
    expected = {"timeout": 3, "predicate": 6, "predicate_null": 3}
    assert counts.to_json() == {"in": 18, "out": 6, "dropped": expected}
    assert sorted(_keys(tmp_path / "out")) == sorted(f"{n:08d}{i:04d}" for n in range(3) for i in (2, 3))
    source = {k: m for p in sorted(Path(images).glob("*.tar")) for k, m in read_tar(p).items()}
    for number in (0, 1):
        tar = read_tar(tmp_path / f"out/{number:08d}.tar")
        table = pq.read_table(tmp_path / f"out/{number:08d}.parquet")
        assert table["key"].to_pylist() == list(tar)
        stats = json.loads((tmp_path / f"out/{number:08d}_stats.json").read_text())
        assert stats["successes"] == len(tar)
        assert stats["count"] == stats["successes"] + sum(stats["dropped"].values())
        for row in table.to_pylist():
            members = tar[row["key"]]
            assert list(members) == ["jpg", "json", "txt"]
            assert members["jpg"] == source[row["key"]]["jpg"]
            assert members["txt"].decode() == row["caption"]
            meta = json.loads(members["json"])
            assert None not in meta.values()
            assert meta == {k: v for k, v in row.items() if v is not None} | {
                "clip_score": meta["clip_score"]
            }
            assert meta["clip_score"] in (0.2, 0.3)
            assert meta["uid"] == sample_uid(row["caption"], row["url"])
            assert meta["page_url"].startswith("http://site.example/page")


def test_order_is_shuffled_and_given_by_the_seed(tmp_path: Path) -> None:
    _world(tmp_path)
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_here(Pack(_config(tmp_path, seed=seed, group=3)), tmp_path / name)
        orders.append(_keys(tmp_path / name))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]


def test_two_runs_give_the_same_bytes_on_the_real_runner(tmp_path: Path) -> None:
    _world(tmp_path)
    stage = Pack(_config(tmp_path, where="clip_score >= 0.1", group=2))
    options = RunOptions(workers=1)
    assert run_stage(stage, str(tmp_path / "a"), options).exit_code == 0
    run_here(stage, tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir() if p.is_file())
    assert names == sorted(
        [*FILES, *(f.replace("00000000", "00000001") for f in FILES), "sizes.json", "wids.json"]
    )
    for name in names:
        if name != "wids.json":  # names the folder
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    again = run_stage(stage, str(tmp_path / "a"), options)
    assert (again.done, again.done_before) == (0, 2)
    sizes = json.loads((tmp_path / "a/sizes.json").read_text())
    assert sizes == {p.name: len(read_tar(p)) for p in sorted((tmp_path / "a").glob("*.tar"))}
    for shard in json.loads((tmp_path / "a/wids.json").read_text())["shardlist"]:
        data = (tmp_path / "a" / shard["url"]).read_bytes()
        assert (shard["filesize"], shard["md5sum"]) == (len(data), hashlib.md5(data).hexdigest())


def test_new_shards_form_new_groups(tmp_path: Path) -> None:
    _world(tmp_path, shards=3)
    run_here(Pack(_config(tmp_path, group=2)), tmp_path / "out")
    before = manifest.list_done(str(tmp_path / "out"))
    _world(tmp_path, shards=6)
    counts = run_here(Pack(_config(tmp_path, group=2)), tmp_path / "out")
    after = manifest.list_done(str(tmp_path / "out"))
    assert counts.taken == 18
    assert len(after) == 4
    assert {n: after[n] for n in before} == before
    assert len(_keys(tmp_path / "out")) == len(set(_keys(tmp_path / "out"))) == 30


def test_changed_rules_are_refused(tmp_path: Path) -> None:
    _world(tmp_path)
    run_here(Pack(_config(tmp_path, group=2)), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"where null -> .*--overwrite"):
        run_here(Pack(_config(tmp_path, group=2, where="clip_score > 0.1")), tmp_path / "out")
    for change in ({"group": 3}, {"group": 2, "seed": 9}):
        with pytest.raises(ConfigError, match="choose another --output"):
            run_here(Pack(_config(tmp_path, **change)), tmp_path / "out", overwrite=True)
    run_here(Pack(_config(tmp_path, group=2, where="clip_score > 0.25")), tmp_path / "out", overwrite=True)
    assert len(_keys(tmp_path / "out")) == 3


def test_a_rule_is_checked_before_anything_runs(tmp_path: Path) -> None:
    _world(tmp_path)
    with pytest.raises(ConfigError, match="not one SQL expression"):
        Pack(_config(tmp_path, where="true; SELECT 1"))
    with pytest.raises(ConfigError, match=r"clip_scor'.*did you mean clip_score.*known columns: .*width"):
        Pack(_config(tmp_path, where="clip_scor > 1")).plan([])
    with pytest.raises(ConfigError, match="unknown column 'clip_score'"):
        Pack(_config(tmp_path, where="clip_score > 1", columns=())).plan([])
    with pytest.raises(ConfigError, match="group 0"):
        Pack(_config(tmp_path, group=0))
    with pytest.raises(ConfigError, match="does not exist"):
        Pack(_config(tmp_path, input=str(tmp_path / "nothing"))).plan([])
    make_images(tmp_path / "images", {n: [crawled(n, 0)] for n in range(5)})
    with pytest.raises(ConfigError, match=r"no shard 00000003.*run stage 'score'"):
        Pack(_config(tmp_path)).plan([])


def test_img2dataset_folder_is_packed(tmp_path: Path) -> None:
    make_foreign(tmp_path / "images", {n: [crawled(n, i) for i in range(3)] for n in range(2)})
    counts = run_here(Pack(PackConfig(input=str(tmp_path / "images"), where="width = 48")), tmp_path / "out")
    assert (counts.taken, counts.kept) == (6, 6)
    tar = read_tar(tmp_path / "out/00000000.tar")
    assert sorted(tar) == [f"{n:05d}{i:04d}" for n in range(2) for i in range(3)]
    assert len(json.loads(tar["000000001"]["json"])["uid"]) == 32


@pytest.mark.parametrize("kind", ["npy", "txt"])
def test_uids_choose_samples(tmp_path: Path, kind: str) -> None:
    _world(tmp_path)
    uids = [crawled(n, 1)["uid"] for n in range(2)] + ["f" * 32, "0" * 32]
    path = tmp_path / f"subset.{kind}"
    if kind == "npy":
        pairs = [(int(u[:16], 16), int(u[16:], 16)) for u in uids]
        np.save(path, np.array(pairs, dtype="u8,u8"))
    else:
        path.write_text("\n".join(uids) + "\n")
    counts = run_here(Pack(_config(tmp_path, uids=str(path))), tmp_path / "out")
    assert counts.to_json() == {"in": 18, "out": 2, "dropped": {"timeout": 3, "not_in_uids": 13}}
    assert sorted(_keys(tmp_path / "out")) == ["000000000001", "000000010001"]


def test_bad_uid_files_are_refused(tmp_path: Path) -> None:
    _world(tmp_path)
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "floats.npy", np.zeros(3))
    (tmp_path / "short.txt").write_text("abc\n")
    for name, message in (
        ("pickle.npy", "no array"),
        ("floats.npy", "u8,u8"),
        ("short.txt", "line 1"),
        ("absent.npy", "names no file"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pack(_config(tmp_path, uids=str(tmp_path / name))).plan([])


def test_a_damaged_tar_fails_its_unit_alone(tmp_path: Path) -> None:
    images, _ = _world(tmp_path)
    stage = Pack(_config(tmp_path, group=1))
    units = stage.plan([])
    broken = Path(images) / "00000001.tar"
    broken.write_bytes(broken.read_bytes()[:3000])
    summary = run_stage(stage, str(tmp_path / "out"), RunOptions(workers=1))
    bad = next(u.number for u in units if u.source["shards"] == [1])
    assert summary.exit_code == 1
    assert list(summary.failed) == [bad]
    assert "00000001.tar" in summary.failed[bad]
    assert "InputError" in summary.failed[bad]
    assert summary.done == 2


def test_a_success_without_a_picture_is_counted(tmp_path: Path) -> None:
    make_images(tmp_path / "images", {0: [crawled(0, 0), crawled(0, 1, picture=None), crawled(0, 2)]})
    counts = run_here(Pack(_config(tmp_path, columns=())), tmp_path / "out")
    assert counts.to_json()["dropped"] == {"missing_in_shard": 1}
    assert len(pq.read_table(tmp_path / "out/00000000.parquet")) == 2


def test_nothing_kept_is_an_empty_shard(tmp_path: Path) -> None:
    _world(tmp_path, shards=1)
    counts = run_here(Pack(_config(tmp_path, where="clip_score > 9")), tmp_path / "out")
    assert (counts.kept, _keys(tmp_path / "out")) == (0, [])
    assert "clip_score" in pq.read_schema(tmp_path / "out/00000000.parquet").names


def test_hostile_captions_and_odd_values_survive(tmp_path: Path) -> None:
    captions = ['<script>alert("x")</script>', "line\nbreak\ttab\x00", "naïve 猫 🐈", "", None]
    make_images(tmp_path / "images", {0: [crawled(0, i, caption=c) for i, c in enumerate(captions)]})
    keys = [f"{i:012d}" for i in range(5)]
    odd: dict[str, list] = {
        "key": keys,
        "bad": [float("nan"), float("inf"), 0.1, None, 1.0],
        "many": [["a"]] * 5,
    }
    make_columns(tmp_path / "clip", {0: odd})
    run_here(Pack(_config(tmp_path)), tmp_path / "out")
    tar = read_tar(tmp_path / "out/00000000.tar")
    for key, caption in zip(keys, captions, strict=True):
        assert tar[key]["txt"].decode() == (caption or "")
        meta = json.loads(tar[key]["json"])
        assert meta.get("caption") == caption
        assert "many" not in meta
    assert [json.loads(tar[k]["json"]).get("bad") for k in keys] == [None, None, 0.1, None, 1.0]


def test_groups_are_stable_under_removal() -> None:
    names = [str(n) for n in range(50)]
    order = shuffled(names, 7)
    assert order != names
    assert [n for n in order if n != "13"] == shuffled([n for n in names if n != "13"], 7)
    groups = plan_groups([], range(10), group=4, seed=0)
    assert sorted(n for g in groups for n in g["shards"]) == list(range(10))
    assert [len(g["shards"]) for g in groups] == [4, 4, 2]


def test_unreadable_parquet_fails_the_unit(tmp_path: Path) -> None:
    images, _ = _world(tmp_path, shards=1)
    stage = Pack(_config(tmp_path))
    (unit,) = stage.plan([])
    (Path(images) / "00000000.parquet").write_bytes(b"PAR1")
    stage.start()
    with pytest.raises(InputError, match="not a readable parquet"):
        stage.run(unit, tmp_path)


def test_presets_name_the_first_failing_rule(tmp_path: Path) -> None:
    images = [
        crawled(0, 0, bytes=9000),
        crawled(0, 1, bytes=9000, caption="abc"),
        crawled(0, 2, bytes=100),
        crawled(0, 3, bytes=9000),
        crawled(0, 4, bytes=9000),
        crawled(0, 5, reason="too_small"),
        crawled(0, 6, bytes=9000),
    ]
    make_images(tmp_path / "images", {0: images})
    keys = [row["key"] for row in images if row["key"] != images[5]["key"]]
    dup = [None, None, None, keys[0], None, None]
    make_columns(tmp_path / "clip", {0: {"key": keys, "clip_score": [0.5, 0.5, 0.5, 0.5, 0.1, None]}})
    make_columns(tmp_path / "dedup", {0: {"key": keys, "duplicate_of": dup}})
    folders = (str(tmp_path / "clip"), str(tmp_path / "dedup"))
    config = _config(tmp_path, preset="laion400m", columns=folders)
    expected = {"short_caption": 1, "small_file": 1, "duplicate": 1, "low_clip_score": 1, "too_small": 1}
    counts = run_here(Pack(config), tmp_path / "out")
    assert counts.to_json() == {"in": 7, "out": 1, "dropped": {**expected, "low_clip_score_null": 1}}
    with pytest.raises(ConfigError, match=r"needs column 'duplicate_of'.*pairmill dedup"):
        Pack(_config(tmp_path, preset="laion400m")).plan([])
    with pytest.raises(ConfigError, match="laion9"):
        Pack(_config(tmp_path, preset="laion9"))


def test_report_and_pack_agree(tmp_path: Path) -> None:
    images, clip = _world(tmp_path, shards=1)
    table = columns.read_joined(f"{images}/00000000.parquet", [f"{clip}/00000000.parquet"])
    reasons = explain_rows(table, where="clip_score >= 0.2").to_pylist()
    assert reasons == ["predicate", "predicate", None, None, "predicate_null", "timeout"]
    run_here(Pack(_config(tmp_path, where="clip_score >= 0.2")), tmp_path / "out")
    kept = [key for key, reason in zip(table["key"].to_pylist(), reasons, strict=True) if reason is None]
    assert sorted(_keys(tmp_path / "out")) == kept
