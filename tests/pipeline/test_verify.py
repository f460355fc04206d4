"""Whatever happens to a unit's files is found, and nothing else is named."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import commit, manifest, storage
from pipeline.compact import compact
from pipeline.shards.format import sample_key, shard_name
from pipeline.shards.scan import HashingReader, scan_tar
from pipeline.stages.dedup import DedupConfig, dedup_stages
from pipeline.stages.pack import Pack, PackConfig
from pipeline.verify import Report, verify
from tests.pipeline import folders
from tests.pipeline.object_store import s3_bucket

ROWS = {
    n: [folders.crawled(n, i, **({"reason": "timeout"} if i == 2 else {})) for i in range(4)]
    for n in range(4)
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ (4 units of 3 pictures), columns/ of scores and of duplicates, shards/ (4), foreign/ (4)."""
    root = tmp_path_factory.mktemp("world")
    images = str(folders.make_images(root / "images", ROWS))
    scores = {n: {"key": [sample_key(n, i) for i in (0, 1, 3)], "score": [0.1, 0.2, 0.3]} for n in range(4)}
    folders.make_columns(root / "columns/score", scores)
    for stage, folder in dedup_stages(DedupConfig(input=images, buckets=3), str(root / "columns/dedup")):
        folders.run_here(stage, folder)
    folders.run_here(Pack(PackConfig(input=images, group=1)), str(root / "shards"))
    make_foreign(root / "foreign")
    return root


def make_foreign(folder: Path) -> None:
    folders.make_foreign(folder, ROWS)
    for number, rows in ROWS.items():
        kept = sum(row["status"] == "success" for row in rows)
        stats = {"count": len(rows), "successes": kept, "failed_to_download": len(rows) - kept}
        (folder / f"{number:05d}_stats.json").write_text(json.dumps(stats))


@pytest.fixture
def bucket() -> Iterator[str]:
    with s3_bucket("verified") as url:
        yield url


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return Path(shutil.copytree(world / name, tmp_path / name))

    return make


def units(report: Report) -> list[int]:
    return [damage.unit for damage in report.damaged]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


OWN = [
    "images",
    "columns/score",
    "columns/dedup",
    "columns/dedup/_sketch",
    "columns/dedup/_resolve",
    "shards",
]


@pytest.mark.parametrize("name", [*OWN, "foreign"])
def test_a_clean_folder_is_clean(world: Path, name: str) -> None:
    for quick in (False, True):
        report = verify(str(world / name), quick=quick)
        assert report.clean, report
        assert report.missing == 0
        assert report.units == (3 if "resolve" in name else 4)
        assert (report.bytes > 0) is not (quick and name != "foreign") or name == "foreign"


@pytest.mark.parametrize("name", OWN)
def test_one_flipped_byte_names_exactly_that_unit(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    chance = random.Random(name)
    for part in sorted(p for p in folder.iterdir() if p.is_file() and p.name.startswith("00000001")):
        whole = part.read_bytes()
        for at in {0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(8))}:
            flip(part, at)
            report = verify(str(folder), workers=2)
            assert units(report) == [1], (part, at)
            assert part.name in report.damaged[0].wrong[0]
            part.write_bytes(whole)
    assert verify(str(folder)).clean


def test_a_tar_cut_at_every_block(copy: Callable[[str], Path]) -> None:
    """Own: anything short of the whole file. Foreign: anything short of the end mark; zeros behind it are no
    part of what the tar holds."""
    for name, stem in (("images", "00000002"), ("foreign", "00002")):
        folder = copy(name)
        tar = folder / f"{stem}.tar"
        whole = tar.read_bytes()
        assert len(whole) % 512 == 0
        end = len(whole.rstrip(b"\0"))
        end += -end % 512 + 1024
        for cut in range(0, len(whole), 512):
            tar.write_bytes(whole[:cut])
            expected = [2] if name == "images" or cut < end else []
            assert units(verify(str(folder))) == expected, (name, cut)
            if name == "images":
                assert units(verify(str(folder), quick=True)) == [2]
        tar.write_bytes(whole)
        assert verify(str(folder)).clean


def test_a_cut_foreign_tar_with_a_new_end_mark_disagrees_with_its_parquet(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("foreign")
    with tarfile.open(folder / "00001.tar") as tar:
        second = [m for m in tar.getmembers() if m.name.endswith(".jpg")][1]
        data = (folder / "00001.tar").read_bytes()[: second.offset]
    (folder / "00001.tar").write_bytes(data + bytes(1024))
    report = verify(str(folder))
    assert units(report) == [1]
    assert "1 samples, the parquet 3 successes" in report.damaged[0].wrong[0]
    assert "the stats say 3" in report.damaged[0].wrong[1]


def test_missing_foreign_parts(copy: Callable[[str], Path]) -> None:
    folder = copy("foreign")
    (folder / "00000.tar").unlink()
    (folder / "00001.parquet").unlink()
    (folder / "00002_stats.json").write_text("{")
    (folder / "00003.parquet").write_bytes((folder / "00003.parquet").read_bytes()[:-9])
    assert units(verify(str(folder))) == [0, 1, 2, 3]


def test_lost_manifests_and_parts(copy: Callable[[str], Path]) -> None:
    folder = copy("images")
    for done in manifest.list_manifests(str(folder)):
        if done.number == 0:
            Path(done.url).unlink()
    (folder / "00000002.parquet").unlink()
    report = verify(str(folder))
    assert units(report) == [0, 2]
    assert "there is no manifest" in report.damaged[0].wrong[0]
    assert report.damaged[1].wrong == ("00000002.parquet: missing",)
    (folder / "00000000.tar").unlink()
    (folder / "00000000.parquet").unlink()
    report = verify(str(folder))
    assert (units(report), report.missing) == ([2], 1), "a unit of which nothing is there is merely not done"


def test_swapped_shards(copy: Callable[[str], Path]) -> None:
    folder = copy("images")
    one, two = folder / "00000001.tar", folder / "00000002.tar"
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    assert units(verify(str(folder))) == [1, 2]


def test_damaged_manifests(copy: Callable[[str], Path]) -> None:
    folder = copy("shards")
    [done] = [d for d in manifest.list_manifests(str(folder)) if d.number == 3]
    whole = Path(done.url).read_text()
    record = json.loads(whole)
    key = record["files"]["00000003.tar"]["sha256"]
    changes = [
        ("{", ""),
        ('"unit": 3', '"unit": 2'),
        (key, key[::-1]),
        ('"group": 1', '"group": 2'),
        ('"version": ', '"version": 9'),
        ('"in": 4', '"in": 5'),
        ('"out": 3', '"out": 2'),
        ('"samples": 3', '"samples": 4'),
        (record["notes"]["md5"], record["notes"]["md5"][::-1]),
    ]
    for before, after in changes:
        assert before in whole
        Path(done.url).write_text(whole.replace(before, after, 1))
        assert units(verify(str(folder))) == [3], before


def test_two_manifests_pending_replacements_and_leftovers(copy: Callable[[str], Path]) -> None:
    folder = copy("images")
    [done] = [d for d in manifest.list_manifests(str(folder)) if d.number == 1]
    twin = done.url.replace(f".{done.digest}-", ".0123456789abcdef-")
    shutil.copy(done.url, twin)
    pending = folder / "_pairmill/pending/00000002-abc"
    pending.mkdir(parents=True)
    (pending / "00000002.tar").write_bytes(b"half")
    (folder / f".00000003.tar{storage.TEMP_MARK}abc").write_bytes(b"half")
    (folder / "00000077.tar").write_bytes(b"")
    report = verify(str(folder))
    assert units(report) == [1]
    assert any("2 manifests" in text for text in report.damaged[0].wrong)
    assert report.unplanned == ["00000077.tar: no unit of this number was ever planned"]
    assert any("1 temporary" in text for text in report.notes)
    (pending / commit.INTENT).write_text("{}")
    assert units(verify(str(folder))) == [1, 2]


def test_indexes_that_say_something_else(copy: Callable[[str], Path]) -> None:
    folder = copy("shards")
    for name, before, after in (
        ("sizes.json", '"00000001.tar": 3', '"00000001.tar": 4'),
        ("wids.json", '"nsamples": 3', '"nsamples": 2'),
        ("sizes.json", "00000001", "00000009"),
        ("wids.json", "shardlist", "shards"),
    ):
        whole = (folder / name).read_text()
        assert before in whole
        (folder / name).write_text(whole.replace(before, after, 1))
        report = verify(str(folder))
        assert (units(report), len(report.indexes)) == ([], 1), name
        assert not verify(str(folder), quick=True).clean
        (folder / name).write_text(whole)


def test_a_compacted_folder_is_verified_alike(copy: Callable[[str], Path]) -> None:
    folder = copy("images")
    compact(str(folder))
    assert verify(str(folder)).clean
    flip(folder / "00000001.tar", 600)
    assert units(verify(str(folder))) == [1]
    assert units(verify(str(folder), units={0, 2})) == []


def rewritten(tar: bytes, change: Callable[[list[tarfile.TarInfo]], list[tarfile.TarInfo]]) -> bytes:
    """The tar with its members chosen and ordered anew."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=sink, mode="w") as target:
        for member in change(source.getmembers()):
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return sink.getvalue()


def fault_of(tar: bytes) -> str:
    return scan_tar(HashingReader(io.BytesIO(tar))).fault


def test_what_a_tar_may_not_have(world: Path) -> None:
    tar = (world / "images/00000001.tar").read_bytes()
    assert fault_of(tar) == ""
    link = tarfile.TarInfo("000000019999.jpg")
    link.type = tarfile.SYMTYPE
    link.linkname = "/etc/passwd"
    assert "not adjacent" in fault_of(rewritten(tar, lambda m: [m[0], *m[3:6], *m[1:3]]))
    assert "two members 'json'" in fault_of(rewritten(tar, lambda m: [*m[:3], m[1], m[1]]))
    assert "no regular file" in fault_of(rewritten(tar, lambda m: [*m, link]))
    assert "behind the end mark" in fault_of(tar + b"x")
    assert fault_of(tar + bytes(512)) == ""
    # an extra member, a key out of order: the tar is in order, and disagrees with the rest
    keys = scan_tar(HashingReader(io.BytesIO(rewritten(tar, lambda m: m[3:6] + m[:3])))).keys
    assert keys == [sample_key(1, 1), sample_key(1, 0)]


def test_a_unit_that_was_committed_wrong(tmp_path: Path) -> None:
    """Checksums that are right do not hide a tar that does not go with its parquet."""

    class Wrong(folders.FixedImages):
        def run(self, unit, scratch):
            output = super().run(unit, scratch)
            tar = output.parts[".tar"]
            data = tar.read_bytes()
            if unit.number == 1:
                data = rewritten(data, lambda m: m[3:6] + m[:3] + m[6:])
            elif unit.number == 2:
                extra = tarfile.TarInfo("000000029999.jpg")
                data = rewritten(data, lambda m: [*m, extra])
            elif unit.number == 3:
                output.counts.keep()
            tar.write_bytes(data)
            return output

    folders.run_here(Wrong(ROWS), tmp_path)
    report = verify(str(tmp_path))
    assert units(report) == [1, 2, 3]
    assert "not in order" in report.damaged[0].wrong[0]
    assert "4 samples, the manifest counts 3" in report.damaged[1].wrong[0]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_bytes_make_the_scan_crash_or_hang(data: st.DataObject) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for n in range(3):
            info = tarfile.TarInfo(f"{n:012d}.jpg")
            info.size, info.mtime = 700 * n, 1.5  # a float: a pax header, as img2dataset's writer gives it
            tar.addfile(info, io.BytesIO(bytes(700 * n)))
    whole = bytearray(sink.getvalue())
    assert scan_tar(HashingReader(io.BytesIO(bytes(whole)))).keys == [f"{n:012d}" for n in range(3)]
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    reader = HashingReader(io.BytesIO(bytes(whole)))
    scan_tar(reader)
    assert reader.size == len(whole)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2048))
def test_nor_do_any_bytes(data: bytes) -> None:
    assert scan_tar(HashingReader(io.BytesIO(data))).fault


def test_parquets_are_compared_with_counts(copy: Callable[[str], Path]) -> None:
    """Rows that vanish from a parquet are found by the counts, not only by the checksum."""
    folder = copy("columns/score")
    [done] = [d for d in manifest.list_manifests(str(folder)) if d.number == 1]
    record = manifest.read(done)
    part = folder / f"{shard_name(1)}.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    record["files"][part.name] = {"sha256": storage.sha256_file(part), "size": part.stat().st_size}
    Path(done.url).unlink()
    manifest.write(str(folder), record)
    report = verify(str(folder))
    assert report.damaged[0].wrong == ("the parquet has 2 rows, the manifest counts 3",)


def test_on_s3(world: Path, bucket: str) -> None:
    """The same checks over an object store; a tar is read in one stream."""
    fs = storage.resolve(bucket)[0]
    for name in ("images", "shards", "foreign"):
        fs.put(str(world / name), f"{bucket}/{name}", recursive=True)
        assert verify(f"{bucket}/{name}").clean
        stem = "00001" if name == "foreign" else "00000001"
        whole = storage.read_bytes(f"{bucket}/{name}/{stem}.tar")
        storage.write_bytes(f"{bucket}/{name}/{stem}.tar", whole[: 512 * 7])
        assert units(verify(f"{bucket}/{name}")) == [1]
    storage.remove(f"{bucket}/images/00000002.parquet")
    assert units(verify(f"{bucket}/images", quick=True)) == [1, 2]
