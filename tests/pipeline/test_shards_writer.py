"""The shard writer: what it writes is read back by our reader and by webdataset, and never varies."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import webdataset

from pipeline.shards.reader import MAX_MEMBER_BYTES, Sample, iter_samples
from pipeline.shards.writer import ShardWriter

SAMPLES = [
    Sample("000000000000", {"txt": b"ein Bild", "jpg": b"\xff\xd8\xff", "json": b"{}"}),
    Sample("000000000002", {"json": b'{"a": 1}', "1.jpg": b"two", "0.jpg": b"one", "txt": b""}),
]


def write(path: Path, samples: list[Sample]) -> bytes:
    with ShardWriter(path) as shard:
        for sample in samples:
            shard.write(sample)
    return path.read_bytes()


def test_round_trip_through_our_reader(tmp_path: Path) -> None:
    write(tmp_path / "00000000.tar", SAMPLES)
    assert list(iter_samples(str(tmp_path / "00000000.tar"))) == SAMPLES


def test_webdataset_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "00000000.tar", SAMPLES)
    read = list(webdataset.WebDataset(str(tmp_path / "00000000.tar"), shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in read] == ["000000000000", "000000000002"]
    assert read[0]["jpg"] == b"\xff\xd8\xff"
    assert read[1]["1.jpg"] == b"two"


def test_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    turned = [Sample(s.key, dict(reversed(s.members.items()))) for s in SAMPLES]
    assert write(tmp_path / "a.tar", SAMPLES) == write(tmp_path / "b.tar", turned)
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:3]] == [f"000000000000.{s}" for s in ("jpg", "json", "txt")]
    assert {(m.mtime, m.mode, m.uname) for m in members} == {(0, 0o644, "pairmill")}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("a.b", {"jpg": b""}), "split names at dots"),
        (Sample("../a", {"jpg": b""}), "must match"),
        (Sample("000000000000", {"jpg": b""}), "written before"),
        (Sample("b", {}), "no members"),
        (Sample("b", {"../x": b""}), "suffix"),
        (Sample("b", {"__key__": b""}), "suffix"),
        (Sample("b", {"txt": "text"}), "must be bytes"),  # type: ignore[dict-item]
        (Sample("b", {"npz": bytes(MAX_MEMBER_BYTES + 1)}), "over"),
    ],
)
def test_what_readers_would_stumble_over_is_refused(tmp_path: Path, sample: Sample, message: str) -> None:
    with ShardWriter(tmp_path / "a.tar") as shard:
        shard.write(SAMPLES[0])
        with pytest.raises(ValueError, match=message):
            shard.write(sample)
        assert shard.samples == 1


def test_no_sample_at_all_is_a_whole_tar(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [])
    assert list(iter_samples(str(tmp_path / "a.tar"))) == []
