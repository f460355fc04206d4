"""Views: the samples are those of packed tars, byte for byte; what becomes of them when images change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import manifest
from pipeline.errors import ConfigError, InputError
from pipeline.shards.reader import iter_samples
from pipeline.shards.view import open_view
from pipeline.stages.pack import PackConfig, pack_stages
from pipeline.takedown import Folders, take_down
from pipeline.tombstones import make_entry
from pipeline.verify import verify
from tests.pipeline.folders import crawled, make_columns, make_foreign, make_images, read_tar, run_here


def _world(tmp_path: Path, shards: int = 5) -> None:
    images = {}
    for n in range(shards):
        rows = [crawled(n, i, caption=f"picture {i}\n“{n}” 猫") for i in range(6)]
        rows += [crawled(n, 6, picture=None), crawled(n, 7, reason="timeout")]
        images[n] = rows
    make_images(tmp_path / "images", images)
    keys = {n: [row["key"] for row in rows[:7]] for n, rows in images.items()}
    scores = {n: {"key": k, "clip_score": [0.0, 0.1, 0.2, 0.3, 0.4, None, 0.9]} for n, k in keys.items()}
    make_columns(tmp_path / "clip", scores)


def _pack(tmp_path: Path, name: str, *, overwrite: bool = False, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "input": str(tmp_path / "images"),
        "columns": (str(tmp_path / "clip"),),
        "group": 2,
    }
    for stage, output in pack_stages(PackConfig(**{**given, **changes}), str(tmp_path / name)):
        run_here(stage, output, overwrite=overwrite)
    return tmp_path / name


def _packed(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    for path in sorted(folder.glob("*.tar")):
        yield from ((s.key, s.members) for s in iter_samples(str(path)))


def _viewed(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    return [(sample.key, sample.members) for sample in open_view(str(folder))]


@pytest.mark.parametrize("rule", [{}, {"where": "clip_score > 0.1"}, {"top": "50%", "by": "clip_score"}])
def test_samples_are_those_of_the_packed_tars(tmp_path: Path, rule: dict[str, Any]) -> None:
    _world(tmp_path)
    packed, view = _pack(tmp_path, "packed", **rule), _pack(tmp_path, "view", view=True, **rule)
    expected = list(_packed(packed))
    assert _viewed(view) == expected
    assert len(expected) > 5
    assert not list(view.glob("*.tar"))
    for path in sorted(packed.glob("*.parquet")):
        one, other = pq.read_table(path), pq.read_table(view / path.name)
        assert other.drop_columns(["view_tar", "view_members"]).equals(one)
        stats = f"{path.stem}_stats.json"
        assert (packed / stats).read_bytes() == (view / stats).read_bytes()
    counts = [manifest.total_counts(manifest.read_all(str(f))).to_json() for f in (packed, view)]
    assert counts[0] == counts[1]
    opened = open_view(str(view))
    assert len(opened) == len(expected)
    with opened.open(opened.urls[0]) as shard:  # by offset, in any order
        for place in reversed(range(len(shard))):
            assert (shard.read(place).key, shard.read(place).members) == expected[place]


def test_a_foreign_folder_is_viewed(tmp_path: Path) -> None:
    make_foreign(tmp_path / "images", {n: [crawled(n, i) for i in range(3)] for n in range(2)})
    packed = _pack(tmp_path, "packed", columns=())
    assert _viewed(_pack(tmp_path, "view", columns=(), view=True)) == list(_packed(packed))


def test_bytes_do_not_tell_where_the_images_lie(tmp_path: Path) -> None:
    _world(tmp_path)
    view = _pack(tmp_path, "view", view=True)
    (tmp_path / "moved").mkdir()
    for name in ("images", "clip", "view"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    before = {p.name: p.read_bytes() for p in (tmp_path / "moved/view").iterdir() if p.is_file()}
    assert len(_viewed(tmp_path / "moved/view")) == 30  # images lie beside it, as before
    shutil.move(tmp_path / "moved/images", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"its pictures are not at .*moved/images"):
        open_view(str(tmp_path / "moved/view"))
    assert len(list(open_view(str(tmp_path / "moved/view"), images=str(tmp_path / "elsewhere")))) == 30
    shutil.move(tmp_path / "moved/view", view)
    shutil.move(tmp_path / "moved/clip", tmp_path / "clip")
    _pack(tmp_path, "view", view=True, input=str(tmp_path / "elsewhere"))  # nothing to redo but the index
    after = {p.name: p.read_bytes() for p in view.iterdir() if p.is_file()}
    assert {n for n in before if before[n] != after[n]} == {"view.json"}
    assert len(_viewed(view)) == 30


def test_changed_images_are_noticed(tmp_path: Path) -> None:
    _world(tmp_path)
    view = _pack(tmp_path, "view", view=True)
    assert verify(str(view)).clean
    tar = tmp_path / "images/00000002.tar"
    data = tar.read_bytes()
    tar.write_bytes(data + bytes(10240))
    with pytest.raises(InputError, match="the images changed since the view was made"):
        _viewed(view)
    # the same size, and another picture where one was
    names = [key.encode() for key in read_tar(tmp_path / "images/00000002.tar")][:2]
    tar.write_bytes(data.replace(names[0] + b".jpg", names[1] + b".jpg"))
    with pytest.raises(InputError, match=r"\.jpg is not at byte"):
        _viewed(view)
    wrong = [text for d in verify(str(view)).damaged for text in d.wrong]
    assert any("00000002.tar" in text for text in wrong)
    assert verify(str(view), quick=True).clean  # which reads manifests alone
    tar.unlink()
    with pytest.raises(InputError, match="the file is missing"):
        _viewed(view)


def test_a_view_is_no_folder_of_copies(tmp_path: Path) -> None:
    _world(tmp_path)
    _pack(tmp_path, "view", view=True)
    _pack(tmp_path, "packed")
    with pytest.raises(ConfigError, match="choose another --output"):
        _pack(tmp_path, "packed", view=True, overwrite=True)
    with pytest.raises(ConfigError, match="choose another --output"):
        _pack(tmp_path, "view", overwrite=True)
    with pytest.raises(InputError, match="no view"):
        open_view(str(tmp_path / "packed"))
    index = tmp_path / "view/view.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "kind": "pairmill-view-v9"}))
    with pytest.raises(InputError, match="v9"):
        open_view(str(tmp_path / "view"))


def test_a_takedown_reaches_views(tmp_path: Path) -> None:
    """Rows go, offsets follow the rewritten tars, and what is left is what packing anew would give."""
    _world(tmp_path)
    view = _pack(tmp_path, "view", view=True)
    urls = [crawled(1, 2)["url"], crawled(3, 0)["url"]]
    folders = Folders(
        images=(str(tmp_path / "images"),), columns=(str(tmp_path / "clip"),), shards=(str(view),)
    )
    report = take_down(folders, [make_entry("url", url) for url in urls])
    assert not report.failures
    told = {f.kind: f for f in report.folders}
    assert told["shards"].rows == 2
    keys = [key for key, _ in _viewed(view)]
    assert len(keys) == 28
    assert not {"000000010002", "000000030000"} & set(keys)
    for url in urls:
        assert not any(url.encode() in p.read_bytes() for p in view.glob("*.texts"))
    anew = _pack(tmp_path, "anew", view=True)
    assert _viewed(view) == _viewed(anew)
    for path in view.glob("*.texts"):
        assert path.read_bytes() == (anew / path.name).read_bytes()
    report = verify(str(view))
    assert report.clean, report
    before = manifest.list_done(str(view))
    _pack(tmp_path, "view", view=True)  # a rerun finds everything done
    assert manifest.list_done(str(view)) == before


def test_a_takedown_without_the_view_leaves_it_unreadable(tmp_path: Path) -> None:
    """Its offsets are of tars that are gone: it says so, and a later takedown with the view mends it."""
    _world(tmp_path)
    view = _pack(tmp_path, "view", view=True)
    entries = [make_entry("url", crawled(1, 2)["url"])]
    images, columns = (str(tmp_path / "images"),), (str(tmp_path / "clip"),)
    take_down(Folders(images=images, columns=columns), entries)
    with pytest.raises(InputError, match="the images changed since the view was made"):
        _viewed(view)
    assert not verify(str(view)).clean
    take_down(Folders(images=images, columns=columns, shards=(str(view),)), entries)
    assert len(_viewed(view)) == 29
    assert verify(str(view)).clean
