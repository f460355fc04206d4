"""The files of a unit without some rows: tars byte for byte, row groups, counts."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.shards.reader import Sample
from pipeline.shards.writer import ShardWriter
from pipeline.stage import Counts
from pipeline.storage import sha256_file
from pipeline.takedown.parts import copy_tar, encode_table, fewer_counts, kept_counts, read_table


def copy(source: Path, target: Path, without: set[str]) -> int:
    return copy_tar(str(source), sha256_file(source), target, without=without)


def write(path: Path, sizes: list[list[int]], without: set[int] = frozenset()) -> None:
    with ShardWriter(path) as writer:
        for number, members in enumerate(sizes):
            if number not in without:
                data = {
                    suffix: bytes([number]) * n for suffix, n in zip(("jpg", "txt"), members, strict=True)
                }
                writer.write(Sample(f"{number:012d}", data))


@given(
    st.lists(st.lists(st.integers(0, 1500), min_size=2, max_size=2), max_size=7),
    st.sets(st.integers(0, 7)),
)
@settings(max_examples=60, deadline=None)
def test_a_copied_tar_is_one_that_never_had_the_others(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], without: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    write(folder / "all.tar", sizes)
    write(folder / "expected.tar", sizes, without)
    kept = copy(folder / "all.tar", folder / "copy.tar", {f"{n:012d}" for n in without})
    assert kept == len(set(range(len(sizes))) - without)
    assert (folder / "copy.tar").read_bytes() == (folder / "expected.tar").read_bytes()


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_go_with_their_members(tmp_path: Path, kind: int) -> None:
    """A name over 100 bytes has a header of its own in front."""
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        for name in ("a", "b", "c"):
            info = tarfile.TarInfo(f"{'x' * 120}/{name}.jpg")
            info.size = 700
            tar.addfile(info, io.BytesIO(name.encode() * 700))
    assert copy(tmp_path / "a.tar", tmp_path / "b.tar", {"b"}) == 2
    with tarfile.open(tmp_path / "b.tar") as tar:
        found = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    assert found == {"a.jpg": b"a" * 700, "c.jpg": b"c" * 700}
    assert b"bbb" not in (tmp_path / "b.tar").read_bytes()


def test_damaged_tars_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "all.tar", [[600, 3]] * 5)
    whole = (tmp_path / "all.tar").read_bytes()
    for cut in range(0, 10 * 1024, 512):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError):
            copy(tmp_path / "cut.tar", tmp_path / "copy.tar", {"000000000001"})
    with pytest.raises(InputError, match="missing"):
        copy_tar(str(tmp_path / "gone.tar"), "", tmp_path / "copy.tar", without=set())
    with pytest.raises(InputError, match="verify --fix"):
        copy_tar(str(tmp_path / "all.tar"), "0" * 64, tmp_path / "copy.tar", without=set())


def test_row_groups_stay(tmp_path: Path) -> None:
    """Dedup reads parts of its tables by them."""
    table = pa.table({"key": [str(i) for i in range(25)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    found, row_group = read_table(str(tmp_path / "a.parquet"), sha256_file(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(encode_table(found.slice(1), row_group))
    assert pq.ParquetFile(tmp_path / "b.parquet").metadata.num_row_groups == 3
    pq.write_table(table, tmp_path / "c.parquet")
    assert read_table(str(tmp_path / "c.parquet"), sha256_file(tmp_path / "c.parquet"))[1] is None
    with pytest.raises(InputError, match="verify --fix"):
        read_table(str(tmp_path / "c.parquet"), "0" * 64)


def test_counts() -> None:
    before = Counts(10, 7, {"a": 2, "b": 1})
    kept = kept_counts(before, 3)
    assert kept.to_json() == {"in": 10, "out": 4, "dropped": {"a": 2, "b": 1, "taken_down": 3}}
    assert kept_counts(kept, 1).dropped["taken_down"] == 4
    assert fewer_counts(before, 3).to_json() == {"in": 7, "out": 4, "dropped": {"a": 2, "b": 1}}
    assert fewer_counts(before, 9).to_json() == {"in": 1, "out": 0, "dropped": {"b": 1}}
    for counts in (kept, fewer_counts(before, 9)):
        counts.check()
