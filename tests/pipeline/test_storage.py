"""Storage: atomic local writes, and the same calls on a real S3 API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import inputs, manifest, session, storage
from pipeline.errors import ConfigError
from pipeline.runner import run_stage
from tests.pipeline.object_store import s3_bucket
from tests.pipeline.toy_stage import ToyConfig, ToyStage


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("pairs") as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_write_list_read_remove(place: str, tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        storage.write_bytes(storage.join(place, "sub", name), name.encode() * 3)
    found = storage.list_files(storage.join(place, "sub"))
    assert [storage.basename(f.url) for f in found] == ["a.txt", "b.txt"]
    assert [f.size for f in found] == [15, 15]
    assert storage.read_bytes(found[0].url) == b"a.txta.txta.txt"
    assert storage.read_range(found[1].url, 5, 5) == b"b.txt"
    with storage.local_copy(found[0].url) as path:
        assert path.read_bytes() == b"a.txta.txta.txt"
    assert [storage.basename(f.url) for f in storage.find(storage.join(place, "sub", "b*"))] == ["b.txt"]
    storage.remove(found[0].url)
    assert not storage.exists(found[0].url)
    assert storage.list_files(storage.join(place, "nothing")) == []
    source = tmp_path / "local-file"
    source.write_bytes(b"tar")
    storage.put_file(source, storage.join(place, "sub", "c.tar"))
    assert storage.read_bytes(storage.join(place, "sub", "c.tar")) == b"tar"
    assert not source.exists()


def test_mark_changes_with_content(place: str) -> None:
    url = storage.join(place, "f")
    storage.write_bytes(url, b"1")
    before = storage.find(url)[0]
    storage.write_bytes(url, b"2")
    assert storage.find(url)[0].mark != before.mark


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    url = str(tmp_path / "f")
    storage.write_bytes(url, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(url, 3)  # type: ignore[arg-type]
    assert storage.read_bytes(url) == b"old"
    # what a killed write leaves is not listed
    (tmp_path / f".f{storage.TEMP_MARK}123").write_bytes(b"half")
    assert [storage.basename(f.url) for f in storage.list_files(str(tmp_path))] == ["f"]
    storage.sweep_temporary(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    storage.sweep_temporary(str(tmp_path), older_than=-1)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_sweeping_beside_a_run_that_gives_its_file_its_name(tmp_path: Path) -> None:
    (tmp_path / f".f{storage.TEMP_MARK}1").symlink_to("renamed")  # listed, and not there to be looked at
    (tmp_path / f".f{storage.TEMP_MARK}2").write_bytes(b"half")
    storage.sweep_temporary(str(tmp_path), older_than=-1)
    assert [p.name for p in tmp_path.iterdir()] == [f".f{storage.TEMP_MARK}1"]


def test_stage_on_s3(bucket: str, tmp_path: Path) -> None:
    with session.shared_session():
        remote, local = f"{bucket}/stage", str(tmp_path / "stage")
        assert run_stage(ToyStage(ToyConfig()), remote).done == 3
        run_stage(ToyStage(ToyConfig()), local)
        again = run_stage(ToyStage(ToyConfig()), remote)
    assert (again.done, again.done_before) == (0, 3)
    marks = [[d.content for d in manifest.list_done(place).values()] for place in (remote, local)]
    assert marks[0] == marks[1]


def test_names_of_inputs_do_not_tell_where_they_lie(tmp_path: Path) -> None:
    for name in ("x/1.gz", "x/2.gz", "y/1.gz"):
        storage.write_bytes(str(tmp_path / name), b"")
    assert [n for n, _ in inputs.files(f"{tmp_path}/x/*.gz")] == ["1.gz", "2.gz"]
    assert [n for n, _ in inputs.files(f"{tmp_path}/*/1.gz")] == ["x/1.gz", "y/1.gz"]
    assert [n for n, _ in inputs.files([f"{tmp_path}/x/1.gz"])] == ["1.gz"]
    with pytest.raises(ConfigError, match="same name"):
        inputs.files([f"{tmp_path}/x/*.gz", f"{tmp_path}/y/*.gz"])
    with pytest.raises(ConfigError, match="names no file"):
        inputs.files(f"{tmp_path}/z/*.gz")


def test_shards_of_own_and_foreign_folders(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    for name in ("00000.tar", "00001.tar", "00000.parquet", "notes.tar.txt"):
        storage.write_bytes(str(foreign / name), b"")
    found = inputs.shards(str(foreign), ".tar")
    assert [(s.number, s.stem) for s in found] == [(0, "00000"), (1, "00001")]
    assert found[0].sibling(".parquet").endswith("00000.parquet")
    storage.write_bytes(str(foreign / "000000.tar"), b"")
    with pytest.raises(ConfigError, match="number 0"):
        inputs.shards(str(foreign), ".tar")
    with pytest.raises(ConfigError, match="does not exist"):
        inputs.shards(str(tmp_path / "missing"), ".tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no finished"):
        inputs.shards(str(tmp_path / "empty"), ".tar")
