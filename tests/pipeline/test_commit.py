"""Replacing a committed unit: wherever a crash comes, the old unit stands whole or the new one will."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import commit, manifest, storage
from pipeline.stage import Counts


class Crash(BaseException):
    """Ends a commit where it stands, as SIGKILL would: nothing that catches errors catches it."""


def record_of(text: str) -> dict:
    counts = Counts(1, 1).to_json()
    return {
        "stage": "toy", "version": 1, "unit": 3, "digest": "d" * 16, "config": {}, "source": {}, "inputs": [],
        "counts": counts, "notes": {"text": text},
    }  # fmt: skip


def parts_of(text: str) -> dict[str, bytes]:
    return {"00000003.tar": text.encode() * 3, "00000003.parquet": text.encode()}


def state(folder: str) -> tuple[dict[str, bytes], list[str]]:
    """The visible parts, and the texts of the manifests."""
    parts = {Path(f.url).name: Path(f.url).read_bytes() for f in storage.list_files(folder)}
    return parts, [m["notes"]["text"] for m in manifest.read_all(folder)]


def steps_of_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> tuple[str, bool]:
    """Commits `old`, then `new` with a crash before the given step; (folder, whether it crashed)."""
    folder = str(tmp_path / str(crash_at))
    first = commit.replace(folder, record_of("old"), parts_of("old"), stale=[])
    assert state(folder) == (parts_of("old"), ["old"])
    stale = [d.url for d in manifest.list_manifests(folder)]
    assert first["files"]["00000003.tar"]["size"] == 9
    steps = 0

    def counted(function):
        def run(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps > crash_at:
                raise Crash
            return function(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "remove", "move", "remove_folder"):
            patch.setattr(storage, name, counted(getattr(storage, name)))
        try:
            commit.replace(folder, record_of("new"), parts_of("new"), stale=stale)
        except Crash:
            return folder, True
    return folder, False


def test_a_crash_at_every_step_of_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for crash_at in range(100):
        folder, crashed = steps_of_a_replacement(tmp_path, monkeypatch, crash_at)
        parts, texts = state(folder)
        # a manifest never stands beside parts that are not its own
        if texts:
            assert parts == parts_of(texts[0])
        commit.roll_forward(folder)
        parts, texts = state(folder)
        assert len(texts) == 1
        assert parts == parts_of(texts[0])
        seen.append(texts[0])
        if not crashed:
            assert texts == ["new"]
            assert not storage.list_folders(commit.pending_folder(folder))
            break
    assert seen[0] == "old"
    assert seen == sorted(seen, reverse=True)  # old until the new parts are whole, new from then on
    assert len(seen) > 6


def test_parts_that_are_not_named_stay(tmp_path: Path) -> None:
    folder = str(tmp_path)
    old = commit.replace(folder, record_of("old"), parts_of("old"), stale=[])
    stale = [d.url for d in manifest.list_manifests(folder)]
    record = {**record_of("new"), "files": old["files"]}
    new = commit.replace(folder, record, {"00000003.parquet": b"new"}, stale=stale)
    assert new["files"]["00000003.tar"] == old["files"]["00000003.tar"]
    assert state(folder) == ({"00000003.tar": b"oldoldold", "00000003.parquet": b"new"}, ["new"])


def test_a_replacement_that_was_never_whole_is_forgotten(tmp_path: Path) -> None:
    folder = str(tmp_path)
    commit.replace(folder, record_of("old"), parts_of("old"), stale=[])
    half = Path(commit.pending_folder(folder)) / "00000003-abc"
    half.mkdir(parents=True)
    (half / "00000003.tar").write_bytes(b"half")
    assert commit.roll_forward(folder) == 0
    assert half.exists()  # it may belong to a run under way
    os.utime(half, (0, 0))
    commit.roll_forward(folder)
    assert not half.exists()
    assert state(folder) == (parts_of("old"), ["old"])
