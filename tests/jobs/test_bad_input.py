"""What a user gets for bad input: a clear message, the right exit code, and nothing lost."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from jobs import cli
from pipeline import manifest, session
from tests.pipeline.folders import crawled, make_images

IMAGES = {shard: [crawled(shard, i) for i in range(4)] for shard in range(2)}


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with session.shared_session():
        yield


def _archive(path: Path) -> None:
    page = b"<html><body><img src='/a.jpg' alt='a red apple on a table'></body></html>"
    with path.open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(
                "http://example.org/", "response", payload=io.BytesIO(page), http_headers=headers
            )
        )


def test_empty_and_truncated_archives_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _archive(tmp_path / "good.warc.gz")
    (tmp_path / "empty.warc.gz").touch()
    (tmp_path / "cut.warc.gz").write_bytes((tmp_path / "good.warc.gz").read_bytes()[:-20])
    command = ["discover", "--input", f"{tmp_path}/*.gz", "--output", f"{tmp_path}/out"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert "empty.warc.gz" in error
    assert "cut.warc.gz" in error
    assert len(manifest.list_done(f"{tmp_path}/out")) == 1
    # within --allow-failed the command succeeds, and the failed archives are still told
    assert cli.main([*command, "--allow-failed", "2"]) == 0
    assert "2 units failed" in capsys.readouterr().err
    # mended, just these are done
    for name in ("empty", "cut"):
        _archive(tmp_path / f"{name}.warc.gz")
    assert cli.main(command) == 0
    assert len(manifest.list_done(f"{tmp_path}/out")) == 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["discover", "--input", "{root}/missing/*.gz"], ["missing", "names no file"]),
        (["crawl", "--input", "{root}/missing"], ["missing"]),
        (["score", "--input", "{root}/missing", "--model", "x", "--pretrained", "y"], ["missing"]),
        (["dedup", "--input", "{root}/missing"], ["missing", "does not exist"]),
        (["pack", "--input", "{root}/missing"], ["missing", "does not exist"]),
        (["pack", "--input", "{root}/images", "--where", "clip_scoer > 0.3"], ["clip_scoer", "caption"]),
        (["pack", "--input", "{root}/images", "--where", "true; select 1"], ["one SQL expression"]),
        (["pack", "--input", "{root}/images", "--where", "width"], ["true or false"]),
        (["pack", "--input", "{root}/images", "--preset", "laion6b"], ["laion6b", "laion5b"]),
        (["pack", "--input", "{root}/images", "--gruop", "3"], ["gruop"]),
        (["pack", "--input", "{root}/images", "--group", "0"], ["group 0"]),
        (["discover", "--input", "{root}/a.gz", "--rules", "nothing"], ["nothing", "laion400m"]),
        (["pack", "--input", "{root}/images", "--task", "4/4"], ["task", "0/4"]),
    ],
)
def test_bad_configuration_is_refused_before_anything_is_written(
    tmp_path: Path, argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "images", IMAGES)
    command = [word.format(root=tmp_path) for word in argv]
    assert cli.main([*command, "--output", f"{tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert not manifest.list_done(f"{tmp_path}/out")


def test_missing_train_input_and_impossible_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--shards", f"{tmp_path}/missing", "--output", f"{tmp_path}/run", "--steps", "1"]
    assert cli.main(train) == 2
    assert "missing" in capsys.readouterr().err
    assert cli.main([*train, "--zero.stage", "7"]) == 2
    assert "zero.stage 7" in capsys.readouterr().err
    assert cli.main(["evaluate", "--model", f"{tmp_path}/run", "--shards", f"{tmp_path}"]) == 2
    assert "no finished model" in capsys.readouterr().err


def test_shard_with_a_damaged_tar_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "images", IMAGES)
    tar = tmp_path / "images/00000001.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    command = ["pack", "--input", f"{tmp_path}/images", "--output", f"{tmp_path}/out", "--group", "1"]
    assert cli.main(command) == 1
    assert "00000001.tar" in capsys.readouterr().err
    assert len(manifest.list_done(f"{tmp_path}/out")) == 1


def test_gzip_of_nothing_is_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.warc.gz").write_bytes(gzip.compress(b"this is no archive" * 100))
    assert cli.main(["discover", "--input", f"{tmp_path}/x.warc.gz", "--output", f"{tmp_path}/out"]) == 1
    assert "x.warc.gz" in capsys.readouterr().err
    assert not tarfile.is_tarfile(tmp_path / "x.warc.gz")
