"""Reading shards: every way in which a tar can be cut or damaged is noticed, none is taken for the end."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.shards.reader import Sample, index_tar, iter_samples, read_member
from pipeline.shards.writer import ShardWriter


def _shard(path: Path, samples: int = 3) -> bytes:
    with ShardWriter(path) as writer:
        for i in range(samples):
            writer.write(Sample(f"{i:012d}", {"jpg": bytes([i]) * 700, "txt": b"a caption", "json": b"{}"}))
    return path.read_bytes()


def test_index_and_stream_agree(tmp_path: Path) -> None:
    path = tmp_path / "00000000.tar"
    _shard(path)
    streamed = list(iter_samples(str(path)))
    assert [s.key for s in streamed] == [f"{i:012d}" for i in range(3)]
    for sample, index in zip(streamed, index_tar(str(path)), strict=True):
        assert sample.key == index.key
        read = {suffix: read_member(str(path), *place) for suffix, place in index.members.items()}
        assert read == sample.members


def test_shard_without_samples(tmp_path: Path) -> None:
    _shard(tmp_path / "0.tar", samples=0)
    assert index_tar(str(tmp_path / "0.tar")) == []
    assert list(iter_samples(str(tmp_path / "0.tar"))) == []


def test_truncation_at_every_block_is_noticed(tmp_path: Path) -> None:
    whole = _shard(tmp_path / "whole.tar")
    content = max(i for i in range(0, len(whole), 512) if any(whole[i : i + 512])) + 512
    cut = tmp_path / "cut.tar"
    for size in range(0, content + 1, 512):
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.tar"):
            index_tar(str(cut))
        with pytest.raises(InputError, match=r"cut\.tar"):
            list(iter_samples(str(cut)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 20), byte=st.integers(0, 511), value=st.integers(0, 255))
def test_a_flipped_header_byte_never_loses_samples_quietly(
    tmp_path: Path, where: int, byte: int, value: int
) -> None:
    whole = bytearray(_shard(tmp_path / "whole.tar"))
    place = (where * 512 + byte) % len(whole)
    whole[place] = value
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(whole)
    try:
        found = index_tar(str(damaged))
    except InputError:
        return
    assert len(found) == 3 or place >= len(whole) - 1024


def _tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_members_that_would_pair_wrongly_are_refused(tmp_path: Path) -> None:
    twice = _tar(tmp_path / "a.tar", [("x/1.jpg", b"1"), ("y/1.jpg", b"2")])
    with pytest.raises(InputError, match="two members 'jpg'"):
        index_tar(twice)
    apart = _tar(tmp_path / "b.tar", [("1.jpg", b"1"), ("2.jpg", b"2"), ("1.txt", b"t")])
    with pytest.raises(InputError, match="not adjacent"):
        index_tar(apart)
    with pytest.raises(InputError, match="not adjacent"):
        list(iter_samples(apart))


def test_links_and_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "c.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("1.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        info = tarfile.TarInfo("1.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    assert list(iter_samples(str(path))) == [Sample("1", {"jpg": b"1"})]


def test_forged_negative_size_ends(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # a base-256 size of -256
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path = tmp_path / "d.tar"
    path.write_bytes(bytes(header) + b"\0" * 1536)
    with pytest.raises(InputError):
        index_tar(str(path))
    with pytest.raises(InputError):
        list(iter_samples(str(path)))
