"""The shard writer: what it writes is read back by our reader and by webdataset, and never varies."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[0-9a-z_]{1,64}", fullmatch=True),
            st.dictionaries(
                st.from_regex(r"[0-9a-z]{1,16}(\.[0-9a-z]{1,16})?", fullmatch=True),
                st.binary(max_size=3000),
                min_size=1,
                max_size=4,
            ),
        ),
        max_size=6,
        unique_by=lambda sample: sample[0],
    )
)
def test_the_bytes_are_those_of_webdatasets_writer(samples: list[tuple[str, dict[str, bytes]]]) -> None:
    theirs = io.BytesIO()
    with webdataset.TarWriter(
        theirs, user="pairmill", group="pairmill", mode=0o644, mtime=0, encoder=False
    ) as tar:
        for key, members in samples:
            tar.write({"__key__": key, **members})
    with tempfile.TemporaryDirectory() as folder:
        ours = write(Path(folder) / "a.tar", [Sample(key, members) for key, members in samples])
    assert ours == theirs.getvalue()


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
